"""Chats: whole and streamed, choices, limits of an answer, log-probabilities, formats."""

import json
import math

import openai

from harness import ServerTest


class Chat(ServerTest):
    def test_an_answer_has_everything(self):
        answer = self.chat()
        choice = answer.choices[0]
        self.assertEqual((answer.object, answer.model), ('chat.completion', 'smollm2'))
        self.assertEqual((choice.index, choice.message.role, choice.finish_reason), (0, 'assistant', 'length'))
        self.assertTrue(choice.message.content)
        self.assertEqual(answer.usage.completion_tokens, 16)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 16)

    def test_a_stream_is_the_whole_answer_in_pieces(self):
        whole = self.chat(max_completion_tokens=24)
        chunks = list(self.chat(max_completion_tokens=24, stream=True, stream_options={'include_usage': True}))
        self.assertEqual(chunks[0].choices[0].delta.role, 'assistant')
        text = ''.join(c.choices[0].delta.content or '' for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertGreater(len(chunks), 10)
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
        self.assertEqual(reasons, [whole.choices[0].finish_reason])
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual({c.id for c in chunks}, {chunks[0].id})

    def test_a_stream_without_usage_has_none(self):
        chunks = list(self.chat(stream=True))
        self.assertTrue(all(c.usage is None and c.choices for c in chunks))

    def test_choices_differ_and_a_seed_repeats_them(self):
        ask = lambda seed: [c.message.content for c in self.chat('Invent a name.', n=3, seed=seed, temperature=1.5).choices]
        first = ask(7)
        self.assertEqual(len(set(first)), 3)
        self.assertEqual(first, ask(7))
        self.assertNotEqual(first, ask(8))

    def test_streamed_choices_are_told_apart(self):
        whole = self.chat('Invent a name.', n=3, seed=7, temperature=1.5)
        texts = {0: '', 1: '', 2: ''}
        for chunk in self.chat('Invent a name.', n=3, seed=7, temperature=1.5, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ''
        self.assertEqual(list(texts.values()), [c.message.content for c in whole.choices])

    def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(self):
        whole = self.chat('Count: one, two, three', max_tokens=40).choices[0].message.content
        stop = whole[7:10]
        cut = self.chat('Count: one, two, three', max_tokens=40, stop=[stop]).choices[0]
        self.assertEqual(cut.message.content, whole[:whole.index(stop)])
        self.assertEqual(cut.finish_reason, 'stop')
        streamed = list(self.chat('Count: one, two, three', max_tokens=40, stop=stop, stream=True))
        self.assertEqual(''.join(c.choices[0].delta.content or '' for c in streamed), cut.message.content)

    def test_logprobs_are_of_the_tokens(self):
        choice = self.chat(logprobs=True, top_logprobs=4, max_tokens=6).choices[0]
        tokens = choice.logprobs.content
        self.assertEqual(len(tokens), 6)
        self.assertEqual(b''.join(bytes(t.bytes) for t in tokens).decode(), choice.message.content)
        for token in tokens:
            values = [top.logprob for top in token.top_logprobs]
            self.assertEqual(len(values), 4)
            self.assertEqual(values, sorted(values, reverse=True))
            # Greedy draws the likeliest.
            self.assertAlmostEqual(token.logprob, values[0], places=4)
            self.assertLessEqual(sum(map(math.exp, values)), 1.0001)
        streamed = self.chat(logprobs=True, top_logprobs=4, max_tokens=6, stream=True)
        again = [t for c in streamed if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        self.assertEqual([t.token for t in again], [t.token for t in tokens])

    def test_a_bias_forbids_and_forces(self):
        plain = self.chat(max_tokens=1, logprobs=True).choices[0]
        _, reply = self.server.json('/tokenize', {'content': plain.message.content})
        token = str(reply['tokens'][0])
        other = self.chat(max_tokens=1, logit_bias={token: -100}).choices[0].message.content
        self.assertNotEqual(other, plain.message.content)
        forced = self.chat(max_tokens=3, logit_bias={token: 100}).choices[0].message.content
        self.assertEqual(forced, plain.message.content * 3)

    def test_samplers_of_our_own(self):
        # Each leaves the likeliest token only.
        greedy = self.chat().choices[0].message.content
        for extra in ({'top_k': 1}, {'min_p': 1}, {'typical_p': 1, 'top_k': 1}):
            drawn = self.chat(temperature=2, extra_body=extra).choices[0].message.content
            self.assertEqual(drawn, greedy, extra)
        self.assertEqual(self.chat(temperature=2, top_p=0).choices[0].message.content, greedy)
        penalised = self.chat('Repeat: ha ha ha ha ha', frequency_penalty=2, presence_penalty=2,
                              extra_body={'repeat_penalty': 1.5, 'repeat_last_n': -1}, max_tokens=40)
        plain = self.chat('Repeat: ha ha ha ha ha', max_tokens=40)
        self.assertNotEqual(penalised.choices[0].message.content, plain.choices[0].message.content)

    def test_json_mode_gives_an_object(self):
        answer = self.chat('Give me a JSON object that describes a cat.', response_format={'type': 'json_object'},
                           max_tokens=300).choices[0]
        if answer.finish_reason == 'stop':
            self.assertIsInstance(json.loads(answer.message.content), dict)
        self.assertTrue(answer.message.content.lstrip().startswith('{'))

    def test_a_schema_is_kept(self):
        schema = {
            'type': 'object',
            'properties': {'name': {'type': 'string', 'maxLength': 12}, 'age': {'type': 'integer', 'minimum': 0, 'maximum': 99},
                           'kind': {'enum': ['cat', 'dog']}},
            'required': ['name', 'age', 'kind'], 'additionalProperties': False,
        }
        for seed in range(3):
            answer = self.chat('Describe a pet.', temperature=1, seed=seed, max_tokens=200, response_format={
                'type': 'json_schema', 'json_schema': {'name': 'pet', 'strict': True, 'schema': schema}}).choices[0]
            pet = json.loads(answer.message.content)
            self.assertEqual(answer.finish_reason, 'stop')
            self.assertEqual(set(pet), {'name', 'age', 'kind'})
            self.assertTrue(0 <= pet['age'] <= 99 and pet['kind'] in ('cat', 'dog') and len(pet['name']) <= 12, pet)

    def test_the_package_parses_schemas_itself(self):
        from pydantic import BaseModel

        class Point(BaseModel):
            x: int
            y: int
        answer = self.client.chat.completions.parse(
            model='smollm2', messages=[{'role': 'user', 'content': 'A point at 3, 4.'}], response_format=Point,
            max_tokens=100, temperature=0)
        self.assertIsInstance(answer.choices[0].message.parsed, Point)

    def test_regular_expressions_and_lark(self):
        regex = self.chat(extra_body={'response_format': {'type': 'regex', 'regex': '(yes|no), [0-9]{3}'}})
        self.assertRegex(regex.choices[0].message.content, '^(yes|no), [0-9]{3}$')
        lark = self.chat(extra_body={'response_format': {'type': 'lark', 'lark': 'start: "a" | "b" start'}})
        self.assertRegex(lark.choices[0].message.content, '^b*a?$')

    def test_an_impossible_schema_is_the_users_fault(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(response_format={'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'alien'}}})
        self.refused(caught.exception, 400)

    def test_parts_and_developers_are_read(self):
        parts = [{'role': 'developer', 'content': 'Be brief.'},
                 {'role': 'user', 'content': [{'type': 'text', 'text': 'Say '}, {'type': 'text', 'text': 'hi.'}]}]
        plain = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Say hi.'}]
        self.assertEqual(self.chat(messages=parts).choices[0].message.content,
                         self.chat(messages=plain).choices[0].message.content)

    def test_a_common_prefix_is_computed_once(self):
        text = 'Some words that come before. ' * 20
        first = self.chat(text + 'One.', max_tokens=2)
        second = self.chat(text + 'Two.', max_tokens=2)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 60)
        self.assertGreaterEqual(second.usage.prompt_tokens, second.usage.prompt_tokens_details.cached_tokens)
        self.assertEqual(first.usage.prompt_tokens, second.usage.prompt_tokens)
        self.assertGreater(self.server.metrics()['prefix_hit_tokens_total'], 60)
