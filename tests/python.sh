#!/usr/bin/env bash
# The Python package, installed as a user would, over SmolLM2.
#   tests/python.sh setup      makes its environment (fetches setuptools)
#   tests/python.sh            installs the package there and runs its tests; needs no network
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=$target/python
if [[ ${1:-} == setup ]]; then
  # Python 3.11's own setuptools is too old to make wheels by itself.
  "$venv/bin/python" -c 'import setuptools; assert int(setuptools.__version__.split(".")[0]) >= 71' 2>/dev/null && exit
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check 'setuptools>=71'
  exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pip writes into the folder that it builds.
cp -r examples/python "$work/package"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
  --force-reinstall "$work/package"
model=$(examples/fetch-model.sh)
"$target/release/fastc" compile "$model" -o "$work/smollm2.fib" >/dev/null
# The library is found by the repository, by its name, or not at all.
for library in '' "$target/release/libfastrun.so"; do
  FASTRUN_LIBRARY=$library "$venv/bin/python" -c 'import fastrun; print("fastrun", fastrun.__version__)'
done
if CARGO_TARGET_DIR=$work "$venv/bin/python" -c 'import fastrun' 2>"$work/error"; then
  echo "python.sh: a library was found where there is none" >&2
  exit 1
fi
grep -q 'cargo build --release -p fastrun-ffi' "$work/error" # says what to do
FASTRUN_BUNDLE=$work/smollm2.fib "$venv/bin/python" -m unittest discover --start-directory examples/python/tests
