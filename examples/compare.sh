#!/usr/bin/env bash
# A model's speed here against llama.cpp's, in turn on this machine, as a Markdown table of medians and their ratio.
#   examples/compare.sh BUNDLE.fib MODEL.gguf [PYTHON [ROUNDS]]
# BUNDLE is MODEL compiled; PYTHON one that has llama-cpp-python (default: python3), built from source for this processor
# (pip install --no-binary llama-cpp-python llama-cpp-python). Variables: THREADS (default: one for each core),
# BATCHES (default: 1,8,32).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage="usage: examples/compare.sh BUNDLE.fib MODEL.gguf [PYTHON [ROUNDS]]"
bundle=${1:?$usage}
model=${2:?$usage}
python=${3:-python3}
rounds=${4:-5}
same=(--prompt 512 --gen 64 --batch "${BATCHES:-1,8,32}" --threads "${THREADS:-$(nproc)}")

for file in "$bundle" "$model"; do
  [[ -f $file ]] || { echo "compare.sh: $file is no file" >&2; exit 1; }
done
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
  echo "compare.sh: $python has no llama-cpp-python; name a Python that has, as the third argument" >&2
  exit 1
fi
cargo build --release --quiet --manifest-path "$here/../Cargo.toml" -p fastrun
fastrun=${CARGO_TARGET_DIR:-$here/../target}/release/fastrun

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ((round = 1; round <= rounds; round++)); do
  echo "round $round of $rounds" >&2
  "$fastrun" bench "$bundle" "${same[@]}" --json >>"$work/ours"
  "$python" "$here/llama_cpp_bench.py" "$model" "${same[@]}" >>"$work/theirs"
done
python3 - "$work" <<'P'
import json, statistics, sys

def runs(name):
    return [json.loads(line) for line in open(f"{sys.argv[1]}/{name}")]

ours, theirs = runs("ours"), runs("theirs")
print("| | FastInference, tok/s | llama.cpp, tok/s | ratio of medians | ratio in each round |")
print("|---|---:|---:|---:|---|")
for key in (key for key in theirs[0] if key.startswith(("pp", "tg"))):
    pairs = [(a[key], b[key]) for a, b in zip(ours, theirs)]
    a, b = (statistics.median(side) for side in zip(*pairs))
    if key.startswith("pp"):
        what = f"prefill of {key[2:]}"
    else:
        what = "decode, batch {1}".format(*key.split("_b"))
    rounds = " ".join(f"{a / b:.2f}" for a, b in pairs)
    print(f"| {what} | {a:.0f} | {b:.0f} | {a / b:.2f} | {rounds} |")
P
