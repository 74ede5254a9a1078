"""Tests over a real model: FASTRUN_BUNDLE names a bundle of SmolLM2.   python3 -m unittest discover examples/python/tests"""

import gc
import json
import math
import os
import threading
import time
import unittest

import fastrun
from fastrun import Delta, Finished, Runner

BUNDLE = os.environ["FASTRUN_BUNDLE"]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


class Tests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.runner = Runner(BUNDLE, threads=2)

    @classmethod
    def tearDownClass(cls):
        cls.runner.close()

    def test_a_chat_is_streamed(self):
        answer = self.runner.generate(FRANCE, temperature=0, max_tokens=32)
        pieces = list(answer)
        self.assertGreater(len(pieces), 3)
        self.assertIn("Paris", "".join(pieces))
        self.assertEqual(answer.finish_reason, "stop")
        usage = answer.finished[0].usage
        self.assertEqual(usage.prompt_tokens, len(self.runner.encode(FRANCE)))
        self.assertGreater(usage.completion_tokens, 3)
        self.assertEqual(answer.text(), "", "nothing is left")

    def test_updates_have_tokens(self):
        answer = self.runner.generate("One, two, three,", temperature=0, max_tokens=4)
        updates = list(answer.updates())
        self.assertIsInstance(updates[-1], Finished)
        self.assertEqual(updates[-1].finish_reason, "length")
        tokens = [token for update in updates[:-1] for token in update.tokens]
        self.assertEqual(len(tokens), 4)
        text = "".join(update.text for update in updates if isinstance(update, Delta))
        self.assertEqual(b"".join(token.bytes for token in tokens).decode(), text)
        self.assertEqual(self.runner.detokenize([token.id for token in tokens]), text)

    def test_the_same_seed_gives_the_same_text(self):
        def text(seed):
            return self.runner.generate("Once upon a time", seed=seed, max_tokens=16).text()

        self.assertEqual(text(7), text(7))
        self.assertNotEqual(text(7), text(8))

    def test_stop_strings_end_an_answer(self):
        answer = self.runner.generate("One, two, three,", temperature=0, max_tokens=32, stop=[" six"])
        text = answer.text()
        self.assertTrue(text.rstrip().endswith("five,"), text)
        self.assertEqual(answer.finish_reason, "stop")

    def test_another_thread_cancels(self):
        answer = self.runner.generate("One, two,", ignore_eos=True)
        first = next(answer)
        timer = threading.Timer(0.05, answer.cancel)
        timer.start()
        rest = answer.text()
        timer.join()
        self.assertTrue(first)
        self.assertEqual(answer.finish_reason, "cancelled")
        self.assertLess(len(self.runner.tokenize(rest)), self.runner.model.context - 8)

    def test_leaving_a_with_or_dropping_it_cancels(self):
        with self.runner.generate("One, two,", ignore_eos=True) as answer:
            next(answer)
        self.assertEqual(list(answer), [])
        answer.cancel()
        dropped = self.runner.generate("One, two,", ignore_eos=True)
        next(dropped)
        del dropped
        gc.collect()
        for _ in range(200):
            if self.runner.stats()["running"] == 0:
                break
            time.sleep(0.05)
        self.assertEqual(self.runner.stats()["running"], 0)

    def test_the_time_is_limited(self):
        answer = self.runner.generate("One, two,", ignore_eos=True, timeout=0.2)
        answer.text()
        self.assertEqual(answer.finish_reason, "timeout")

    def test_threads_run_together(self):
        texts = {}

        def ask(number):
            answer = self.runner.generate("Once upon a time", seed=number % 2, max_tokens=12)
            texts[number] = answer.text()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(texts), 8)
        self.assertEqual(len(set(texts.values())), 2)

    def test_many_answers(self):
        answer = self.runner.generate("Once upon a time", n=3, seed=5, max_tokens=8)
        texts = ["", "", ""]
        for update in answer.updates():
            if isinstance(update, Delta):
                texts[update.choice] += update.text
        self.assertEqual(sorted(answer.finished), [0, 1, 2])
        alone = [self.runner.generate("Once upon a time", seed=5 + i, max_tokens=8).text() for i in range(3)]
        self.assertEqual(texts, alone)

    def test_logprobs(self):
        answer = self.runner.generate("The capital of France is", temperature=0, max_tokens=3, logprobs=4)
        tokens = [t for update in answer.updates() if isinstance(update, Delta) for t in update.tokens]
        self.assertEqual(len(tokens), 3)
        for token in tokens:
            self.assertEqual(len(token.top), 4)
            self.assertEqual(token.top[0].id, token.id)
            self.assertEqual(token.top[0].logprob, token.logprob)
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual([t.logprob for t in token.top], sorted((t.logprob for t in token.top), reverse=True))

    def test_a_bias_forbids(self):
        free = self.runner.generate("The capital of France is", temperature=0, max_tokens=1)
        (token,) = next(u.tokens for u in free.updates() if isinstance(u, Delta))
        biased = self.runner.generate("The capital of France is", temperature=0, max_tokens=1, logit_bias={token.id: -100})
        self.assertNotEqual(biased.text(), token.bytes.decode())

    def test_a_schema_is_kept(self):
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
            "required": ["city", "capital"],
            "additionalProperties": False,
        }
        answer = self.runner.generate(FRANCE, grammar={"json_schema": schema}, seed=3, max_tokens=128)
        value = json.loads(answer.text())
        self.assertEqual(sorted(value), ["capital", "city"])
        self.assertIsInstance(value["capital"], bool)

    def test_tokens_and_back(self):
        text = "Naïve café\0\n" + "long " * 400
        ids = self.runner.tokenize(text)
        self.assertGreater(len(ids), 256)
        kept = text.replace("\0", "")
        self.assertIn(self.runner.detokenize(ids), (text, kept))
        self.assertEqual(self.runner.encode(ids[:7]), ids[:7])
        self.assertEqual(self.runner.tokenize(""), [])

    def test_embeddings_are_directions(self):
        a, b, c = map(self.runner.embed, ["A cat sat on the mat.", "A dog lay on the rug.", "0x7f, EINVAL; goto fail"])

        def dot(x, y):
            return sum(p * q for p, q in zip(x, y))

        self.assertEqual(len(a), self.runner.model.embedding)
        self.assertTrue(math.isclose(dot(a, a), 1, rel_tol=1e-3))
        self.assertGreater(dot(a, b), dot(a, c))

    def test_errors_are_exceptions(self):
        with self.assertRaisesRegex(fastrun.UserError, "no-such-file"):
            Runner("no-such-file.fib")
        with self.assertRaisesRegex(fastrun.UserError, "unknown variant"):
            Runner(BUNDLE, device="abacus")
        with self.assertRaisesRegex(fastrun.UserError, "not in the vocabulary"):
            self.runner.generate([1 << 20])
        with self.assertRaisesRegex(fastrun.UserError, "integers"):
            self.runner.detokenize(["a"])
        with self.assertRaises(ValueError):
            self.runner.generate("a", temperature=-1)
        with self.assertRaisesRegex(fastrun.UserError, "no JSON"):
            self.runner.generate("a", temperature=float("nan"))
        closed = Runner(BUNDLE, threads=1)
        answer = closed.generate("One, two,", max_tokens=2)
        closed.close()
        closed.close()
        self.assertTrue(answer.text(), "a generation outlives its runner")
        with self.assertRaisesRegex(fastrun.FastrunError, "closed"):
            closed.generate("a")

    def test_the_model_is_known(self):
        model = self.runner.model
        self.assertEqual((model.architecture, model.vocab, model.chat), ("llama", 49152, True))
        self.assertRegex(fastrun.__version__, r"^\d+\.\d+\.\d+$")


if __name__ == "__main__":
    unittest.main()
