"""fastrun bench --serve: the load generator."""

import json
import subprocess

from harness import BIN, ServerTest


class Load(ServerTest):
    def bench(self, *options, expect=0):
        run = subprocess.run([BIN / 'fastrun', 'bench', '--serve', self.server.url, '--gen', '6', *options],
                             capture_output=True, text=True)
        self.assertEqual(run.returncode, expect, run.stderr)
        return run

    def test_figures_add_up(self):
        before = self.server.metrics()
        report = json.loads(self.bench('--prompt', '40', '--requests', '12', '--clients', '4', '--shared-prefix', '32', '--json').stdout)
        after = self.server.metrics()
        self.assertEqual((report['ok'], report['failed']), (12, 0))
        self.assertEqual((report['prompt_tokens'], report['generated_tokens']), (12 * 40, 12 * 6))
        self.assertGreater(report['cached_tokens'], 0)
        for name in ('ttft_ms', 'inter_token_ms', 'request_ms'):
            q = report[name]
            self.assertTrue(0 < q['p50'] <= q['p95'] <= q['p99'], (name, q))
        path = 'requests_total{endpoint="/v1/completions",status="200"}'
        self.assertEqual(after[path] - before.get(path, 0), 12)
        self.assertGreaterEqual(after['generated_tokens_total'] - before['generated_tokens_total'], 12 * 6)

    def test_arrivals_at_a_rate(self):
        report = json.loads(self.bench('--prompt', '40', '--requests', '10', '--rate', '50', '--json').stdout)
        self.assertEqual((report['ok'], report['asked_rate']), (10, 50))
        text = self.bench('--prompt', '40', '--requests', '3', '--rate', '50').stdout
        self.assertIn('first token', text)
        self.assertIn('p99', text)

    def test_a_server_that_is_not_there_or_refuses(self):
        gone = subprocess.run([BIN / 'fastrun', 'bench', '--serve', 'http://127.0.0.1:1'], capture_output=True, text=True)
        self.assertEqual(gone.returncode, 1)
        self.assertIn('is the server running', gone.stderr)
        refused = self.bench('--requests', '2', '--prompt', '9000', expect=1)
        self.assertIn('status 400', refused.stderr)
        usage = subprocess.run([BIN / 'fastrun', 'bench', '--serve', self.server.url, '--batch', '1'], capture_output=True, text=True)
        self.assertEqual(usage.returncode, 2)
