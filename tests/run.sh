#!/usr/bin/env bash
# Sets up what the tests need and runs every test; the last line counts them: `N passed, N failed`.
#   tests/run.sh          what CI runs
#   tests/run.sh --full   and the long ones
# GPU tests are not part of it.
set -uo pipefail
cd "$(dirname "$0")/.."

full=
for argument in "$@"; do
  case $argument in
    --full) full=1 ;;
    *) echo "usage: tests/run.sh [--full]" >&2; exit 2 ;;
  esac
done

# A clean machine builds everything once: keeping state for the next time would cost more than it saves.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

examples/setup.sh --amd || exit 1
model=$(examples/fetch-model.sh) || exit 1
export FASTINFER_MODELS=${model%/*}
examples/fetch-gemma.sh >&2 || exit 1
tests/python.sh setup || exit 1
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0
failed=0
failures=()

# check NAME COMMAND...: one check, passed if the command succeeds.
check() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    failures+=("$name")
  fi
  echo "== $name: $((SECONDS - start)) s"
}

# suite NAME COMMAND...: a run of cargo test, each of its tests counted.
suite() {
  local name=$1 log=$logs/suite start=$SECONDS ok bad
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$log"
  local status=${PIPESTATUS[0]}
  ok=$(sed -nE 's/^test result: .* ([0-9]+) passed;.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
  bad=$(sed -nE 's/^test result: .* ([0-9]+) failed;.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
  if ((status != 0 && bad == 0)) || ((ok + bad == 0)); then
    bad=$((bad + 1)) # it did not build, crashed, or ran nothing
  fi
  passed=$((passed + ok))
  failed=$((failed + bad))
  ((bad)) && failures+=("$name")
  echo "== $name: $((SECONDS - start)) s"
  return 0
}

check "format" cargo fmt --all --check
check "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
check "release build" cargo build --release --locked -p fastc -p fastrun -p fastrun-ffi -p fake-cuda --bins --lib --examples
check "the runner links no compiler" tests/dependencies.sh
suite "unit, golden, parity, property and doc tests" cargo test --release --workspace --locked --exclude e2e
suite "end to end" cargo test --release --locked -p e2e
check "Python package" tests/python.sh
suite "server" tests/server/run.sh
if [[ -n $full ]]; then
  check "ids of llama.cpp's vocabularies" tests/vocab_check.sh
  suite "all kernels for all NVIDIA chips" cargo test --release --locked -p fastc --test cuda -- --ignored
  suite "cluster" tests/cluster/run.sh
  suite "long tests" cargo test --release --locked -p e2e --features full --test long
fi

for name in "${failures[@]+"${failures[@]}"}"; do
  echo "failed: $name"
done
echo "$passed passed, $failed failed"
((failed == 0))
