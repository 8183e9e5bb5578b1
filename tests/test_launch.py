"""Launch scripts: what they would run, and that what they quote arrives as it was given."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "launch").rglob("*.sh"))
# What options may hold: spaces, both quotes, commas, what shells and templates expand.
HOSTILE = [
    "--config=configs/scp.py:mistral_7b",
    "--config.data.sources=gs://b/a b.jsonl,3*gs://b/c.jsonl",
    '--config.prompts.qa_user=it\'s "{docs}" & $HOME $$ `id` $(id) \\ <name> *; # %',
    "--config.train.only=",
]
TPU = {"TPU_NAME": "clara", "ZONE": "us-west4-a", "PROJECT": "mine", "WORKDIR": "gs://b/w d"}


def bash(script: str, *arguments: str, path: pathlib.Path | None = None, **variables: str):
    found = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env={"PATH": found, "HOME": os.environ.get("HOME", "/"), **variables},
    )  # fmt: skip


def commands(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """What a script prints with --dry-run, as the shell would read it."""
    result = bash(script, *arguments, **variables)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_are_short_and_parse(script):
    text = (ROOT / script).read_text()
    assert len(text.splitlines()) < 100
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    if shutil.which("shellcheck"):
        how = ["--source-path=SCRIPTDIR", "--external-sources", "--severity=error", "--shell=bash"]
        subprocess.run(["shellcheck", *how, str(ROOT / script)], check=True)


# --- TPU VMs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "\nset -e" in (ROOT / s).read_text()])
def test_help_is_shown_before_anything_is_installed(tmp_path, script):
    if script.name == "tpu_worker.sh":
        pytest.skip("tpu_vm.sh calls it")
    done = bash(str(script.relative_to("launch")), "--help", VENV=str(tmp_path / "venv"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash {script}" in done.stdout and "set -" not in done.stdout
    assert not (tmp_path / "venv").exists()


def test_tpu_commands():
    (create, wait) = commands("tpu_vm.sh", "create", "--dry-run", **TPU)
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "clara"]
    assert {"--spot", "--node-id=clara", "--zone=us-west4-a", "--project=mine"} <= set(create)
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"} <= {*create}
    assert wait[4] == "describe" and "--format=value(state.state)" in wait
    other = {**TPU, "SPOT": "0", "TYPE": "v6e-8", "RUNTIME": "v2-alpha-tpuv6e"}
    create = commands("tpu_vm.sh", "--dry-run", "create", **other)[0]
    assert "--spot" not in create
    assert {"--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"} <= {*create}
    (delete,) = commands("tpu_vm.sh", "delete", "--dry-run", **TPU)
    assert delete[4] == "delete" and "--force" in delete and "--quiet" in delete
    ((*logs, follow),) = commands("tpu_vm.sh", "logs", "--dry-run", WORKER="3", **TPU)
    assert "--worker=3" in logs and follow.endswith("-F clara_jax/run.log")


def test_tpu_setup_copies_a_folder_or_clones():
    tar, copy, _, install = commands("tpu_vm.sh", "setup", "--dry-run", REPO="my code", **TPU)
    assert tar[0] == "tar" and tar[-3:] == ["-C", "my code", "."]
    assert copy[4:7] == ["scp", tar[2], "clara:clara_jax.tar.gz"] and "--worker=all" in copy
    assert "EXTRAS=tpu,gcs" in install[-1]
    clone, _ = commands("tpu_vm.sh", "setup", "--dry-run", REPO="https://host/a b.git", **TPU)
    assert "git clone --quiet --depth=1 'https://host/a b.git' clara_jax" in clone[-1]


def test_tpu_resume_replaces_sets_up_and_runs():
    found = commands("tpu_vm.sh", "resume", "--dry-run", "--", *HOSTILE, **TPU)
    verbs = [words[0] if words[0] == "tar" else words[4] for words in found]
    assert verbs == ["describe", "delete", "describe", "create", "describe", "ssh", "tar", "scp",
                     "ssh", "ssh", "ssh", "describe", "ssh"]  # fmt: skip
    ((*_, run),) = commands("tpu_vm.sh", "run", "--dry-run", "--", *HOSTILE, **TPU)
    assert found[10][-1] == run


@pytest.mark.parametrize("how", [["--workdir=gs://b/w d"], ["--workdir", "gs://b/w d"]])
def test_tpu_workdir_may_be_an_argument(how):
    ((*_, run),) = commands("tpu_vm.sh", "run", "--dry-run", "--", *how, **{**TPU, "WORKDIR": ""})
    assert f"bash launch/tpu_worker.sh {shlex.join(how)} " in run


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], TPU, "COMMAND is missing"),
        (["--dry-run"], TPU, "COMMAND is missing"),
        (["run", "--config=x"], TPU, "--config=x is no command; options of the run come after --"),
        (["create"], {**TPU, "ZONE": ""}, "ZONE is missing"),
        (["delete", "--", "--dry-run"], TPU, "delete takes nothing after --, as --dry-run"),
        (["logs", "--", "--config=x"], TPU, "logs takes nothing after --, as --config=x"),
        (["run", "--", *HOSTILE], {**TPU, "WORKDIR": ""}, "WORKDIR is missing"),
        (["resume", "--", "--workdir="], {**TPU, "WORKDIR": ""}, "WORKDIR is missing"),
        (["run", "--", "--config.x=--workdir=y"], {**TPU, "WORKDIR": ""}, "WORKDIR is missing"),
        (["run", "create"], TPU, "run and create are two commands"),
        (["--dry-run", "delete", "delete"], TPU, "delete and delete are two commands"),
    ],
)
def test_tpu_mistakes(tmp_path, arguments, variables, message):
    program(tmp_path / "gcloud", '#!/bin/sh\necho "$@"\n')  # what it would do is not to be done
    result = bash("tpu_vm.sh", *arguments, path=tmp_path, **variables)
    assert result.returncode == 2 and not result.stdout
    assert message in result.stderr and result.stderr.count("\n") == 1


# A slice of this machine: `ssh` runs the command in HOME, `describe` takes its next answer from a
# file, and all that was called is written down.
GCLOUD = """#!/usr/bin/env bash
echo "$4" >> "$HOME/called"
case $4 in
  describe)
    state=$(head -n 1 "$HOME/states"); sed -i 1d "$HOME/states"
    case $state in *_*) echo "ERROR: (gcloud) $state: it said" >&2; exit 1 ;; esac
    echo WARNING: old >&2; echo "$state" ;;
  ssh)
    for word; do case $word in --command=*) command=${word#--command=} ;; esac; done
    case $command in *venv.sh* | *clone*) exit ;; esac
    cd "$HOME" && bash -c "$command" ;;
esac
"""
METADATA = """#!/usr/bin/env bash
case ${@: -1} in
  */agent-worker-number) echo -n 1 ;;
  */worker-network-endpoints) echo -n "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6" ;;
  *) exit 22 ;;
esac
"""
# Trains: writes down its arguments, and ends with the next exit code of a file.
TRAINING = f"""#!{sys.executable}
import json, os, pathlib, sys
home = pathlib.Path(__file__).parents[3]
codes = (home / "codes").read_text().split()
(home / "codes").write_text(" ".join(codes[1:]))
with open(home / "arguments", "a") as f:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    print(json.dumps([[os.environ[name] for name in names], sys.argv[1:]]), file=f)
print("step 1", flush=True)
if codes[0] in ("9", "99"):  # as out of memory: its parent too, or that alone, which it outlives
    os.kill(os.getppid(), 9)
    if codes[0] == "9":
        os.kill(os.getpid(), 9)
    import time
    time.sleep(1)
    with open(home / "arguments") as f:
        assert len(f.readlines()) == 1, "two at once"
sys.exit(int(codes[0]))
"""


@pytest.mark.parametrize(
    ("states", "codes", "code", "runs"),
    [
        ("ACTIVE", "0", 0, 1),
        ("PROVISIONING ACTIVE ACTIVE SUSPENDED DELETING ACTIVE", "143 0", 0, 2),
        ("ACTIVE", "2", 2, 1),  # a user's mistake
        ("ACTIVE", "1 1 1 1 1", 1, 3),  # first, and TRIES times again
        ("ACTIVE", "9 0", 0, 2),
        ("ACTIVE", "99 0", 0, 2),
        ("ACTIVE", "9 9 9 9 9", 137, 3),
        ("NOT_FOUND ACTIVE", "0", 0, 1),
        ("ACTIVE DEADLINE_EXCEEDED UNAVAILABLE_ ACTIVE", "0", 0, 1),  # passes
    ],
)
def test_tpu_resume_until_the_run_ends(tmp_path, states, codes, code, runs):
    home, path = tmp_path / "home", tmp_path / "bin"
    program(home / "clara_jax" / ".venv" / "bin" / "python", TRAINING)
    program(path / "gcloud", GCLOUD)
    program(path / "sleep", "#!/usr/bin/env bash\nexec /bin/sleep 0.2\n")
    (home / "clara_jax" / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "tpu_worker.sh", home / "clara_jax" / "launch")
    program(path / "curl", METADATA)
    (home / "states").write_text("".join(f"{s}\n" for s in [*states.split(), *["ACTIVE"] * 200]))
    (home / "codes").write_text(codes)
    result = bash("tpu_vm.sh", "resume", "--", *HOSTILE, path=path,
                  **{**TPU, "HOME": str(home), "TRIES": "2", "REPO": "https://h/r"})  # fmt: skip
    assert result.returncode == code, result.stderr
    given = [json.loads(line) for line in (home / "arguments").read_text().splitlines()]
    who = ["10.0.0.5:8482", "2", "1"]
    assert given == [[who, ["-m", "clara_jax.main", "--workdir=gs://b/w d", *HOSTILE]]] * runs
    assert (home / "clara_jax" / "run.log").read_text() == "step 1\n"
    called = (home / "called").read_text().split()
    assert ("delete" in called) == ("SUSPENDED" in states)
    assert ("create" in called) == ("NOT_FOUND" in states)


@pytest.mark.parametrize("command", ["create", "resume"])
@pytest.mark.parametrize(("before", "looks"), [([], 1), (["PROVISIONING"], 12)])
def test_tpu_stops_when_gcloud_cannot_tell(tmp_path, command, before, looks):
    program(tmp_path / "gcloud", GCLOUD)
    program(tmp_path / "sleep", "#!/bin/sh\n")
    states = [*before, *["PERMISSION_DENIED"] * 50]
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    result = bash("tpu_vm.sh", command, path=tmp_path, **{**TPU, "HOME": str(tmp_path)})
    assert result.returncode == 2
    assert set(result.stderr.splitlines()) == {"ERROR: (gcloud) PERMISSION_DENIED: it said"}
    called = (tmp_path / "called").read_text().split()
    assert called == ["create"] * (command == "create") + ["describe"] * looks


# --- GPUs ----------------------------------------------------------------------------------------


def test_gpu_on_one_machine_and_on_many():
    assert commands("gpu.sh", "--dry-run", *HOSTILE) == [
        ["python", "-m", "clara_jax.main", *HOSTILE]
    ]
    more = "--partition=gpu --time=1:00:00"
    batch, step, again = commands("gpu.sh", *HOSTILE, "--dry-run", NODES="4", SBATCH=more)
    assert batch[0] == "sbatch" and batch[-len(HOSTILE) - 1 :] == ["launch/gpu.sh", *HOSTILE]
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue"} <= set(batch)
    assert {"--signal=TERM@300", *more.split()} <= set(batch)
    assert step[0] == "srun" and step[2:] == ["python", "-m", "clara_jax.main", *HOSTILE]
    assert again == ["scontrol", "requeue", "JOB"]


@pytest.mark.parametrize("mistake", ["NODES=abc", "NODES=0", "NODES=2-", "GPUS=x", "GRACE=1.5"])
def test_gpu_mistakes(tmp_path, mistake):
    program(tmp_path / "sbatch", "#!/bin/sh\n")
    variables = {"NODES": "2", **dict([mistake.split("=")])}
    result = bash("gpu.sh", "--dry-run", *HOSTILE, path=tmp_path, **variables)
    assert result.returncode == 2 and not result.stdout
    assert f"gpu.sh: {mistake} is no whole number above 0" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (143, True)])
def test_a_slurm_job_queues_again_once_it_has_saved(tmp_path, code, requeued):
    program(tmp_path / "srun", f"#!/bin/sh\nkill -TERM $PPID\nexit {code}\n")  # as Slurm may
    program(tmp_path / "scontrol", f'#!/bin/sh\necho "$@" > "{tmp_path}/called"\n')
    result = bash("gpu.sh", *HOSTILE, path=tmp_path, CLARA_JOB="1", SLURM_JOB_ID="77")
    assert result.returncode == code, result.stderr
    assert (tmp_path / "called").exists() == requeued
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 77\n"


# --- GKE -----------------------------------------------------------------------------------------


GKE_RUN = [*HOSTILE, "--workdir=gs://b/w d"]


def manifest(**variables: str) -> dict:
    result = bash("gke/submit.sh", "--dry-run", *GKE_RUN, IMAGE="host/clara:1", **variables)
    assert result.returncode == 0, result.stderr
    text, last = result.stdout.rstrip("\n").rsplit("\n", 1)
    assert last == "kubectl apply --filename=-"
    return yaml.safe_load(text)


def test_gke_manifest():
    found = manifest()
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "clara" and found["spec"]["failurePolicy"]["maxRestarts"]
    (slices,) = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (1, 4, 4)
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == "host/clara:1"
    # Kubernetes reads $$ as $.
    assert [value.replace("$$", "$") for value in container["args"]] == GKE_RUN
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_gke_other_slices():
    found = manifest(TOPOLOGY="2x2x2", CHIPS="4", SLICES="3", SPOT="0", NAME="other",
                     ACCELERATOR="tpu-v5p-slice")  # fmt: skip
    (slices,) = found["spec"]["replicatedJobs"]
    assert slices["replicas"] == 3 and slices["template"]["spec"]["parallelism"] == 2
    selector = slices["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert "cloud.google.com/gke-spot" not in selector and found["metadata"]["name"] == "other"


def test_gke_applies_what_it_prints_and_names_what_is_missing(tmp_path):
    program(tmp_path / "kubectl", f'#!/bin/sh\ncat > "{tmp_path}/applied"\n')
    result = bash("gke/submit.sh", *GKE_RUN, path=tmp_path, IMAGE="host/clara:1")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load((tmp_path / "applied").read_text()) == manifest()
    result = bash("gke/submit.sh", *HOSTILE)
    assert result.returncode == 2 and "set IMAGE" in result.stderr


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("TOPOLOGY=nonsense", "TOPOLOGY=nonsense is not two or three whole numbers"),
        ("TOPOLOGY=4", "TOPOLOGY=4 is not two or three whole numbers"),
        ("TOPOLOGY=0x4", "TOPOLOGY=0x4 is not two or three whole numbers"),
        ("TOPOLOGY=1x1", "TOPOLOGY=1x1 does not divide into machines of CHIPS=4"),
        ("CHIPS=3", "TOPOLOGY=4x4 does not divide into machines of CHIPS=3"),
        ("CHIPS=x", "CHIPS=x is no whole number above 0"),
        ("SLICES=x", "SLICES=x is no whole number above 0"),
        ("SLICES=0", "SLICES=0 is no whole number above 0"),
        ("RESTARTS=-1", "RESTARTS=-1 is no whole number above 0"),
        ("NAME=My_Job", "NAME=My_Job is not up to 40 of a-z"),
        ("NAME=1st", "NAME=1st is not up to 40 of a-z"),
        ("NAME=end-", "NAME=end- is not up to 40 of a-z"),
        (f"NAME={'a' * 41}", "is not up to 40 of a-z"),
    ],
)
def test_gke_mistakes(tmp_path, mistake, message):
    program(tmp_path / "kubectl", "#!/bin/sh\necho applied\n")
    variables = {"IMAGE": "host/clara:1", **dict([mistake.split("=")])}
    result = bash("gke/submit.sh", *GKE_RUN, path=tmp_path, **variables)
    assert result.returncode == 2 and not result.stdout
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], HOSTILE])
def test_gke_asks_for_a_run(tmp_path, arguments):
    program(tmp_path / "kubectl", "#!/bin/sh\necho applied\n")
    result = bash("gke/submit.sh", *arguments, path=tmp_path, IMAGE="host/clara:1")
    assert result.returncode == 2 and not result.stdout
    assert "--workdir is missing" in result.stderr and result.stderr.count("\n") == 1


def test_gke_longest_and_shortest():
    found = manifest(NAME="a" * 40, TOPOLOGY="1x1", CHIPS="1", RESTARTS="0")
    assert found["metadata"]["name"] == "a" * 40
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert found["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1


def test_gke_image_has_what_the_program_reads():
    copied = (ROOT / "launch/gke/Dockerfile").read_text()
    assert all(f"COPY {name} {name}" in copied for name in ("clara_jax", "configs"))
    assert len(copied.splitlines()) < 100
    assert len((ROOT / "launch/gke/jobset.yaml").read_text().splitlines()) < 100


# --- The report ----------------------------------------------------------------------------------


def test_report_of_several_files_and_runs(tmp_path):
    files, runs = [tmp_path / "a.jsonl", tmp_path / "c.jsonl"], [tmp_path / "4x", tmp_path / "16"]
    for path in files:
        path.write_text("{}\n")
    for path in runs:
        path.mkdir()
    told = [",".join(map(str, files)), *map(str, runs), "--dry-run"]
    made = commands("report.sh", *told, OUT="out", PRESET="")
    assert [line[3] for line in made[:-1]] == ["--mode=compress", "--mode=evaluate"] * 2
    sources = "--config.eval.sources=out/questions/a.jsonl,out/questions/c.jsonl"
    for number, line in enumerate(made[1:4:2]):
        assert sources in line and f"--config.eval.store=out/stores/{number}" in line
        assert f"--workdir={runs[number]}" in line and "--config.eval.setting=given" in line
    assert made[-1][3:] == ["out/report.html", *map(str, runs)]
    refused = bash("report.sh", f"{files[0]},{files[0]}", str(runs[0]), "--dry-run")
    assert refused.returncode == 2 and "rename one" in refused.stderr
    assert bash("report.sh", "no.jsonl", str(runs[0])).returncode == 2
    assert "QUESTIONS.jsonl" in bash("report.sh").stderr
