#!/usr/bin/env python3
"""Tokens a second of llama.cpp, measured as `fastrun bench` measures ours, through the package llama-cpp-python.

  llama_cpp_bench.py MODEL.gguf [--prompt 512] [--gen 64] [--batch 1,8,32] [--threads N] [--repeat 3]

Prints one JSON object with the keys that `fastrun bench --json` has: pp512, tg64_b1, tg64_b8, …
"""

import argparse
import json
import os
import statistics
import sys
import time

import llama_cpp

# As in fastrun: tokens of the prompt and decoding steps before the clock starts.
WARM_UP_PROMPT = 32
WARM_UP_STEPS = 2


def main():
    args = arguments()
    batches = [int(number) for number in args.batch.split(",")]
    runner = Runner(args.model, args.threads, args.prompt, max(batches), args.gen + WARM_UP_STEPS)

    prompt = [(3 + i % 1000) % runner.vocab for i in range(args.prompt)]
    runner.prefill(prompt[:WARM_UP_PROMPT])
    figures = {f"pp{args.prompt}": args.prompt / median(args.repeat, lambda: runner.prefill(prompt))}
    for batch in batches:
        seconds = median(args.repeat, lambda: runner.decode(batch, args.gen))
        figures[f"tg{args.gen}_b{batch}"] = batch * args.gen / seconds
    print(json.dumps({"model": args.model, "threads": args.threads, **figures}))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--gen", type=int, default=64, help="tokens to decode")
    parser.add_argument("--batch", default="1,8,32", help="sequences to decode at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of each figure, of which the median counts")
    return parser.parse_args()


def median(repeat, measure):
    return statistics.median(measure() for _ in range(repeat))


class Runner:
    """A model and a context of `sequences` sequences."""

    def __init__(self, path, threads, prompt, sequences, positions):
        # Kept, since C calls it: the library's messages would mix with the result.
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp can't load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(prompt, sequences * positions)
        params.n_batch = params.n_ubatch = max(512, sequences)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp can't make a context")
        self.chunk = params.n_batch
        self.batch = llama_cpp.llama_batch_init(self.chunk, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def prefill(self, prompt):
        """Seconds that a prompt takes as a new sequence, with the logits of each chunk's last token."""
        start = time.perf_counter()
        for first in range(0, len(prompt), self.chunk):
            tokens = prompt[first : first + self.chunk]
            last = len(tokens) - 1
            self.step([(token, first + i, 0, i == last) for i, token in enumerate(tokens)])
        seconds = time.perf_counter() - start
        self.clear()
        return seconds

    def decode(self, sequences, steps):
        """Seconds that new sequences take to decode, without the warm-up; each step has all rows of logits."""
        tokens = [(5 + s) % self.vocab for s in range(sequences)]
        for position in range(WARM_UP_STEPS + steps):
            if position == WARM_UP_STEPS:
                start = time.perf_counter()
            self.step([(token, position, s, True) for s, token in enumerate(tokens)])
        seconds = time.perf_counter() - start
        self.clear()
        return seconds

    def step(self, rows):
        """One step of rows (token, position, sequence, whether logits are wanted)."""
        batch = self.batch
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        batch.n_tokens = len(rows)
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            sys.exit(f"llama_decode failed with {code}")
        llama_cpp.llama_synchronize(self.context)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)


if __name__ == "__main__":
    main()
