#!/usr/bin/env bash
# Trains on the GPUs of this machine, or on several machines of a Slurm cluster.
#
#   bash launch/gpu.sh --config=configs/scp.py:mistral_7b --workdir=runs/scp …
#   NODES=4 GPUS=8 SBATCH="--partition=gpu --time=24:00:00" bash launch/gpu.sh --config=… …
#
#   --dry-run   prints the commands, quoted for the shell, and runs none
#   NODES       submits a Slurm job for so many machines (default: none, trains here)
#   GPUS        of each machine of the job (default 8)
#   SBATCH      more options of sbatch, without spaces inside
#   GRACE       seconds before the job's time limit at which it saves (default 300)
#
# Here one process has all GPUs. In a job each GPU has a process of its own, which is how JAX reads
# Slurm's variables. The job queues again, and resumes, when it was stopped after saving; code,
# workdir and data have to be where all machines see them.
set -euo pipefail
source "$(dirname "$0")/help.sh"
DRY='' REST=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then DRY=1; else REST+=("$argument"); fi
done
set -- ${REST[@]+"${REST[@]}"}
# Slurm runs a copy of this file from a folder of its own, with the repository as the current one.
[ -n "${CLARA_JOB:-}" ] || cd "$(dirname "$0")/.."
source launch/run.sh
CLARA=(python -m clara_jax.main "$@")
if [ -n "${CLARA_JOB:-}" ]; then
  [ -n "$DRY" ] || PATH="$PWD/${VENV:-.venv}/bin:$PATH"
  trap : TERM  # meant for the processes below, which exit with 143 once they have saved
  code=0
  run srun --kill-on-bad-exit=0 "${CLARA[@]}" || code=$?
  if [ "$code" = 143 ] || [ -n "$DRY" ]; then run scontrol requeue "${SLURM_JOB_ID:-JOB}"; fi
  exit "$code"
fi
GPUS=${GPUS:-8} GRACE=${GRACE:-300}
[ -z "${NODES:-}" ] || whole NODES GPUS GRACE
EXTRAS=gpu
[ -n "$DRY" ] || source launch/venv.sh
if [ -z "${NODES:-}" ]; then
  run "${CLARA[@]}"
  exit
fi
read -r -a more <<< "${SBATCH:-}"
export CLARA_JOB=1
# TERM is for the steps alone; requeued jobs append to the log of their earlier lives.
run sbatch --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" --requeue \
  --signal=TERM@"$GRACE" --open-mode=append --job-name=clara --export=ALL \
  ${more[@]+"${more[@]}"} launch/gpu.sh "$@"
if [ -n "$DRY" ]; then
  echo "# and in the job:"
  bash launch/gpu.sh --dry-run "$@"
fi
