#!/usr/bin/env bash
# What the other scripts need on a bare Debian 12 that has Rust: a C compiler (the zstd library is C), Python's pip (the
# models come in packages) and venv (the Python package is tested in one), and NVRTC, the compiler for NVIDIA targets, which
# needs no GPU: it goes to fastinfer/nvrtc in the user's cache folder, where fastc looks for it. Installs only what is missing.
#   examples/setup.sh          that
#   examples/setup.sh --amd    and clang and lld 19, which AMD targets are compiled with, and LLVM's tools, which tests compare with
set -euo pipefail

packages=()
case ${1:-} in
  '') ;;
  --amd)
    command -v clang-19 >/dev/null || packages+=(clang-19)
    command -v ld.lld-19 >/dev/null || packages+=(lld-19)
    command -v llvm-mc-19 >/dev/null || packages+=(llvm-19)
    ;;
  *) echo "usage: examples/setup.sh [--amd]" >&2; exit 2 ;;
esac
command -v cc >/dev/null || packages+=(gcc libc6-dev)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
if ((${#packages[@]})); then
  if [[ $(id -u) -eq 0 ]]; then
    as_root=()
  elif command -v sudo >/dev/null; then
    as_root=(sudo)
  else
    echo "setup.sh: please install ${packages[*]} (this needs root), then run again" >&2
    exit 1
  fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "${packages[@]}"
fi
if ! command -v cargo >/dev/null; then
  echo "setup.sh: Rust is missing; install Rust 1.95 or later with rustup" >&2
  exit 1
fi
nvrtc=${XDG_CACHE_HOME:-$HOME/.cache}/fastinfer/nvrtc
if [[ -z ${FASTC_NVRTC:-} && ! -f $nvrtc/nvidia/cu13/lib/libnvrtc.so.13 ]]; then
  echo "fetching NVRTC into $nvrtc" >&2
  mkdir -p "${nvrtc%/*}"
  work=$(mktemp -d "${nvrtc%/*}/.nvrtc-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip install --quiet --no-deps --target "$work" nvidia-cuda-nvrtc==13.0.88 >&2
  rm -rf "$nvrtc"
  mv "$work" "$nvrtc"
fi
