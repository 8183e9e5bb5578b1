#!/usr/bin/env bash
# Trains on a Cloud TPU slice, from making it to deleting it:
#
#   export TPU_NAME=clara ZONE=us-west4-a PROJECT=my-project WORKDIR=gs://bucket/runs/scp
#   bash launch/tpu_vm.sh create      waits in the queue until the slice is there
#   bash launch/tpu_vm.sh setup       copies and installs this code on all workers
#   bash launch/tpu_vm.sh run -- --config=configs/scp.py:mistral_7b --config.data.sources=gs://…
#   bash launch/tpu_vm.sh logs        follows worker 0, or WORKER=n
#   bash launch/tpu_vm.sh resume -- …as for run    all of these, and again after each preemption
#   bash launch/tpu_vm.sh delete
#
#   --dry-run  before `--`: prints the commands, quoted for the shell, and runs none
#   TYPE       of accelerator (default v5litepod-16)
#   RUNTIME    software of the VMs (default v2-alpha-tpuv5-lite; v6e needs v2-alpha-tpuv6e)
#   SPOT       1 (default): cheap, may be preempted; 0: neither
#   REPO       folder (default: this one) or URL of a git repository to install
#   WORKDIR    --workdir of the run; on gs://, since the workers share no disk
#   TRIES      runs that may end badly under `resume` before it gives up (default 5)
#
# Queued resources instead of `tpu-vm create`: they wait for capacity, and tell of a preemption.
set -euo pipefail
DRY='' COMMAND=''; source "$(dirname "$0")/help.sh"; source "$(dirname "$0")/run.sh"
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --dry-run) DRY=1 ;;
    create | setup | run | logs | resume | delete)
      [ -z "$COMMAND" ] || fail "$COMMAND and $1 are two commands"; COMMAND=$1 ;;
    *) fail "$1 is no command; options of the run come after --" ;;
  esac
  shift
done
shift $(($# > 0))
for name in COMMAND TPU_NAME ZONE PROJECT; do [ -n "${!name:-}" ] || fail "$name is missing"; done
[[ $# = 0 || $COMMAND = r* ]] || fail "$COMMAND takes nothing after --, as $1"
[[ $COMMAND != r* ]] || given workdir --workdir="${WORKDIR:-}" "$@" || fail "WORKDIR is missing"
REPO=${REPO:-$(cd "$(dirname "$0")/.." && pwd)} TARBALL=${TMPDIR:-/tmp}/$TPU_NAME.tar.gz
AT=(--zone="$ZONE" --project="$PROJECT" --quiet) PYTHON=.venv/bin/python  # in clara_jax there
QUEUE=(gcloud compute tpus queued-resources) VM=(gcloud compute tpus tpu-vm)
on() { run "${VM[@]}" ssh "$TPU_NAME" "${AT[@]}" --worker="$1" --command="$2"; }
request() {
  local how=(--accelerator-type="${TYPE:-v5litepod-16}"); [ "${SPOT:-1}" != 1 ] || how+=(--spot)
  run "${QUEUE[@]}" create "$TPU_NAME" "${AT[@]}" --node-id="$TPU_NAME" "${how[@]}" \
    --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}"
}
delete() { run "${QUEUE[@]}" delete "$TPU_NAME" "${AT[@]}" --force; }
state() { look "$1" "${QUEUE[@]}" describe "$TPU_NAME" "${AT[@]}" '--format=value(state.state)'; }
setup() {
  if [[ $REPO = *://* || $REPO = git@* ]]; then
    on all "rm -rf clara_jax && git clone --quiet --depth=1 $(quoted "$REPO") clara_jax"
  else
    run tar -czf "$TARBALL" --exclude-vcs --exclude=.venv --exclude=runs -C "$REPO" . &&
      run "${VM[@]}" scp "$TARBALL" "$TPU_NAME:clara_jax.tar.gz" "${AT[@]}" --worker=all &&
      on all 'mkdir -p clara_jax && tar -xzf clara_jax.tar.gz -C clara_jax'
  fi && # the VMs' own Python is older than ours; uv brings one
    on all "cd clara_jax && python3 -m pip install --quiet --user uv && { [ -x $PYTHON ] || \
python3 -m uv venv --quiet --seed --python=3.12 .venv; } && \
PYTHON=$PYTHON EXTRAS=tpu,gcs bash -c '. launch/venv.sh'"
}
start() {  # detached, so that it outlives the connection. It holds a lock on run.log, which goes even
  # when it is killed, and for which the next one waits; exit.code is there once it has ended.
  local program
  program=$(quoted bash launch/tpu_worker.sh ${WORKDIR:+--workdir="$WORKDIR"} "$@")
  on all "cd clara_jax && exec 9>> run.log && flock -w 300 9 && rm -f exit.code && : > run.log && \
{ setsid $program > /dev/null 2>&1 < /dev/null & }"
}
ended() {  # exit code of worker 0; `none` before a run; nothing while it runs or is out of reach
  ask "$1" "${VM[@]}" ssh "$TPU_NAME" "${AT[@]}" --worker=0 --command="cd clara_jax && \
[ -e run.log ] || { echo none; exit; }; flock -n run.log true; free=\$?; \
cat exit.code || [ \$free != 0 ] || echo 137" 2> /dev/null || true  # 137: killed, or a VM restarted
}
resume() {  # does what is missing, until the run has ended well, or by a user's mistake
  local states=(SUSPENDED ABSENT ACTIVE ACTIVE) codes=('' '' none 0) tries=${TRIES:-5} code i
  for ((i = 0; ; i++)); do
    state "${states[i]:-}"
    case $ANSWER in
      ABSENT) request || sleep 60 ;;
      SUSPENDED | FAILED) delete || sleep 60 ;;
      ACTIVE)
        code=$(ended "${codes[i]:-}")
        case $code in
          '') sleep 60 ;;
          0 | 2) exit "$code" ;;
          none) { setup && start "$@"; } || sleep 60 ;;
          *) ((tries-- > 0)) || exit "$code"; start "$@" || sleep 60 ;;
        esac ;;
      *) sleep 30 ;;  # waits in the queue, or is being deleted
    esac
  done
}
case $COMMAND in
  create)
    request
    while state ACTIVE; [ "$ANSWER" != ACTIVE ]; do
      if [ "$ANSWER" = FAILED ]; then fail "it failed; delete it"; else sleep 30; fi
    done ;;
  run) start "$@" ;;
  logs) on "${WORKER:-0}" 'tail -n 100 -F clara_jax/run.log' ;;
  *) "$COMMAND" "$@" ;;
esac
