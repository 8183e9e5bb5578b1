"""Real processes on this machine: any number of them trains, resumes and evaluates alike."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from clara_jax.config import Store
from clara_jax.corpus import write
from clara_jax.corpus.store import open_store
from clara_jax.data.documents import stream
from clara_jax.data.facts import FactsQuestions, FactsSource
from clara_jax.distributed import LOST, from_environment
from clara_jax.errors import UserError
from clara_jax.evaluation import driver
from clara_jax.evaluation.journal import Journal
from clara_jax.runs.fingerprint import model_hash
from clara_jax.runs.load import load_setup
from tests.fixtures import command

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"--config={ROOT}/configs/quickstart.py"
# A constant rate, so that a run of fewer steps is the start of one of more.
SCP = [
    QUICK, "--config.data.sources=facts:500", "--config.data.shards=4",
    "--config.data.packing_bins=8", "--config.train.batch_rows=8", "--config.train.log_every=1",
    "--config.train.checkpoint_every=2", "--config.train.keep_checkpoints=9",
    "--config.train.steps=8", "--config.optim.schedule=constant", "--config.optim.warmup=0.0",
    "--config.optim.learning_rate=2e-4",  # a high one amplifies the order of sums
]  # fmt: skip
E2E = [
    f"{QUICK}:e2e", "--config.data.sources=facts:40",
    "--config.data.shards=2", "--config.eval.sources=facts:4:1",
    "--config.eval.conditions=reasoner,gold",
    "--config.eval.max_new_tokens=2", "--config.select.candidates=4", "--config.lora.rank=4",
    "--config.train.steps=2", "--config.train.batch_rows=4", "--config.train.log_every=1",
    "--config.train.eval_every=2", "--config.lora.dropout=0.0", "--config.model.remat=none",
]  # fmt: skip


class Job:
    """Processes of the command line, each with its own log."""

    def __init__(self, folder, arguments, count=1, **variables):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.logs = [folder / f"log{time.monotonic_ns()}.{i}" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            environment = {
                **os.environ,
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
                "CLARA_JAX_TIMEOUT": "60",
                **variables,
            }
            if count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(i),
                }
            with open(log, "w") as f:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "clara_jax.main", *map(str, arguments)],
                        cwd=ROOT, env=environment, stdout=f, stderr=f,
                    )
                )  # fmt: skip

    def wait(self, seconds=150) -> list[int]:
        """Exit codes; a job that hangs is killed and fails."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job hangs: {self.text()}")
        finally:
            for process in self.processes:
                process.kill()

    def text(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def last_line(self, index: int) -> str:
        """The last line of a log, which a process's end may come before."""
        for _ in range(50):
            lines = self.logs[index].read_text().splitlines()
            if lines and lines[-1].startswith("clara_jax: "):
                break
            time.sleep(0.1)
        return lines[-1]


def run(folder, arguments, count=1) -> None:
    """One process is that of the tests."""
    if count == 1:
        mesh = [] if any("mesh" in argument for argument in arguments) else ["--config.mesh.fsdp=1"]
        assert command.run(*arguments, *mesh) == 0
        return
    job = Job(folder, arguments, count)
    assert job.wait() == [0] * count, job.text()


def metrics(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            k: v
            for k, v in line.items()
            if not k.endswith("_per_s") and not k.startswith(("time/", "grad_"))
        }
        for line in lines
    ]


def assert_same(workdir, expected) -> None:
    found, wanted = metrics(workdir), metrics(expected)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=2e-4), f"step {other['step']}"
        loss = "loss" if "loss" in other else "eval/ce_loss"
        assert one[loss] == pytest.approx(other[loss], rel=1e-5), f"step {other['step']}"


def until_line(job, workdir, lines) -> None:
    path = workdir / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= lines):
        running = all(p.poll() is None for p in job.processes)
        assert running and time.monotonic() < end, job.text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(folder):
    """A run of one process, to compare with."""
    run(folder, [*SCP, f"--workdir={folder / 'one'}"])
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder):
    """The same run by two processes, of which one is killed in the midst; then started again."""
    workdir = folder / "two"
    arguments = [*SCP, f"--workdir={workdir}"]
    job = Job(folder, arguments, count=2)
    until_line(job, workdir, 3)
    job.processes[1].kill()
    codes = job.wait()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] in (LOST, -signal.SIGABRT), job.text()
    assert "lost the others" in job.last_line(0) and "same command" in job.last_line(0)
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert steps and max(steps) < 8  # it was in mid-run
    run(folder, arguments, count=2)
    return workdir


def test_a_killed_process_ends_the_job_which_resumes_to_the_losses_of_one_process(one, two):
    assert_same(two, one)
    assert json.loads((two / "config.json").read_text())["data"]["shards"] == 4


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        pytest.param(4, {"data": 2, "fsdp": 1, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param(1, {"data": 1, "fsdp": 1, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_another_number_of_processes_and_another_mesh_go_on(folder, one, two, count, mesh):
    workdir = folder / f"by{count}"
    shutil.copytree(two, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    options = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    run(folder, [*SCP, *options, f"--workdir={workdir}"], count)
    assert_same(workdir, one)


def test_sigterm_to_one_process_saves_the_same_step_on_all(folder):
    workdir = folder / "sigterm"
    arguments = [*SCP, "--config.train.steps=500", "--config.train.checkpoint_every=500"]
    job = Job(folder, [*arguments, f"--workdir={workdir}"], count=2)
    until_line(job, workdir, 2)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [143, 143], job.text()
    (saved,) = (path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert all(f"SIGTERM: saved step {saved};" in log.read_text() for log in job.logs)


@pytest.mark.slow
def test_choosing_among_documents_and_its_evaluation(folder, one):
    results = []
    kept = {"answers": ["kept"] * 4, "nats": [1, 1], "tokens": [1, 1], "seconds": 0}
    for count in (1, 2):
        workdir = folder / f"e2e{count}"
        options = [
            *E2E, f"--config.init_from={one}", f"--workdir={workdir}",
            f"--config.data.memories={folder / f'memories{count}'}",
        ]  # fmt: skip
        run(folder, options, count)
        if results:  # what an evaluation that was killed left is read by both processes
            model = model_hash(*load_setup(workdir))
            basis = {"step": 2, "model": model, **results[0]["settings"]}
            asked = [FactsQuestions(4, 1)[i] for i in range(4)]
            name = driver.piece_name("gold", [
                (r.question, r.answers, [r.documents[i] for i in r.gold]) for r in asked
            ])  # fmt: skip
            Journal(str(workdir / "eval"), basis).piece(name, lambda: kept)
        run(folder, [*options, "--mode=evaluate"], count)
        results.append(json.loads((workdir / "eval" / "2.json").read_text()))
    assert_same(folder / "e2e2", folder / "e2e1")
    manifests = [(folder / f"memories{n}" / "manifest.json").read_text() for n in (1, 2)]
    assert manifests[0] == manifests[1]
    alone, both = results
    assert both["model"] == model
    assert all(row.pop("gold") == "kept" for row in both["predictions"])
    assert all(row.pop("gold") != "kept" for row in alone["predictions"])
    assert both["predictions"] == alone["predictions"]
    assert sorted(os.listdir(workdir / "eval")) == ["2.json", "2.jsonl"]  # no journal is left
    assert (workdir / "eval" / "2.jsonl").read_text().count("\n") == 4
    ce = [result["conditions"]["reasoner"]["answer_ce"] for result in results]
    assert ce[1] == pytest.approx(ce[0], rel=1e-5)


def test_two_processes_write_the_store_of_one(folder, one):
    documents = folder / "documents.jsonl"
    texts = (FactsSource(40, seed=1)[i].document for i in range(40))
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = [
        "--mode=compress", f"--workdir={one}", f"--documents={documents}",
        f"--store={folder / 'both'}", QUICK,
        "--config.store.part=16", "--config.store.batch=8", "--config.store.dtype=int8",
    ]  # fmt: skip
    run(folder, options, count=2)
    both, how = open_store(folder / "both"), Store("int8", 16, 8)
    alone = write.add(folder / "alone", *load_setup(one), stream(documents), how)
    assert both.manifest == alone.manifest and len(both.manifest.parts) == 3
    rows = range(40)
    assert both.documents(rows) == alone.documents(rows)
    np.testing.assert_allclose(both.memories(rows), alone.memories(rows), atol=2e-2)


def test_a_mistake_ends_all_processes_with_its_line(folder, two):
    job = Job(folder, [*SCP, "--config.data.shards=2", f"--workdir={two}"], count=2)
    assert job.wait() == [2, 2], job.text()
    for index in range(2):
        assert "config.data.shards=4, now it is 2" in job.last_line(index)


def test_a_coordinator_that_is_not_there_is_told(folder):
    job = Job(
        folder, [*SCP, f"--workdir={folder / 'x'}"], JAX_COORDINATOR_ADDRESS="127.0.0.1:9",
        JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1", CLARA_JAX_TIMEOUT="2",
    )  # fmt: skip
    assert job.wait(60) == [-signal.SIGABRT]
    assert "127.0.0.1:9 cannot be reached" in job.last_line(0)


def test_what_the_environment_says():
    explicit = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    found = from_environment(explicit)
    assert (found["coordinator_address"], found["num_processes"], found["process_id"]) == (
        "a:1", 4, 3,
    )  # fmt: skip
    for name, value in (
        ("JAX_COORDINATOR_ADDRESS", "a"), ("JAX_NUM_PROCESSES", ""), ("JAX_NUM_PROCESSES", "3"),
        ("JAX_PROCESS_ID", "-1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}='{value}'.*all three"):
            from_environment({**explicit, name: value})
    assert from_environment({}) is None
    assert from_environment({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert from_environment({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}) is None
    several = ({"TPU_WORKER_HOSTNAMES": "a,b"}, {"MEGASCALE_NUM_SLICES": "2"},
               {"SLURM_STEP_NUM_TASKS": "2"})  # fmt: skip
    assert [from_environment(environment) for environment in several] == [{}, {}, {}]
