#!/usr/bin/env bash
# The server's tests: the unmodified openai package and curl as clients, and the page in a headless Chromium. Sets up what
# they need; the last line counts them as cargo's does.
#   tests/server/run.sh [NAME...]      only tests whose names contain one of these
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=()
command -v curl >/dev/null || packages+=(curl)
command -v chromium >/dev/null || packages+=(chromium)
command -v chromedriver >/dev/null || packages+=(chromium-driver)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
if ((${#packages[@]})); then
  as_root=()
  [[ $(id -u) -eq 0 ]] || as_root=(sudo)
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

folder=target/server-tests
requirements=tests/server/requirements.txt
if ! cmp -s "$requirements" "$folder/requirements.txt"; then
  rm -rf "$folder/venv"
  mkdir -p "$folder"
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet -r "$requirements"
  cp "$requirements" "$folder/requirements.txt"
fi
model=$(examples/fetch-model.sh)
exec "$folder/venv/bin/python" -B tests/server/run.py "$model" "$folder" "$@"
