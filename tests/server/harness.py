"""What the tests share: bundles, servers on free ports, clients of them."""

import json
import os
import re
import signal
import struct
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get('CARGO_TARGET_DIR', ROOT / 'target')) / 'release'
PATIENCE = 120  # seconds after which something hangs

model = folder = None


def prepare(model_path, folder_path):
    global model, folder
    model, folder = model_path, folder_path
    bundle('plain')


def bundle(name, template=None):
    """The model's bundle, maybe with another chat template."""
    path = folder / f'{name}.fib'
    if not path.exists() or path.stat().st_mtime < (BIN / 'fastc').stat().st_mtime:
        source = model
        if template is not None:
            source = folder / f'{name}.gguf'
            with_template(model, source, template)
        subprocess.run([BIN / 'fastc', 'compile', source, '-o', path, '--max-batch', '64'], check=True, capture_output=True)
    return path


def with_template(source, target, template):
    """Writes a GGUF file with another tokenizer.chat_template. A comment in front makes it longer than the old one by a
    multiple of 32, so that the tensors stay aligned."""
    data = source.read_bytes()
    key = b'tokenizer.chat_template'
    at = data.index(struct.pack('<Q', len(key)) + key) + 8 + len(key) + 4
    (old,) = struct.unpack_from('<Q', data, at)
    template = template.encode()
    comment = b'{##}'
    comment = b'{#' + b' ' * ((old - len(template) - len(comment)) % 32) + b'#}'
    new = comment + template
    assert len(new) % 32 == old % 32
    target.write_bytes(data[:at] + struct.pack('<Q', len(new)) + new + data[at + 8 + old:])


class Server:
    """`fastrun serve` on a free port."""

    def __init__(self, *options, bundle_path=None, env=None, model='smollm2'):
        command = [BIN / 'fastrun', 'serve', bundle_path or bundle('plain'), '--port', '0', '--model', model, *options]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})})
        line = self.process.stdout.readline()
        found = re.fullmatch(r'listening at (http://\S+)\n', line)
        if not found:
            self.process.kill()
            raise RuntimeError(f'no server: {line}{self.process.stderr.read()}')
        self.url = found[1]
        self.port = int(self.url.rsplit(':', 1)[1])

    def client(self, key='none', **options):
        return openai.OpenAI(base_url=self.url + '/v1', api_key=key, max_retries=0, timeout=PATIENCE, **options)

    def request(self, path, body=None, headers={}, method=None):
        """Status, headers and body of a request."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def json(self, path, body=None, **options):
        """Status and JSON of a request."""
        status, _, data = self.request(path, body, **options)
        return status, json.loads(data)

    def metrics(self):
        """Samples by name with labels, without the prefix."""
        _, _, text = self.request('/metrics')
        samples = (line.rsplit(' ', 1) for line in text.decode().splitlines() if not line.startswith('#'))
        return {name.removeprefix('fastrun_'): float(value) for name, value in samples}

    def wait_for(self, what, patience=PATIENCE):
        """Waits until the metrics satisfy `what`."""
        end = time.monotonic() + patience
        while not what(metrics := self.metrics()):
            if time.monotonic() > end:
                raise AssertionError(f'it never came: {metrics}')
            time.sleep(0.05)
        return metrics

    def is_quiet(self, metrics):
        """Nothing runs, waits or holds memory."""
        idle = all(metrics[name] == 0 for name in ('requests_in_flight', 'sequences_running', 'sequences_waiting'))
        return idle and metrics['kv_blocks_free'] == metrics['kv_blocks']

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def ended(self):
        """Exit code and log of a server that ends."""
        _, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, log

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        return self.ended()


class ServerTest(unittest.TestCase):
    """Tests that share a server with `options`."""

    options = ()
    template = None
    server = None

    @classmethod
    def setUpClass(cls):
        path = bundle(cls.__name__.lower(), cls.template) if cls.template else None
        cls.server = Server(*cls.options, bundle_path=path)
        cls.client = cls.server.client()

    @classmethod
    def tearDownClass(cls):
        # Whatever the tests did: nothing is left, and the server has not crashed.
        metrics = cls.server.wait_for(cls.server.is_quiet)
        cls.server.signal()
        code, log = cls.server.ended()
        assert code == 0 and 'panicked' not in log and 'bug in' not in log, (code, log, metrics)

    def chat(self, text='Say hi.', **options):
        options = {'model': 'smollm2', 'max_tokens': 16, 'temperature': 0, **options}
        messages = options.pop('messages', None) or [{'role': 'user', 'content': text}]
        return self.client.chat.completions.create(messages=messages, **options)

    def refused(self, error, status, param=None, code=None):
        """Checks an error of the openai package."""
        self.assertEqual(error.status_code, status)
        if param:
            self.assertEqual(error.body['param'], param)
        if code:
            self.assertEqual(error.body['code'], code)
        self.assertTrue(error.body['message'])
        self.assertTrue(error.body['type'])
