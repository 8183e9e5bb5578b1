#!/usr/bin/env bash
# Installs clara_jax with its test requirements and runs lint and tests.
#
#   bash launch/test.sh [pytest arguments]
#   EXTRAS=test,parity,tpu bash launch/test.sh    also against PyTorch and the TPU compiler
set -euo pipefail
EXTRAS=${EXTRAS:-test}
source "$(dirname "$0")/venv.sh"
ruff check .
ruff format --check --quiet .
exec python -m pytest -n "${WORKERS:-2}" "$@"
