#!/usr/bin/env bash
# examples/cluster: the Ray Serve application on one node with two runners, and the manifests against Kubernetes' schemas. The
# last line counts the tests as cargo's does.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=target/cluster-tests
requirements=tests/cluster/requirements.txt
if ! cmp -s "$requirements" "$folder/requirements.txt"; then
  rm -rf "$folder/venv"
  mkdir -p "$folder"
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet -r "$requirements"
  cp "$requirements" "$folder/requirements.txt"
fi
target/release/fastc compile "$(examples/fetch-model.sh)" -o "$folder/model.fib" >/dev/null
export FASTRUN_BINARY=$PWD/target/release/fastrun FASTRUN_BUNDLE=$PWD/$folder/model.fib
export REPLICAS=2 THREADS=1 ONGOING=4
export PYTHONPATH=$PWD/examples/cluster RAY_USAGE_STATS_ENABLED=0 NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
exec "$folder/venv/bin/python" -B tests/cluster/test_cluster.py
