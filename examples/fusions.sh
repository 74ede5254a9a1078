#!/usr/bin/env bash
# What each fusion is worth on this machine: the model compiled without it against the model compiled with all, run in turn.
#   examples/fusions.sh MODEL.gguf [ROUNDS [TARGET]]      default: 5 rounds, cpu; prints medians and ratios as a Markdown table
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:?usage: examples/fusions.sh MODEL.gguf [ROUNDS [TARGET]]}
rounds=${2:-5}
target=${3:-cpu}
passes=(fuse-qkv fuse-gate-up fuse-swiglu fuse-rope-kv fuse-add-norm fuse-quantise)
[[ $target == sm_* ]] && passes+=(fuse-norm-matmul)

cargo build --release --quiet -p fastc -p fastrun
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() { target/release/fastc compile "$model" --target "$target" -o "$work/$1.fib" "${@:2}" >/dev/null; }
compile all
everything=()
for pass in "${passes[@]}"; do
  compile "$pass" --disable-pass "$pass"
  everything+=(--disable-pass "$pass")
done
compile none "${everything[@]}"

for ((round = 0; round < rounds; round++)); do
  for name in all "${passes[@]}" none; do
    target/release/fastrun bench "$work/$name.fib" --prompt 512 --gen 64 --batch 1,8 --json >>"$work/$name.json"
  done
done
python3 - "$work" "${passes[@]}" <<'P'
import json, statistics, sys

work, passes = sys.argv[1], sys.argv[2:]

def medians(name):
    runs = [json.loads(line) for line in open(f'{work}/{name}.json')]
    return {key: statistics.median(run[key] for run in runs) for key in ('pp512', 'tg64_b1', 'tg64_b8')}

whole = medians('all')
print('| without | prefill 512 | decode, batch 1 | decode, batch 8 |')
print('|---------|------------:|----------------:|----------------:|')
print('| (with all) | ' + ' | '.join(f'{v:.0f} tok/s' for v in whole.values()) + ' |')
for name in [*passes, 'none']:
    part = medians(name)
    cells = [f'{part[key]:.0f} ({part[key] / whole[key]:.2f})' for key in whole]
    print(f"| {'any of them' if name == 'none' else name} | " + ' | '.join(cells) + ' |')
P
