#!/usr/bin/env bash
# Make a virtual environment with the package, its tests' tools and pinned versions.
#   tools/install.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
here=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "install: Python 3.11 or newer is needed (got: ${python:-none}); try: make PYTHON=/path/to/python3.11" >&2
  exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "install: $venv (Python $version), a few minutes the first time"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "setuptools>=68" wheel
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
  -c "$here/constraints.txt" -e "$here[dev]"
# kenlm has no wheels: where there is no compiler, the one test that needs it is skipped and says so.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
  -c "$here/constraints.txt" kenlm 2>/dev/null || echo "install: kenlm could not be compiled; nothing else needs it"
touch "$venv/.installed"
