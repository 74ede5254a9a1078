#!/usr/bin/env bash
# From a fresh clone to an answer: builds, fetches a small model, compiles it for this kind of processor, asks it something.
#   examples/quickstart.sh [QUESTION]
set -euo pipefail
cd "$(dirname "$0")/.."

question=${1:-Name three primary colours and one thing that has each.}

examples/setup.sh
cargo build --release -p fastc -p fastrun
model=$(examples/fetch-model.sh)
mkdir -p target/quickstart
bundle=target/quickstart/smollm2.fib
echo "+ fastc compile $model --target cpu -o $bundle" >&2
target/release/fastc compile "$model" --target cpu -o "$bundle"
echo "+ fastrun $bundle -p '$question' -n 128" >&2
target/release/fastrun "$bundle" -p "$question" -n 128
