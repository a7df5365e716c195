#!/usr/bin/env bash
# Add what `convert gguf` needs, the extra [gguf], to a virtual environment; llama.cpp is compiled from its source package.
#   tools/install_gguf.sh VENV
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")/.." && pwd)
echo "install: llama.cpp into $venv, some minutes the first time"
# No -march=native, so that pip's cached build serves every machine of this architecture.
CMAKE_ARGS="-DCMAKE_PROJECT_INCLUDE=$here/tools/llama_cpp.cmake -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF" \
SKBUILD_BUILD_TARGETS=llama \
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python \
  -c "$here/constraints.txt" "gguf>=0.19" "llama-cpp-python>=0.3.36"
"$venv/bin/python" -c "import gguf, llama_cpp; print('install: llama-cpp-python', llama_cpp.__version__)"
touch "$venv/.installed-gguf"
