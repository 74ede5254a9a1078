"""Clients that vanish, many at once, and a server that is told to end."""

import asyncio
import json
import signal
import socket
import unittest

import openai

from harness import PATIENCE, Server, ServerTest


class Vanishing(ServerTest):
    options = ('--max-concurrent', '100')

    def test_of_64_clients_half_vanish_and_all_is_freed(self):
        async def client(number, all_of_them):
            stream = await all_of_them.chat.completions.create(
                model='smollm2', messages=[{'role': 'user', 'content': f'Tell me a story about the number {number}.'}],
                max_tokens=40 if number % 2 else 4000, temperature=1, seed=number, stream=True,
                extra_body={'ignore_eos': True}, stream_options={'include_usage': True})
            seen, usage = 0, None
            async for chunk in stream:
                seen += bool(chunk.choices and chunk.choices[0].delta.content)
                usage = chunk.usage or usage
                if number % 2 == 0 and seen == number // 8 + 1:
                    await stream.close()
                    return None
            return usage.completion_tokens

        async def everybody():
            async with openai.AsyncOpenAI(base_url=self.server.url + '/v1', api_key='x', max_retries=0, timeout=PATIENCE) as clients:
                return await asyncio.gather(*(client(i, clients) for i in range(64)))

        before = self.server.metrics()
        counts = asyncio.run(everybody())
        self.assertEqual(counts, [None, 40] * 32)
        after = self.server.wait_for(self.server.is_quiet)
        grown = lambda name: after.get(name, 0) - before.get(name, 0)
        self.assertEqual(grown('answers_total{reason="cancelled"}'), 32)
        self.assertEqual(grown('answers_total{reason="length"}'), 32)
        self.assertEqual(grown('requests_total{endpoint="/v1/chat/completions",status="499"}'), 32)
        self.assertEqual(grown('requests_total{endpoint="/v1/chat/completions",status="200"}'), 32)
        self.assertEqual(grown('time_to_first_token_seconds_count'), 64)
        self.assertGreaterEqual(grown('generated_tokens_total'), 32 * 40)
        # The vanished would have had 4000 each.
        self.assertLess(grown('generated_tokens_total'), 32 * 400)

    def vanish(self, body, after):
        """Sends a request, and goes away once the metrics satisfy `after`."""
        data = json.dumps(body).encode()
        with socket.create_connection(('127.0.0.1', self.server.port)) as connection:
            connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(data) + data)
            self.server.wait_for(after)
        return self.server.wait_for(self.server.is_quiet)

    def test_it_is_noticed_before_the_first_token(self):
        # A prompt that takes many steps.
        prompt = list(range(1000, 9000))
        before = self.server.metrics()
        for stream in (False, True):
            after = self.vanish({'prompt': prompt, 'max_tokens': 100, 'stream': stream}, lambda m: m['sequences_running'] == 1)
        self.assertEqual(after['time_to_first_token_seconds_count'], before['time_to_first_token_seconds_count'])

    def test_it_is_noticed_while_an_answer_is_put_together(self):
        before = self.server.metrics()['generated_tokens_total']
        after = self.vanish({'prompt': 'x', 'max_tokens': 8000, 'ignore_eos': True}, lambda m: m['generated_tokens_total'] > before + 5)
        self.assertLess(after['generated_tokens_total'], before + 4000)


class Ending(unittest.TestCase):
    def stream(self, server, **options):
        return server.client().completions.create(
            model='smollm2', prompt='Once', stream=True, extra_body={'ignore_eos': True}, **options)

    def test_running_requests_end_and_new_ones_are_refused(self):
        server = Server()
        stream = self.stream(server, max_tokens=600)
        first = next(iter(stream))
        server.signal()
        server.wait_for(lambda m: m['draining'] == 1)
        status, headers, body = server.request('/health')
        self.assertEqual((status, json.loads(body)), (503, {'status': 'draining', 'restarts': 0}))
        self.assertEqual(server.json('/health/live')[0], 200)
        status, headers, body = server.request('/v1/completions', {'prompt': 'x'})
        self.assertEqual((status, headers['Retry-After'], json.loads(body)['error']['code']), (503, '5', 'draining'))
        rest = list(stream)
        self.assertTrue(first.choices)
        self.assertEqual(rest[-1].choices[0].finish_reason, 'length')
        code, log = server.ended()
        self.assertEqual(code, 0)
        self.assertIn('shutting down: 1 request', log)

    def test_an_idle_server_ends_at_once_though_clients_are_connected(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            server = Server()
            with socket.create_connection(('127.0.0.1', server.port)):
                server.signal(number)
                self.assertEqual(server.ended()[0], 0)

    def test_what_takes_too_long_is_cut_off_with_a_reason(self):
        server = Server('--drain-timeout', '0.2')
        stream = self.stream(server, max_tokens=8000)
        next(iter(stream))
        server.signal()
        with self.assertRaises(openai.APIError) as caught:
            for _ in stream:
                pass
        self.assertEqual(caught.exception.body['code'], 'draining')
        self.assertEqual(server.ended()[0], 0)

    def test_a_second_signal_ends_it(self):
        server = Server()
        stream = self.stream(server, max_tokens=8000)
        next(iter(stream))
        server.signal(signal.SIGINT)
        server.wait_for(lambda m: m['draining'] == 1)
        server.signal(signal.SIGINT)
        self.assertEqual(server.ended()[0], 0)
