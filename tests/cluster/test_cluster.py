"""Tests of examples/cluster."""

import json
import os
import signal
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import yaml

import affinity

CLUSTER = Path(__file__).resolve().parents[2] / 'examples/cluster'
URL = 'http://127.0.0.1:8000'


class Manifests(unittest.TestCase):
    def setUp(self):
        documents = yaml.safe_load_all((CLUSTER / 'fastrun.yaml').read_text())
        self.by_kind = {document['kind']: document for document in documents}

    def test_they_are_valid(self):
        for document in self.by_kind.values():
            kubernetes_validate.validate(document, '1.37', strict=True)

    def test_they_fit_together(self):
        deployment = self.by_kind['Deployment']
        pod = deployment['spec']['template']
        (container,) = pod['spec']['containers']
        labels = pod['metadata']['labels']
        for selector in (deployment['spec']['selector']['matchLabels'], self.by_kind['Service']['spec']['selector'],
                         self.by_kind['PodDisruptionBudget']['spec']['selector']['matchLabels']):
            self.assertLessEqual(selector.items(), labels.items())
        ports = {port['name'] for port in container['ports']}
        probes = [container[name]['httpGet'] for name in ('startupProbe', 'readinessProbe', 'livenessProbe')]
        self.assertEqual([p['path'] for p in probes], ['/health', '/health', '/health/live'])
        self.assertLessEqual({p['port'] for p in probes} | {self.by_kind['Service']['spec']['ports'][0]['targetPort']}, ports)
        environment = {e['name']: e.get('value') for e in container['env']}
        # What the pod has to end in: the pause, then the drain.
        pause = container['lifecycle']['preStop']['sleep']['seconds']
        self.assertGreater(pod['spec']['terminationGracePeriodSeconds'], pause + int(environment['FASTRUN_DRAIN_TIMEOUT']))
        target = self.by_kind['HorizontalPodAutoscaler']['spec']['scaleTargetRef']
        self.assertEqual((target['kind'], target['name']), ('Deployment', deployment['metadata']['name']))

    def test_the_environment_is_the_servers(self):
        (container,) = self.by_kind['Deployment']['spec']['template']['spec']['containers']
        shown = subprocess.run([os.environ['FASTRUN_BINARY'], 'serve', '--help'], capture_output=True, text=True, check=True).stdout
        shown = ' '.join(shown.split())  # it is wrapped to the terminal
        for entry in container['env']:
            self.assertIn(f"[env: {entry['name']}", shown)

    def test_the_metric_is_the_one_that_the_adapter_serves(self):
        (rule,) = yaml.safe_load((CLUSTER / 'prometheus-adapter.yaml').read_text())['rules']['custom']
        (metric,) = self.by_kind['HorizontalPodAutoscaler']['spec']['metrics']
        self.assertEqual(metric['pods']['metric']['name'], rule['name']['as'])
        self.assertTrue(rule['seriesQuery'].startswith(rule['name']['as'] + '{'))


class Affinity(unittest.TestCase):
    def test_a_runner_that_goes_moves_its_own_share_only(self):
        prefixes = [f'prefix {i}' for i in range(1000)]
        runners = ['a', 'b', 'c', 'd']
        before = {p: affinity.order(p, runners) for p in prefixes}
        for prefix in prefixes:
            self.assertEqual(affinity.order(prefix, ['a', 'b', 'd'])[0], [r for r in before[prefix] if r != 'c'][0])
        shares = [sum(order[0] == runner for order in before.values()) for runner in runners]
        self.assertTrue(all(150 < share < 350 for share in shares), shares)

    def test_the_beginning_counts(self):
        chat = lambda text: json.dumps({'messages': [{'role': 'system', 'content': 'x' * 300}, {'role': 'user', 'content': text}]})
        self.assertEqual(affinity.prefix('/a', chat('one')), affinity.prefix('/a', chat('two')))
        self.assertNotEqual(affinity.prefix('/a', '{"prompt": "one"}'), affinity.prefix('/a', '{"prompt": "two"}'))
        for nothing in (b'', b'{', b'[]', b'{}', b'{"prompt": ""}'):
            self.assertEqual(affinity.prefix('/a', nothing), '')


def post(path, body):
    """Status, runner and JSON of a request."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.status, int(response.headers['x-runner']), json.loads(response.read())


class Application(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import ray
        from ray import serve

        from app import app
        ray.init(num_cpus=4, include_dashboard=False)
        serve.run(app)

    @classmethod
    def tearDownClass(cls):
        import ray
        from ray import serve
        serve.shutdown()
        ray.shutdown()

    def runner_of(self, prompt):
        status, runner, answer = post('/v1/completions', {'prompt': prompt, 'max_tokens': 2})
        self.assertEqual(status, 200)
        self.assertEqual(answer['usage']['completion_tokens'], 2)
        return runner

    def test_1_what_begins_alike_goes_to_one_runner(self):
        prompts = [f'{i} is the number that this text begins with. ' * 8 for i in range(8)]
        first = [self.runner_of(prompt + 'One.') for prompt in prompts]
        self.assertEqual([self.runner_of(prompt + 'Two.') for prompt in prompts], first)
        self.assertEqual(len(set(first)), 2)
        _, _, answer = post('/v1/completions', {'prompt': prompts[0] + 'Three.', 'max_tokens': 2})
        self.assertGreater(answer['usage']['prompt_tokens_details']['cached_tokens'], 64)

    def test_2_a_runner_that_is_full_gets_help(self):
        body = {'prompt': 'The same text for all of them. ' * 10, 'max_tokens': 100, 'ignore_eos': True}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post('/v1/completions', body), range(8)))
        self.assertEqual({status for status, _, _ in answers}, {200})
        self.assertEqual(len({runner for _, runner, _ in answers}), 2)

    def test_3_streams_come_as_they_are_made(self):
        body = {'prompt': 'Once', 'max_tokens': 60, 'stream': True, 'ignore_eos': True}
        request = urllib.request.Request(URL + '/v1/completions', json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as response:
            self.assertEqual(response.headers['content-type'], 'text/event-stream')
            pieces = list(iter(response.read1, b''))
        self.assertGreater(len(pieces), 10)
        self.assertTrue(pieces[-1].endswith(b'data: [DONE]\n\n'))

    def test_4_errors_are_the_runners(self):
        with self.assertRaises(urllib.error.HTTPError) as caught:
            post('/v1/completions', {'prompt': 'x', 'temperature': -1})
        with caught.exception as error:
            self.assertEqual((error.code, json.loads(error.read())['error']['param']), (400, 'temperature'))

    def test_5_a_runner_that_dies_is_replaced(self):
        prompt = 'Something that one of the two runners knows. ' * 8
        dead = self.runner_of(prompt)
        os.kill(dead, signal.SIGKILL)
        end = time.monotonic() + 120
        while True:
            try:
                if self.runner_of(prompt) != dead:
                    return
            except urllib.error.HTTPError as error:
                error.close()
            self.assertLess(time.monotonic(), end, 'nobody took over')
            time.sleep(1)


if __name__ == '__main__':
    result = unittest.main(verbosity=2, exit=False).result
    failed = len(result.failures) + len(result.errors)
    print(f"test result: {'FAILED' if failed else 'ok'}. {result.testsRun - failed} passed; {failed} failed;")
    sys.exit(bool(failed))
