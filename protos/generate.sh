#!/usr/bin/env bash
# Regenerates distill/v1 from protos/distill/v1. The generator lives in a virtual environment of its
# own: its protobuf is older than the runtime's on purpose, because generated code runs under the
# same or a newer runtime and never under an older one.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv-protos/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv-protos
  .venv-protos/bin/pip install --quiet 'grpcio-tools==1.80.*' 'mypy-protobuf==3.7.*'
fi
PATH="$PWD/.venv-protos/bin:$PATH" .venv-protos/bin/python -m grpc_tools.protoc \
  --proto_path=protos --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
  "$@" protos/distill/v1/*.proto
touch distill/v1/__init__.py
