#!/usr/bin/env bash
# Put Transformer Engine's Python code beside a virtual environment, into VENV/te, for `make test-te`: in the environment
# itself it would break megatron-core, since what is compiled is missing.
#   tools/install_te.sh VENV
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")/.." && pwd)
packages=(transformer-engine einops onnx onnx-ir onnxscript ml_dtypes)
# PyTorch for CPUs does not bring it; Transformer Engine's kernels in Triton are interpreted.
"$venv/bin/python" -c 'import triton' 2>/dev/null || packages+=(triton)
rm -rf "$venv/te" "$venv/.installed-te"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --target "$venv/te" -c "$here/constraints.txt" "${packages[@]}"
echo "install: transformer-engine into $venv/te, for tests only"
touch "$venv/.installed-te"
