# Sourced by the other scripts: makes a virtual environment beside the repository's files and
# installs clara_jax into it, once and again whenever pyproject.toml changes.
#   VENV    where it is (default .venv)
#   PYTHON  interpreter to make it with, 3.11 to 3.13 (default python3)
#   EXTRAS  of pyproject.toml, with commas between (set by each script)
#   RESOLUTION  lowest-direct: the lowest versions that pyproject.toml allows (default: the newest)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
command -v "$PYTHON" > /dev/null || { echo "$PYTHON: no such program; set PYTHON" >&2; exit 2; }
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  echo "$PYTHON is $("$PYTHON" --version 2>&1); clara_jax needs Python 3.11 to 3.13: set PYTHON" >&2
  exit 2
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
STAMP=$VENV/.clara_jax-$EXTRAS${RESOLUTION:-}
if [ ! -e "$STAMP" ] || [ pyproject.toml -nt "$STAMP" ]; then
  echo "installing clara_jax[$EXTRAS] into $VENV"
  PIP=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
  if [ -n "${RESOLUTION:-}" ]; then  # pip knows only the newest
    "${PIP[@]}" uv
    PIP=("$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --resolution "$RESOLUTION")
  fi
  "${PIP[@]}" -e ".[$EXTRAS]"
  touch "$STAMP"
fi
PATH="$(cd "$VENV" && pwd)/bin:$PATH"  # VENV may be relative or absolute
