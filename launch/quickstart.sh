#!/usr/bin/env bash
# From a bare machine with Python to a trained compressor that answers questions, without any
# download but pip's: about five minutes on two cores after the installation.
#
#   bash launch/quickstart.sh [workdir] [--config.option=value ...]
set -euo pipefail
EXTRAS=plot
source "$(dirname "$0")/venv.sh"
WORKDIR=runs/quickstart
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then WORKDIR=$1; shift; fi
CLARA=(python -m clara_jax.main --config=configs/quickstart.py --workdir="$WORKDIR")

"${CLARA[@]}" "$@"
"${CLARA[@]}" --mode=evaluate "$@"
python -m clara_jax.evaluation.report "$WORKDIR" --samples=3
