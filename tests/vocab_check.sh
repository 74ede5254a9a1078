#!/usr/bin/env bash
# Tokenises the texts that come with llama.cpp's vocabulary-only models, and compares with the ids that come with them.
# The models are fetched with pip, in llama-cpp-python's source package; nothing of it is built or kept.
#   tests/vocab_check.sh [MODELS]      MODELS: a folder with llama.cpp's models/*.gguf, .inp and .out, instead of fetching
set -euo pipefail
cd "$(dirname "$0")/.."

models=${1:-}
if [[ -z $models ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # pip asks the package's build system for metadata, which wants these at hand.
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet scikit-build-core cmake ninja
  PATH=$work/venv/bin:$PATH pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest "$work" llama-cpp-python==0.3.36
  tar -xzf "$work"/llama_cpp_python-0.3.36.tar.gz -C "$work" --wildcards '*/vendor/llama.cpp/models/ggml-vocab-*'
  models=$work/llama_cpp_python-0.3.36/vendor/llama.cpp/models
fi

cargo build --quiet --release --locked -p e2e --example tokenize
tokenize=${CARGO_TARGET_DIR:-target}/release/examples/tokenize

python3 - "$models" "$tokenize" <<'P'
import json, pathlib, subprocess, sys

# WordPiece and unigram vocabularies: the compiler must refuse them by name.
UNSUPPORTED = {'bert-bge': 'bert', 'nomic-bert-moe': 't5'}

models, tokenize = pathlib.Path(sys.argv[1]), sys.argv[2]
compared, failed = 0, 0
for model in sorted(models.glob('ggml-vocab-*.gguf')):
    name = model.stem.removeprefix('ggml-vocab-')
    inputs = pathlib.Path(f'{model}.inp')
    if name not in UNSUPPORTED and not inputs.exists():
        continue
    texts = inputs.read_bytes().decode().split('\n__ggml_vocab_test__\n') if inputs.exists() else ['x']
    lines = ''.join(json.dumps(text) + '\n' for text in texts)
    run = subprocess.run([tokenize, model], input=lines, capture_output=True, text=True)
    if name in UNSUPPORTED:
        wrong = int(run.returncode == 0 or UNSUPPORTED[name] not in run.stderr)
        print(f'{name}: {"not refused" if wrong else "refused"}')
    elif run.returncode:
        wrong = 1
        print(f'{name}: {run.stderr.strip()}')
    else:
        expected = pathlib.Path(f'{model}.out').read_text().splitlines()
        plain = run.stdout.splitlines()[1::2]
        different = [i for i, (a, b) in enumerate(zip(plain, expected, strict=True)) if a.split() != b.split()]
        wrong = len(different)
        print(f'{name}: {len(texts)} texts, {wrong} different')
        for i in different[:3]:
            print(f'  {texts[i]!r}\n    expected {expected[i]}\n    found    {plain[i]}')
    compared += 1
    failed += bool(wrong)
print(f'{compared} vocabularies, {failed} wrong')
sys.exit(failed > 0 or compared == 0)
P
