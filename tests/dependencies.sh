#!/usr/bin/env bash
# The runner links neither the compiler nor anything of it: no Cranelift, NVRTC, clang or GGUF parser; nor the simulator. And the dependencies
# among our crates are those of ARCHITECTURE.md.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
tree=$(cargo tree --locked -p fastrun --edges normal,build --prefix none --format '{p} {f}')
if grep -inE '^(fastc|cranelift|nvrtc|clang|llvm|gguf|gfx11)|nvrtc' <<<"$tree"; then
  echo "dependencies.sh: fastrun depends on a part of the compiler (above)" >&2
  status=1
fi
# The library alone has no server, and no async runtime.
if cargo tree --locked -p fastrun-ffi --edges normal,build --prefix none | grep -iE '^(axum|tokio|hyper)'; then
  echo "dependencies.sh: the library depends on a part of the server (above)" >&2
  status=1
fi
# edges CRATE EXPECTED: our own crates that a crate depends on.
edges() {
  local found
  found=$(cargo tree --locked -p "$1" --edges normal,build --depth 1 --prefix none --format '{p}' |
    tail -n +2 | sed -nE 's/^(bundle-format|kernels|fastc|fastrun) .*/\1/p' | sort | tr '\n' ' ')
  if [[ $found != "$2" ]]; then
    echo "dependencies.sh: $1 depends on '$found', expected '$2'" >&2
    status=1
  fi
}
edges bundle-format ''
edges kernels 'bundle-format '
edges fastc 'bundle-format kernels '
edges fastrun 'bundle-format kernels '
edges fastrun-ffi 'fastrun '
exit $status
