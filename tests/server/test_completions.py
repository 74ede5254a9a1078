"""Plain completions, embeddings, tokens, models."""

import base64
import math
import struct
import subprocess

import openai

from harness import ServerTest


class Completions(ServerTest):
    def complete(self, prompt, **options):
        options = {'model': 'smollm2', 'max_tokens': 8, 'temperature': 0, **options}
        return self.client.completions.create(prompt=prompt, **options)

    def tokens(self, text):
        status, reply = self.server.json('/tokenize', {'content': text})
        self.assertEqual(status, 200)
        return reply['tokens']

    def test_a_text_goes_on(self):
        answer = self.complete('The capital of France is')
        self.assertTrue(answer.choices[0].text.startswith(' Paris'), answer.choices[0].text)
        self.assertEqual(answer.object, 'text_completion')
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (5, 8))

    def test_many_prompts_get_answers_in_their_order(self):
        prompts = ['The capital of France is', 'The capital of Italy is']
        alone = [self.complete(p).choices[0].text for p in prompts]
        together = self.complete(prompts, n=2, temperature=0)
        self.assertEqual([c.text for c in together.choices], [alone[0]] * 2 + [alone[1]] * 2)
        self.assertEqual([c.index for c in together.choices], [0, 1, 2, 3])
        self.assertEqual(together.usage.completion_tokens, 32)

    def test_tokens_are_a_prompt(self):
        text = 'The capital of France is'
        ids = self.tokens(text)
        self.assertEqual(self.complete(ids).choices[0].text, self.complete(text).choices[0].text)
        self.assertEqual(len(self.complete([ids, ids]).choices), 2)

    def test_echo_repeats_the_prompt(self):
        text = 'The capital of France is'
        plain = self.complete(text).choices[0].text
        self.assertEqual(self.complete(text, echo=True).choices[0].text, text + plain)
        streamed = self.complete(text, echo=True, stream=True)
        self.assertEqual(''.join(c.choices[0].text for c in streamed), text + plain)

    def test_logprobs_have_offsets(self):
        choice = self.complete('The capital of France is', logprobs=3).choices[0]
        logprobs = choice.logprobs
        self.assertEqual(''.join(logprobs.tokens), choice.text)
        self.assertEqual(len(logprobs.token_logprobs), 8)
        self.assertTrue(all(len(top) == 3 for top in logprobs.top_logprobs))
        ends = [0]
        for token in logprobs.tokens[:-1]:
            ends.append(ends[-1] + len(token))
        self.assertEqual(logprobs.text_offset, ends)

    def test_echo_with_logprobs_scores_the_prompt(self):
        """As evaluation harnesses ask for the likelihood of a text."""
        text = 'The capital of France is Paris. The capital of Italy is Rome.'
        ids = self.tokens(text)
        scored = self.complete(ids, echo=True, logprobs=5, max_tokens=0)
        choice = scored.choices[0]
        logprobs = choice.logprobs
        self.assertEqual((choice.text, choice.finish_reason), (text, 'length'))
        self.assertEqual((scored.usage.prompt_tokens, scored.usage.completion_tokens), (len(ids), 0))
        self.assertEqual(''.join(logprobs.tokens), text)
        self.assertEqual((logprobs.token_logprobs[0], logprobs.top_logprobs[0]), (None, None))
        # What the model says of a token that it drew itself, it says of the same one in a prompt.
        for at in (5, len(ids) - 2):
            drawn = self.complete(ids[:at], logprobs=5, max_tokens=1).choices[0].logprobs
            self.assertEqual(drawn.top_logprobs[0], logprobs.top_logprobs[at])
        # The same with a token behind it, in a batch, streamed, and with the text for a prompt.
        both = self.complete([ids, ids[:7]], echo=True, logprobs=1, max_tokens=1)
        for found, own in zip(both.choices, (ids, ids[:7])):
            self.assertEqual(found.logprobs.token_logprobs[:-1], logprobs.token_logprobs[:len(own)])
            self.assertEqual(len(found.logprobs.tokens), len(own) + 1)
            best = [max(top.values()) for top in found.logprobs.top_logprobs[1:]]
            self.assertTrue(all(a <= b for a, b in zip(found.logprobs.token_logprobs[1:], best)))
        parts = [c.choices[0] for c in self.complete(text, echo=True, logprobs=5, max_tokens=2, stream=True)]
        self.assertEqual(parts[0].text, text)
        self.assertEqual(parts[0].logprobs.to_dict(), logprobs.to_dict())
        self.assertEqual(parts[1].logprobs.text_offset, [len(text)])

    def test_a_scored_prompt_is_that_of_many_steps_and_of_a_cache(self):
        ids = self.tokens('word ' * 700)
        first = self.complete(ids, echo=True, logprobs=0, max_tokens=1)
        again = self.complete(ids, echo=True, logprobs=0, max_tokens=1, n=2)
        self.assertEqual(len(first.choices[0].logprobs.tokens), len(ids) + 1)
        self.assertEqual([c.logprobs for c in again.choices], [first.choices[0].logprobs] * 2)
        self.assertEqual(again.usage.prompt_tokens_details.cached_tokens, 0)

    def test_the_best_of_some_is_the_likeliest(self):
        options = {'temperature': 1.2, 'seed': 5, 'max_tokens': 12}
        mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens)
        ranked = sorted(self.complete('Once', n=6, logprobs=0, **options).choices, key=mean, reverse=True)
        best = self.complete('Once', best_of=6, n=2, **options)
        self.assertEqual([c.text for c in best.choices], [c.text for c in ranked[:2]])
        self.assertEqual([c.index for c in best.choices], [0, 1])
        self.assertIsNone(best.choices[0].logprobs)
        self.assertEqual(best.usage.completion_tokens, 72)
        for wrong in ({'best_of': 2, 'n': 3}, {'best_of': 2, 'stream': True}, {'best_of': 1000}):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.complete('x', **wrong)
            self.refused(caught.exception, 400, 'best_of', None)

    def test_what_is_not_done_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete('x', suffix='!')
        self.refused(caught.exception, 400, 'suffix', 'unsupported')
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete('x', max_tokens=0)
        self.refused(caught.exception, 400, 'max_tokens', None)

    def test_tokens_and_texts(self):
        text = 'Grüße, 世界! <|im_start|>'
        ids = self.tokens(text)
        self.assertEqual(self.server.json('/detokenize', {'tokens': ids}), (200, {'content': text}))
        _, apart = self.server.json('/tokenize', {'content': '<|im_start|>', 'parse_special': False})
        self.assertGreater(apart['count'], 1)
        _, chat = self.server.json('/tokenize', {'messages': [{'role': 'user', 'content': 'hi'}]})
        self.assertEqual(chat['tokens'][0], self.tokens('<|im_start|>')[0])
        status, reply = self.server.json('/detokenize', {'tokens': [10 ** 7]})
        self.assertEqual((status, reply['error']['param']), (400, 'tokens'))

    def test_the_model_is_listed(self):
        models = self.client.models.list().data
        self.assertEqual([m.id for m in models], ['smollm2'])
        self.assertEqual(self.client.models.retrieve('smollm2').owned_by, 'fastrun')
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve('gpt-4')
        self.refused(caught.exception, 404, 'model', 'model_not_found')

    def test_curl_is_a_client(self):
        body = '{"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}'
        curl = subprocess.run(['curl', '-sS', '--noproxy', '*', f'{self.server.url}/v1/completions', '-d', body],
                              capture_output=True, text=True, check=True)
        self.assertIn('"text":" Paris', curl.stdout)


class Embeddings(ServerTest):
    def embed(self, texts, **options):
        return [d.embedding for d in self.client.embeddings.create(model='smollm2', input=texts, **options).data]

    def test_they_have_length_one_whatever_the_encoding(self):
        # Without a format the package asks for base64, and decodes it.
        (packed,) = self.embed('A cat sits on the mat.')
        (plain,) = self.embed('A cat sits on the mat.', encoding_format='float')
        self.assertEqual(len(plain), 576)
        self.assertAlmostEqual(math.hypot(*plain), 1, places=4)
        self.assertTrue(all(abs(a - b) < 1e-6 for a, b in zip(plain, packed)))
        _, raw = self.server.json('/v1/embeddings', {'input': 'A cat sits on the mat.', 'encoding_format': 'base64'})
        values = struct.unpack('<576f', base64.b64decode(raw['data'][0]['embedding']))
        self.assertTrue(all(abs(a - b) < 1e-6 for a, b in zip(plain, values)))

    def test_like_is_near_like(self):
        cat, kitten, tax = self.embed(['A cat sleeps on the sofa.', 'A kitten naps on the couch.',
                                       'Quarterly tax returns are due in April.'])
        product = lambda a, b: sum(x * y for x, y in zip(a, b))
        self.assertGreater(product(cat, kitten), product(cat, tax))

    def test_lists_keep_their_order(self):
        texts = [f'Number {i}' for i in range(40)]
        together = self.embed(texts)
        self.assertEqual(len(together), 40)
        for i in (0, 17, 39):
            (alone,) = self.embed(texts[i])
            self.assertTrue(all(abs(a - b) < 1e-5 for a, b in zip(alone, together[i])), i)

    def test_wrong_inputs_are_named(self):
        for options, param in (({'input': ''}, 'input'), ({'input': []}, 'input'), ({'input': 'x', 'dimensions': 5}, 'dimensions'),
                               ({'input': 'x', 'encoding_format': 'hex'}, 'encoding_format'), ({}, 'input')):
            status, reply = self.server.json('/v1/embeddings', options)
            self.assertEqual((status, reply['error']['param']), (400, param), options)
