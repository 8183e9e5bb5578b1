#!/usr/bin/env bash
# What launch/tpu_vm.sh starts on each worker of a slice: the program with the arguments given. Leaves
# its output in run.log and, once it has ended, its exit code in exit.code.
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'echo $? > exit.code' EXIT
trap : TERM  # meant for the program, which saves first
exec > run.log 2>&1

about() {
  curl --fail --silent --show-error --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
# No variable of these VMs tells who the others are. Their metadata do: workers with commas between,
# each a name, or three things with colons between, of which the last is its address.
workers=$(about worker-network-endpoints) first=${workers%%,*} commas=${workers//[^,]/}
JAX_PROCESS_ID=$(about agent-worker-number)
export JAX_PROCESS_ID JAX_COORDINATOR_ADDRESS=${first##*:}:8482 JAX_NUM_PROCESSES=$((${#commas} + 1))
.venv/bin/python -m clara_jax.main "$@"
