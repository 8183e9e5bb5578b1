#!/usr/bin/env bash
# From a bare machine with Python to documents compressed, chosen and answered from, without any
# download but pip's: all stages in about seven minutes on two cores after the installation.
#
#   bash launch/quickstart.sh [--dry-run] [folder] [--config.option=value ...]
#
#   STAGES   which of them (default "scp instruct contrastive e2e"), in this order; the last three need those
#            before them, of this call or an earlier one
set -euo pipefail
source "$(dirname "$0")/help.sh"
source "$(dirname "$0")/dry_run.sh"
EXTRAS=plot
if [ -n "$DRY" ]; then cd "$(dirname "$0")/.."; else source "$(dirname "$0")/venv.sh"; fi
OUT=runs/quickstart
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then OUT=$1; shift; fi

run() {  # stage, more options
  local stage=$1; shift
  local clara=(python -m clara_jax.main --config=configs/quickstart.py:"$stage"
    --workdir="$OUT/$stage" "$@")
  $DRY "${clara[@]}"
  $DRY "${clara[@]}" --mode=evaluate
}

LATER=()
for stage in ${STAGES:-scp instruct contrastive e2e}; do
  case $stage in
    scp) run scp "$@"; $DRY python -m clara_jax.evaluation.report "$OUT/scp" --samples=3 ;;
    instruct) run instruct --config.init_from="$OUT/scp" "$@"; LATER+=("$OUT/instruct") ;;
    *)
      run "$stage" --config.init_from="$OUT/instruct" --config.data.memories="$OUT/memories" "$@"
      LATER+=("$OUT/$stage") ;;
  esac
done
[ ${#LATER[@]} = 0 ] ||
  $DRY python -m clara_jax.evaluation.compare "${LATER[@]}" --output "$OUT/comparison"
