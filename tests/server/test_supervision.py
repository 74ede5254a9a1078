"""Worker processes that die under a server: clients don't notice; what can't go on ends with a reason."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import BIN, PATIENCE, Server, bundle


class Supervised(Server):
    """A server whose worker process is known."""

    def workers(self):
        """Processes that the server has started and that live."""
        pids = []
        for children in Path(f'/proc/{self.process.pid}/task').glob('*/children'):
            try:
                pids += map(int, children.read_text().split())
            except FileNotFoundError:
                pass  # the thread has ended
        return [pid for pid in pids if state(pid) != 'Z']

    def worker(self, other_than=None):
        """The one that lives, once there is one."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for pid in self.workers():
                if pid != other_than:
                    return pid
            assert self.process.poll() is None, 'the server has ended'
            time.sleep(0.002)
        raise AssertionError('there is no worker')

    def kill(self, number=signal.SIGKILL):
        pid = self.worker()
        os.kill(pid, number)
        return pid

    def restarts(self, count):
        return self.wait_for(lambda m: m['worker_restarts_total'] >= count and not m['restarting'])

    def stream(self, body, path='/v1/completions', seen=lambda events: None):
        """All events of a streamed answer."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=PATIENCE)
        body = {**body, 'stream': True, 'stream_options': {'include_usage': True}}
        connection.request('POST', path, json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        events = []
        for line in response:
            if line.startswith(b'data: ') and line != b'data: [DONE]\n':
                events.append(json.loads(line[6:]))
                seen(events)
        connection.close()
        return events


def state(pid):
    """The letter of a process' state, Z where there is none."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 'Z'


def answer(events):
    """What a client has of a stream: of each choice text, log-probabilities and end; and the usage without the cache, which
    depends on who came first."""
    choices = {}
    for event in events:
        assert 'error' not in event, event
        for choice in event['choices']:
            part = choices.setdefault(choice['index'], {'text': '', 'logprobs': [], 'end': []})
            delta = choice.get('delta', {})
            part['text'] += (choice['text'] if 'text' in choice else delta.get('content')) or ''
            logprobs = choice.get('logprobs') or {}
            part['logprobs'] += logprobs.get('content') or list(zip(*(logprobs.get(k) or [] for k in ('tokens', 'token_logprobs'))))
            part['end'] += [choice['finish_reason']] if choice['finish_reason'] else []
    usage = events[-1]['usage']
    return choices, usage['prompt_tokens'], usage['completion_tokens']


SCHEMA = {'type': 'object', 'additionalProperties': False, 'required': ['name', 'colours'], 'properties': {
    'name': {'type': 'string', 'minLength': 30, 'maxLength': 60},
    'colours': {'type': 'array', 'minItems': 6, 'maxItems': 9, 'items': {'type': 'string', 'minLength': 3, 'maxLength': 12}}}}

# What an answer may depend on beside its tokens' logits.
KINDS = (
    {},
    {'temperature': 0},
    {'logprobs': 3},
    {'n': 2},
    {'frequency_penalty': 0.8, 'presence_penalty': 0.4},
    {'repeat_penalty': 1.3, 'repeat_last_n': 20, 'temperature': 0.7},
    {'logit_bias': {'28': -100, '216': 2}, 'top_k': 20},
    {'stop': ['\n\n', ' I ']},
)


def asked(number, tokens=160):
    """The request of a client: path and body."""
    kind = KINDS[number % len(KINDS)]
    body = {'max_tokens': tokens, 'seed': number, 'temperature': 1, **kind}
    if number % 8 == 7 and number % 16 != 7:
        schema = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': SCHEMA}}
        messages = [{'role': 'user', 'content': f'Describe the flower number {number} as JSON.'}]
        return '/v1/chat/completions', {'messages': messages, 'max_tokens': 400, 'seed': number, 'response_format': schema}
    if 'stop' not in body:
        body['ignore_eos'] = True
    return '/v1/completions', {'prompt': f'Story {number}. Once upon a time', **body}


class FaultInjection(unittest.TestCase):
    def setUp(self):
        self.server = Supervised('--max-concurrent', '300')
        self.addCleanup(self.server.stop)

    def everybody(self, count):
        def client(number):
            path, body = asked(number)
            return answer(self.server.stream(body, path))
        with ThreadPoolExecutor(count) as clients:
            return list(clients.map(client, range(count)))

    def end(self, restarts):
        """The server is none the worse."""
        metrics = self.server.wait_for(self.server.is_quiet)
        self.assertEqual(metrics['worker_restarts_total'], restarts)
        self.assertEqual(metrics['restarting'], 0)
        worker = self.server.worker()
        self.server.signal()
        code, log = self.server.ended()
        self.assertEqual(code, 0, log)
        self.assertNotIn('panicked', log)
        self.assertNotIn('bug in', log)
        self.assertEqual(state(worker), 'Z')
        return log

    def test_32_clients_and_a_worker_that_is_killed_ten_times(self):
        undisturbed = self.everybody(32)
        before = self.server.metrics()['generated_tokens_total']
        self.assertGreater(before, 32 * 100)
        rng = random.Random(1)
        # Deaths at random points of the work that is to be done.
        points = sorted(rng.uniform(0, 0.95) for _ in range(10))

        def reaper():
            dead = None
            for point in points:
                self.server.wait_for(lambda m: m['generated_tokens_total'] >= before * (1 + point))
                time.sleep(rng.uniform(0, 0.02))
                dead = self.server.worker(other_than=dead)
                os.kill(dead, signal.SIGKILL)

        thread = threading.Thread(target=reaper)
        thread.start()
        disturbed = self.everybody(32)
        thread.join()
        for number, (one, other) in enumerate(zip(undisturbed, disturbed)):
            self.assertEqual(one, other, f'client {number}')
        after = self.server.wait_for(self.server.is_quiet)
        # Each token once, however many workers drew it: what clients were charged for.
        charged = sum(tokens for _, _, tokens in undisturbed)
        self.assertEqual((before, after['generated_tokens_total']), (charged, 2 * charged))
        log = self.end(10)
        self.assertEqual(log.count('SIGKILL'), 10)

    def test_each_kind_of_request_goes_on_from_any_token(self):
        kinds = [*range(len(KINDS)), 15]
        undisturbed = [answer(self.server.stream(asked(number)[1], asked(number)[0])) for number in kinds]
        rng, kills = random.Random(2), 0
        for number, expected in zip(kinds, undisturbed):
            path, body = asked(number)
            at = rng.randrange(2, 20)

            def seen(events):
                nonlocal kills
                if len(events) == at:
                    self.server.kill()
                    kills += 1
            self.assertEqual(answer(self.server.stream(body, path, seen)), expected, body)
        self.assertEqual(kills, len(kinds))
        self.end(kills)

    def test_a_death_before_the_first_token_shows_nowhere(self):
        body = {'prompt': list(range(1000, 7000)), 'max_tokens': 5, 'temperature': 0}
        status, expected = self.server.json('/v1/completions', body)
        self.assertEqual(status, 200)
        body['prompt'][0] = 999  # nothing of it is cached
        with ThreadPoolExecutor() as pool:
            running = pool.submit(self.server.json, '/v1/completions', body)
            for _ in range(2):
                # In the first of its many steps.
                self.server.wait_for(lambda m: m['sequences_running'] == 1)
                dead = self.server.kill()
                self.server.worker(other_than=dead)
            status, found = running.result()
        self.assertEqual(status, 200)
        self.assertEqual(found['usage'], expected['usage'])
        self.end(2)

    def test_an_idle_worker_and_one_that_starts(self):
        first = self.server.kill()
        self.server.restarts(1)
        # The next one is killed as soon as it is there, twice, with a request that waits.
        self.server.kill()
        second = self.server.worker(other_than=first)
        with ThreadPoolExecutor() as pool:
            running = pool.submit(self.server.json, '/v1/completions', {'prompt': 'x', 'max_tokens': 4, 'temperature': 0})
            for _ in range(2):
                dead = self.server.worker()
                os.kill(dead, signal.SIGKILL)
                self.server.worker(other_than=dead)
            status, reply = running.result()
        self.assertNotEqual(first, second)
        self.assertEqual((status, reply['usage']['completion_tokens']), (200, 4))
        self.assertEqual(self.server.json('/health')[1]['status'], 'ok')

    def test_embeddings_are_computed_again(self):
        text = 'word ' * 1500
        _, expected = self.server.json('/v1/embeddings', {'input': text})
        with ThreadPoolExecutor() as pool:
            running = pool.submit(self.server.json, '/v1/embeddings', {'input': text})
            self.server.wait_for(lambda m: m['sequences_running'] == 1)
            self.server.kill()
            status, found = running.result()
        self.assertEqual((status, found), (200, expected))

    def test_what_happens_while_there_is_no_worker(self):
        """Requests wait, clients vanish, time runs out, and the server says how it is."""
        worker = self.server.worker()
        os.kill(worker, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(self.server.json, '/v1/completions', {'prompt': 'x', 'max_tokens': 4})
                late = pool.submit(self.server.json, '/v1/completions', {'prompt': 'x', 'max_tokens': 4, 'timeout': 0.3})
                data = json.dumps({'prompt': 'x', 'max_tokens': 4000}).encode()
                with socket.create_connection(('127.0.0.1', self.server.port)) as connection:
                    connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(data) + data)
                    self.server.wait_for(lambda m: m['requests_in_flight'] == 3)
                self.assertEqual(late.result()[0], 504)
                self.server.wait_for(lambda m: m['requests_in_flight'] == 1)
                # A stopped process dies of it, too.
                os.kill(worker, signal.SIGKILL)
                self.assertEqual(waiting.result()[0], 200)
        finally:
            try:
                os.kill(worker, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.end(1)


class Ends(unittest.TestCase):
    def start(self, *options, **kwargs):
        server = Supervised(*options, **kwargs)
        self.addCleanup(server.stop)
        return server

    def test_a_crash_loop_ends_with_an_error_that_says_so(self):
        server = self.start()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(server.json, '/v1/completions', {'prompt': 'x', 'max_tokens': 8000, 'ignore_eos': True})
            server.wait_for(lambda m: m['generated_tokens_total'] > 3)
            worker = server.worker()
            # Each one before it has done anything.
            while server.process.poll() is None:
                try:
                    os.kill(worker, signal.SIGKILL)
                    worker = server.worker(other_than=worker)
                except (AssertionError, ProcessLookupError):
                    break
            status, reply = running.result()
        code, log = server.ended()
        self.assertEqual(status, 500)
        self.assertIn('died 5 times within 60 s', reply['error']['message'])
        self.assertEqual(code, 1, log)
        self.assertIn('fastrun: the worker process died 5 times within 60 s', log)
        self.assertIn('SIGKILL', log)

    def test_a_worker_that_hangs_is_replaced(self):
        server = self.start('--hang-timeout', '2')
        body = {'prompt': 'Once', 'max_tokens': 400, 'seed': 3, 'ignore_eos': True}
        expected = answer(server.stream(body))
        stopped = []

        def seen(events):
            if len(events) == 20:
                stopped.append(server.kill(signal.SIGSTOP))
        self.assertEqual(answer(server.stream(body, seen=seen)), expected)
        self.assertEqual(state(stopped[0]), 'Z')
        # One that has nothing to do doesn't hang.
        time.sleep(3)
        self.assertGreaterEqual(server.metrics()['worker_restarts_total'], 1)
        server.signal()
        code, log = server.ended()
        self.assertEqual(code, 0)
        self.assertIn('no step ended for 2 s', log)

    def test_a_worker_ends_with_its_server_however_that_ends(self):
        for stopped in (False, True):
            server = self.start()
            worker = server.worker()
            if stopped:
                os.kill(worker, signal.SIGSTOP)
            server.stop()
            end = time.monotonic() + PATIENCE
            while state(worker) != 'Z':
                self.assertLess(time.monotonic(), end, 'the worker lives on')
                time.sleep(0.05)

    def test_signals_for_everybody_are_the_servers(self):
        server = self.start()
        started = threading.Event()
        body = {'prompt': 'Once', 'max_tokens': 100, 'ignore_eos': True}
        with ThreadPoolExecutor() as pool:
            running = pool.submit(server.stream, body, seen=lambda events: started.set())
            started.wait(PATIENCE)
            # As service managers and terminals send them.
            server.kill(signal.SIGTERM)
            server.kill(signal.SIGINT)
            server.signal()
            _, _, tokens = answer(running.result())
        self.assertEqual(tokens, 100)
        code, log = server.ended()
        self.assertEqual(code, 0, log)
        self.assertNotIn('died', log)

    def test_requests_drain_over_a_death(self):
        server = self.start()
        body = {'prompt': 'Once', 'max_tokens': 400, 'seed': 4, 'ignore_eos': True}
        expected = answer(server.stream(body))

        def seen(events):
            if len(events) == 10:
                server.signal()
            if len(events) == 20:
                server.kill()
        self.assertEqual(answer(server.stream(body, seen=seen)), expected)
        self.assertEqual(server.ended()[0], 0)

    def test_the_queue_is_bounded_over_a_death(self):
        server = self.start('--queue', '1')
        with ThreadPoolExecutor(8) as pool:
            worker = server.worker()
            os.kill(worker, signal.SIGSTOP)
            ask = lambda _: server.json('/v1/completions', {'prompt': 'x', 'max_tokens': 4})
            first = pool.submit(ask, 0)
            server.wait_for(lambda m: m['requests_in_flight'] == 1)
            # It waits, for all that is known.
            status, reply = ask(1)
            self.assertEqual((status, reply['error']['code']), (503, 'queue_full'))
            os.kill(worker, signal.SIGKILL)
            self.assertEqual(first.result()[0], 200)
            server.wait_for(server.is_quiet)
            self.assertEqual(ask(2)[0], 200)

    def test_what_can_not_be_opened_is_no_crash(self):
        for options, says in ((['/nowhere.fib'], "can't open"), ([bundle('plain'), '--device', 'gpu'], 'not for a GPU'),
                              ([bundle('plain'), '--kv-memory', '1K'], 'KV')):
            command = [BIN / 'fastrun', 'serve', *options, '--port', '0']
            run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(run.returncode, 1, run.stderr)
            self.assertIn(says, run.stderr)
            self.assertNotIn('died', run.stderr)
            self.assertEqual(run.stderr.count('\n'), 1, run.stderr)

    def test_a_worker_without_a_server_says_what_to_run(self):
        run = subprocess.run([BIN / 'fastrun', 'serve-worker'], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn('fastrun serve', run.stderr)

    def test_one_process_serves_alike(self):
        body = {'prompt': 'Once', 'max_tokens': 60, 'seed': 3, 'logprobs': 2, 'n': 2, 'ignore_eos': True}
        answers = []
        for options, restarts in (([], 0), (['--no-supervise'], None)):
            server = self.start(*options)
            self.assertEqual(len(server.workers()), 0 if options else 1)
            self.assertEqual(server.json('/health'), (200, {'status': 'ok'} if options else {'status': 'ok', 'restarts': 0}))
            self.assertEqual(server.metrics().get('worker_restarts_total'), restarts)
            answers.append(answer(server.stream(body)))
            server.signal()
            self.assertEqual(server.ended()[0], 0)
        self.assertEqual(*answers)
