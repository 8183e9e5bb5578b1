#!/usr/bin/env bash
# The whole report of trained runs (instruct, e2e, contrastive) on questions with candidates: the
# documents are compressed into a store for each run, every condition is answered from it, and all
# of it is put on one page. Run it again to go on where it stopped.
#
#   bash launch/report.sh [--dry-run] QUESTIONS.jsonl[,MORE.jsonl ...] RUN [RUN ...]
#
# Files of questions, of one data set each, are also reported by themselves.
#
#   OUT      folder of the page, the stores and the rest (default reports/report)
#   SETTING  candidates: given (the file's), normal or oracle (from all documents of the files)
#   COUNT    so many questions of each file, from its start, if these are given (default 100)
#   PRESET   model of the table of time and memory (default smollm2_135m); empty: no table
#   RATES    its compression rates (default "4 16 64")
set -euo pipefail
source "$(dirname "$0")/help.sh"
source "$(dirname "$0")/dry_run.sh"
[ $# -ge 2 ] || { usage >&2; exit 2; }
IFS=, read -r -a FILES <<< "$1"
shift
for file in "${FILES[@]}"; do
  [ -r "$file" ] || { echo "$file: cannot be read; name a JSONL file with questions" >&2; exit 2; }
done
RUNS=()
for run in "$@"; do RUNS+=("$(realpath "$run")"); done
HERE=$PWD EXTRAS=plot
if [ -n "$DRY" ]; then cd "$(dirname "$0")/.."; else source "$(dirname "$0")/venv.sh"; fi
OUT=${OUT:-reports/report} PRESET=${PRESET-smollm2_135m} RATES=${RATES:-4 16 64}
SETTING=${SETTING:-given} COUNT=${COUNT:-100}
[ "$SETTING" = given ] || COUNT=-0  # head's all but none: a search needs all the documents

# Only the documents of the questions that are asked are compressed.
DOCUMENTS=$OUT/questions/all.jsonl ASKED=''
if [ -z "$DRY" ]; then mkdir -p "$OUT/questions"; : > "$DOCUMENTS"; fi
for file in "${FILES[@]}"; do
  part=$OUT/questions/$(basename "$file")
  case ",$ASKED," in *",$part,"*) echo "$file: another file has this name; rename one" >&2; exit 2;; esac
  ASKED=$ASKED${ASKED:+,}$part
  if [ -z "$DRY" ]; then
    (cd "$HERE"; head -n "$COUNT" "$file") | tee "$part" >> "$DOCUMENTS"
  fi
done
for i in "${!RUNS[@]}"; do
  $DRY python -m clara_jax.main --mode=compress --workdir="${RUNS[$i]}" --documents="$DOCUMENTS" \
    --store="$OUT/stores/$i"
  $DRY python -m clara_jax.main --mode=evaluate --config=configs/e2e.py --workdir="${RUNS[$i]}" \
    --config.eval.sources="$ASKED" --config.eval.records=0 --config.eval.store="$OUT/stores/$i" \
    --config.eval.setting="$SETTING" --config.eval.conditions=every
done
TABLE=()
if [ -n "$PRESET" ]; then
  [ -e "$OUT/efficiency.json" ] || $DRY python -m benchmarks.efficiency \
    --preset="$PRESET" --rate $RATES --new_tokens=16 --batch=1 --output="$OUT/efficiency"
  TABLE=(--efficiency="$OUT/efficiency.json")
fi
$DRY python -m clara_jax.evaluation.page "$OUT/report.html" "${RUNS[@]}" ${TABLE[@]+"${TABLE[@]}"}
