#!/usr/bin/env bash
# Print the first interpreter of the wanted versions that really runs (a version manager's shim may be a name only).
#   tools/find_python.sh 3.11 3.12
for version in "$@"; do
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python"$version" python3; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if [ "$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
      echo "$path"
      exit 0
    fi
  done
done
