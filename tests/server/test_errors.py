"""Errors: status, type, field and text; keys, limits, methods, other pages' calls."""

import http.client
import json
import socket
import subprocess

import openai

from harness import BIN, Server, ServerTest, bundle


class Errors(ServerTest):
    def test_every_wrong_field_is_named(self):
        messages = [{'role': 'user', 'content': 'x'}]
        for field, value in (
            ('temperature', -1), ('temperature', 'hot'), ('top_p', 1.5), ('max_tokens', 0), ('max_tokens', 1.5), ('n', 0), ('n', 1000),
            ('presence_penalty', 9), ('frequency_penalty', -9), ('stop', 5), ('stop', ['']), ('stop', ['x'] * 99),
            ('logit_bias', {'x': 1}), ('logit_bias', {'1': 1000}), ('logit_bias', []), ('top_logprobs', 3),
            ('logprobs', 'yes'), ('seed', 'x'), ('stream', 1), ('stream_options', {'include_usage': True}),
            ('modalities', ['audio']), ('nonsense', 1),
            ('top_k', -2), ('min_p', 2), ('typical_p', 0), ('repeat_penalty', 0), ('timeout', 0),
        ):
            status, reply = self.server.json('/v1/chat/completions', {'messages': messages, field: value})
            self.assertEqual((status, reply['error']['type']), (400, 'invalid_request_error'), (field, value, reply))
            self.assertEqual(reply['error']['param'], field)
        for format, param in (({'type': 'xml'}, 'response_format.type'), ({'type': 'json_schema'}, 'response_format.json_schema'),
                              ({'type': 'text', 'x': 1}, 'response_format.x')):
            status, reply = self.server.json('/v1/chat/completions', {'messages': messages, 'response_format': format})
            self.assertEqual((status, reply['error']['param']), (400, param))
        for wrong, param in ((None, 'messages'), ([], 'messages'), ([{'role': 'x', 'content': ''}], 'messages[0].role'), ('x', 'messages')):
            status, reply = self.server.json('/v1/chat/completions', {'messages': wrong})
            self.assertEqual((status, reply['error']['param']), (400, param))

    def test_what_openai_clients_add_is_no_error(self):
        extra = {'user': 'me', 'store': False, 'metadata': {}, 'service_tier': 'auto', 'temperature': None, 'tools': None, 'stop': None}
        status, _ = self.server.json('/v1/chat/completions', {'messages': [{'role': 'user', 'content': 'x'}], 'max_tokens': 1, **extra})
        self.assertEqual(status, 200)

    def test_bodies_that_are_no_json(self):
        for body in (b'', b'{', b'[]', b'"x"', b'\xff\xfe', b'{"messages": [}', b'[' * 100_000):
            status, reply = self.server.json('/v1/chat/completions', body)
            self.assertEqual((status, reply['error']['type']), (400, 'invalid_request_error'), body[:20])

    def test_the_package_raises_the_right_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model='gpt-4')
        self.refused(caught.exception, 404, 'model', 'model_not_found')
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=-1)
        self.refused(caught.exception, 400, 'temperature')
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat('word ' * 9000)
        self.refused(caught.exception, 400, 'messages', 'context_length_exceeded')

    def test_paths_and_methods(self):
        status, reply = self.server.json('/v1/nothing')
        self.assertEqual((status, reply['error']['code']), (404, 'unknown_url'))
        status, headers, body = self.server.request('/v1/chat/completions')
        self.assertEqual((status, headers['Allow']), (405, 'POST'))
        self.assertEqual(json.loads(body)['error']['code'], 'method_not_allowed')

    def test_nonsense_instead_of_http_closes_the_connection(self):
        with socket.create_connection(('127.0.0.1', self.server.port), timeout=20) as connection:
            connection.sendall(b'\x16\x03\x01 hello\r\n\r\n')
            self.assertIn(b'400', connection.recv(100))
        self.assertEqual(self.server.json('/health')[0], 200)

    def test_requests_share_a_connection(self):
        connection = http.client.HTTPConnection('127.0.0.1', self.server.port, timeout=60)
        for _ in range(3):
            connection.request('POST', '/v1/completions', json.dumps({'prompt': 'x', 'max_tokens': 1}))
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read()
        connection.close()

    def test_other_origins_are_not_allowed(self):
        _, headers, _ = self.server.request('/v1/models', headers={'Origin': 'https://example.org'})
        self.assertIsNone(headers['Access-Control-Allow-Origin'])


class Limits(ServerTest):
    options = ('--api-key', 'one,two', '--max-body', '2000', '--max-prompt', '60', '--max-concurrent', '2', '--queue', '1',
               '--timeout', '5', '--cors', 'https://example.org')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = cls.server.client('two')

    def post(self, body, key='one', path='/v1/completions', **headers):
        headers = {'Authorization': f'Bearer {key}', **headers} if key else headers
        return self.server.json(path, body, headers=headers)

    def test_a_key_is_wanted(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            self.server.client('three').models.list()
        self.refused(caught.exception, 401, code='invalid_api_key')
        self.assertEqual(self.post({'prompt': 'x'}, key=None)[0], 401)
        self.assertEqual(self.post({'content': 'x'}, key=None, path='/tokenize')[0], 401)
        self.assertEqual(self.post({'prompt': 'x', 'max_tokens': 1}, key='two')[0], 200)
        for open_to_all in ('/health', '/metrics', '/'):
            self.assertEqual(self.server.request(open_to_all)[0], 200)

    def test_bodies_are_limited(self):
        status, reply = self.post({'prompt': 'x' * 3000})
        self.assertEqual((status, reply['error']['code']), (413, 'body_too_large'))
        # Without a length, in chunks.
        curl = subprocess.run(['curl', '-sS', '--noproxy', '*', '-H', 'Transfer-Encoding: chunked', '-H', 'Authorization: Bearer one',
                               '-d', 'x' * 3000, f'{self.server.url}/v1/completions'], capture_output=True, text=True)
        self.assertEqual(json.loads(curl.stdout)['error']['code'], 'body_too_large')

    def test_prompts_are_limited(self):
        status, reply = self.post({'prompt': 'word ' * 70, 'max_tokens': 1})
        self.assertEqual((status, reply['error']['code'], reply['error']['param']), (400, 'context_length_exceeded', 'prompt'))
        self.assertIn('60', reply['error']['message'])

    def test_requests_at_a_time_are_limited(self):
        long = [self.client.completions.create(model='smollm2', prompt='x', max_tokens=2000, stream=True,
                                               extra_body={'ignore_eos': True})]
        # It runs, so the next one is alone in the queue.
        next(long[0])
        long.append(self.client.completions.create(model='smollm2', prompt='x', max_tokens=2000, stream=True,
                                                   extra_body={'ignore_eos': True}))
        with self.assertRaises(openai.RateLimitError) as caught:
            self.client.completions.create(model='smollm2', prompt='x', max_tokens=1)
        self.refused(caught.exception, 429, code='rate_limit_exceeded')
        self.assertEqual(caught.exception.response.headers['retry-after'], '1')
        for stream in long:
            stream.close()
        self.server.wait_for(self.server.is_quiet)
        self.assertEqual(self.post({'prompt': 'x', 'max_tokens': 1})[0], 200)

    def test_a_timeout_ends_an_answer(self):
        body = {'prompt': 'x', 'max_tokens': 7000, 'ignore_eos': True, 'timeout': 0.3}
        status, reply = self.post(body)
        self.assertEqual((status, reply['error']['code']), (504, 'timeout'))
        with self.assertRaises(openai.APIError) as caught:
            for _ in self.client.completions.create(model='smollm2', prompt='x', max_tokens=7000, stream=True,
                                                    extra_body={'ignore_eos': True, 'timeout': 0.3}):
                pass
        self.assertEqual(caught.exception.body['code'], 'timeout')

    def test_pages_of_a_named_origin_may_call(self):
        status, headers, _ = self.server.request('/v1/completions', method='OPTIONS', headers={
            'Origin': 'https://example.org', 'Access-Control-Request-Method': 'POST'})
        self.assertEqual((status, headers['Access-Control-Allow-Origin']), (204, 'https://example.org'))
        self.assertIn('Authorization', headers['Access-Control-Allow-Headers'])
        _, headers, _ = self.server.request('/health', headers={'Origin': 'https://evil.example'})
        self.assertIsNone(headers['Access-Control-Allow-Origin'])


class Starting(ServerTest):
    def test_a_port_that_is_taken(self):
        run = subprocess.run([BIN / 'fastrun', 'serve', bundle('plain'), '--port', str(self.server.port)], capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn('--port', run.stderr)

    def test_the_environment_sets_options(self):
        server = Server('--quiet', env={'FASTRUN_API_KEY': 'secret', 'FASTRUN_MAX_PROMPT': '3', 'FASTRUN_SPEC': 'ngram'})
        self.assertEqual(server.json('/v1/models')[0], 401)
        key = {'Authorization': 'Bearer secret'}
        self.assertEqual(server.json('/v1/completions', {'prompt': 'a b c d e f'}, headers=key)[1]['error']['code'], 'context_length_exceeded')
        server.signal()
        code, log = server.ended()
        self.assertEqual(code, 0)
        self.assertNotIn('GET /v1/models', log)
        shown = subprocess.run([BIN / 'fastrun', 'serve', '--help'], env={'FASTRUN_API_KEY': 'secret'}, capture_output=True, text=True).stdout
        self.assertIn('FASTRUN_API_KEY', shown)
        self.assertNotIn('secret', shown)
