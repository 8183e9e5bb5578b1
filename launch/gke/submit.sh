#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that has JobSet installed, and kubectl set up for it.
#
#   IMAGE=registry/clara_jax NAME=clara bash launch/gke/submit.sh \
#     --config=configs/scp.py:mistral_7b --workdir=gs://bucket/runs/scp --config.data.sources=gs://…
#   kubectl logs --follow job/clara-slice-0        and    kubectl delete jobset clara
#
#   --dry-run     prints the manifest and the command, and applies nothing
#   IMAGE         built from launch/gke/Dockerfile
#   NAME          of the JobSet (default clara)
#   ACCELERATOR   of the node pool (default tpu-v5-lite-podslice)
#   TOPOLOGY      of a slice (default 4x4)
#   CHIPS         of a machine of it (default 4)
#   SLICES        (default 1)
#   SPOT          1 (default): on spot machines; 0: on others
#   RESTARTS      before Kubernetes gives up (default 100); a run resumes at each
#   ACCOUNT       Kubernetes service account that may read and write the bucket (default: default)
set -euo pipefail
source "$(dirname "$0")/../help.sh"
DRY='' REST=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then DRY=1; else REST+=("$argument"); fi
done
cd "$(dirname "$0")/../.."
source launch/run.sh
[ -n "${IMAGE:-}" ] || fail "set IMAGE"
given workdir ${REST[@]+"${REST[@]}"} || fail "--workdir is missing"
export IMAGE NAME=${NAME:-clara} TOPOLOGY=${TOPOLOGY:-4x4} CHIPS=${CHIPS:-4} SLICES=${SLICES:-1}
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} SPOT=${SPOT:-1} RESTARTS=${RESTARTS:-100}
export ACCOUNT=${ACCOUNT:-default}
[ "$RESTARTS" = 0 ] || whole RESTARTS
whole CHIPS SLICES
# What names a Service, and leaves room in the names of Pods for slice, machine and five letters.
(LC_ALL=C; [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]) ||
  fail "NAME=$NAME is not up to 40 of a-z, 0-9 and -, from a letter to a letter or digit"
[[ $TOPOLOGY =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] ||
  fail "TOPOLOGY=$TOPOLOGY is not two or three whole numbers with x between"
export MACHINES=$((${TOPOLOGY//x/*} / CHIPS))
[ $((MACHINES * CHIPS)) = $((${TOPOLOGY//x/*})) ] ||
  fail "TOPOLOGY=$TOPOLOGY does not divide into machines of CHIPS=$CHIPS"

# Every value goes in as JSON, which is YAML too, so that no character of an option can break it.
MANIFEST=$(python3 - ${REST[@]+"${REST[@]}"} <<'PYTHON'
import json, os, re, sys

env = os.environ
nodes = {"cloud.google.com/gke-tpu-accelerator": env["ACCELERATOR"],
         "cloud.google.com/gke-tpu-topology": env["TOPOLOGY"]}
if env["SPOT"] == "1":
    nodes["cloud.google.com/gke-spot"] = "true"
values = {"name": env["NAME"], "image": env["IMAGE"], "account": env["ACCOUNT"], "nodes": nodes,
          "slices": int(env["SLICES"]), "machines": int(env["MACHINES"]), "chips": int(env["CHIPS"]),
          "restarts": int(env["RESTARTS"]),
          "args": [value.replace("$", "$$") for value in sys.argv[1:]]}  # Kubernetes halves them
text = open("launch/gke/jobset.yaml", encoding="utf-8").read()
print(re.sub("<([a-z]+)>", lambda found: json.dumps(values[found[1]]), text), end="")
PYTHON
)
[ -z "$DRY" ] || echo "$MANIFEST"
run kubectl apply --filename=- <<< "$MANIFEST"
