"""The training loop: each step is dispatched before the metrics of earlier ones are looked at."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils

from clara_jax import config as config_lib
from clara_jax import distributed, files, sharding
from clara_jax.config import Config
from clara_jax.config_checks import get
from clara_jax.data import streams
from clara_jax.errors import UserError
from clara_jax.interop import native
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress
from clara_jax.runs.checkpoint import Checkpoints, has_checkpoint
from clara_jax.runs.lineage import save_origins
from clara_jax.runs.setup import Setup, start
from clara_jax.training import writers
from clara_jax.training.goodput import Goodput
from clara_jax.training.inputs import open_inputs
from clara_jax.training.optim import make_optimizer
from clara_jax.training.profile import Trace
from clara_jax.training.step import (
    Metrics,
    Step,
    compile_step,
    held_out_loss,
    init_optimizer,
    make_step,
)

# What a workdir's checkpoints and batches depend on; the rest may change when a run resumes.
FIXED = (
    "stage", "seed", "init_from", "generator_init", "reasoner_init", "model", "lora", "data",
    "memory", "select", "prompts", "train.only", "train.full",
)  # fmt: skip
FREE = {
    "model.remat",
    "model.attention",
    "data.tfds_dir",
    "data.memories",
}  # of these, what changes neither


def train(config: Config, workdir: str) -> int:
    """Trains to `config.train.steps`, from the workdir's newest checkpoint if it has one.

    Returns:
        0, or 128 plus the signal's number if SIGTERM or SIGINT ended the run after saving.

    Raises:
        UserError: the config, the data or the workdir does not fit, or another run uses it.
    """
    with _lock(workdir):
        return _train(config_lib.absolute(config), workdir)


def _train(config: Config, workdir: str) -> int:
    goodput = Goodput()
    config = _with_shards(workdir, config)
    _check_same_run(workdir, config)
    writer = writers.MetricWriter(workdir, config.train.tensorboard)
    setup = start(config, workdir)
    inputs = open_inputs(setup, workdir)
    data = inputs.train
    evaluate = None if inputs.held_out is None else held_out_loss(setup, inputs.held_out)

    # Weights are this workdir's newest checkpoint's, else those that `start` gave.
    trained = {name: setup.trees[name] for name in config.trained}
    frozen = {name: tree for name, tree in setup.trees.items() if name not in trained}
    optimizer = make_optimizer(config)
    opt_state = init_optimizer(setup, optimizer, trained)
    first = 0
    with Checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
        restored = checkpoints.restore(trained, opt_state, data)
        if restored is not None:
            first, trained, opt_state = restored
            logging.info("resuming %s at step %d", workdir, first)
            writers.truncate(workdir, first)
        # Only now is it certain that options and workdir fit.
        if distributed.is_first():
            config_lib.save(config, os.path.join(workdir, "config.json"))
            save_origins(workdir, config)
        state = (trained, opt_state)
        step_fn = compile_step(setup, make_step(setup, optimizer), state)
        with _on_signal() as received:
            trace = Trace(workdir, config.profile, first, config.train.steps)
            return _loop(
                setup, first, state, frozen, data, step_fn, checkpoints, evaluate, writer, received,
                goodput, trace,
            )  # fmt: skip


def _loop(
    setup: Setup, first: int, state: Any, frozen: Trees, data: Iterator[Any], step_fn: Step,
    checkpoints: Checkpoints, evaluate: Callable | None, writer: writers.MetricWriter,
    received: Callable[[int], int], goodput: Goodput, trace: Trace,
) -> int:  # fmt: skip
    config = setup.config.train
    progress = Progress(config.steps, f"training {setup.config.stage}", start=first)
    throughput = _Throughput(config.batch_rows)
    # Steps that are dispatched and not looked at yet, with the throughput if they are to be logged.
    pending: list[tuple[int, Metrics, dict[str, float] | None]] = []
    largest = jax.jit(lambda trees: optax.tree_utils.tree_norm(trees, ord=jnp.inf))

    def check(number: int, what: str, value: float) -> None:
        if not np.isfinite(value):
            latest = checkpoints.latest()
            saved = "Nothing is saved yet" if latest is None else f"Step {latest} is saved"
            raise UserError(
                f"step {number}: {what} is {value}; stopped. {saved}; try a lower "
                "config.optim.learning_rate or config.optim.clip"
            )

    def report(upto: int) -> None:
        """Looks at the steps before `upto`, which have ended by now or will before `upto` does."""
        while pending and pending[0][0] < upto:
            number, metrics, rates = pending.pop(0)
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
            check(number, "the loss", metrics["loss"])
            if rates is not None:
                writer.write(number, metrics | rates | goodput.seconds())
                progress.update(number, f"loss {metrics['loss']:.4f}")

    def save(done: int) -> None:
        report(done + 1)
        writer.flush()
        check(done, "the largest weight", float(largest(state[0])))
        checkpoints.save(done, state[0], state[1], data)

    def held_out(done: int) -> None:
        report(done + 1)
        values = evaluate({**frozen, **state[0]})
        writer.write(done, values)
        logging.info("step %d: %s", done, values)
        throughput.restart()

    done, end, signal_number = first, config.steps, 0
    try:
        while done < end and not signal_number:
            with goodput.spent("data"):
                batch = next(data, None)
            if batch is None:
                logging.warning("the data end at step %d of %d", done, config.steps)
                end = done
            else:
                throughput.count(batch)
                # Two steps in flight keep the device busy; more would delay a signal's checkpoint.
                if len(pending) >= 2:
                    jax.block_until_ready(pending[-2][1])
                batch = sharding.put_batch(setup.mesh, batch)
                trace.before(done, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = goodput.run(step_fn, state, frozen, batch, np.int32(done))
                done += 1
                log = done % config.log_every == 0 or done == end
                if log:
                    report(done)  # not this step itself, so that the device has work meanwhile
                pending.append((done, metrics, throughput.take() if log else None))
            signal_number = received(done)
            last = done == end and done > first
            if done % config.checkpoint_every == 0 or last or signal_number:
                with goodput.spent("checkpoints"):
                    save(done)
            due = config.eval_every > 0 and done % config.eval_every == 0
            if evaluate is not None and (due or last) and not (due and batch is None):
                with goodput.spent("evaluation"):
                    held_out(done)
        report(done + 1)
        if done == 0:
            raise UserError(
                f"config.data.sources={setup.config.data.sources} give no whole batch of "
                f"config.train.batch_rows={config.batch_rows} rows in config.data.epochs="
                f"{setup.config.data.epochs}; take fewer rows or more epochs"
            )
        with goodput.spent("checkpoints"):
            checkpoints.wait()
        logging.info("%s", goodput.summary())
        if signal_number:
            logging.warning("%s: saved step %d; the same command resumes",
                            signal.Signals(signal_number).name, done)  # fmt: skip
            return 128 + signal_number
    finally:
        progress.close()
        trace.close()
        goodput.close()
        writer.close()
    return 0


class _Throughput:
    """Examples and real tokens per second since the last look, of all processes.

    A process sees its own rows of the batches, and counts them for all `rows`.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.restart()

    def restart(self) -> None:
        self.start, self.examples, self.tokens = time.perf_counter(), 0.0, 0.0

    def count(self, batch: dict[str, np.ndarray]) -> None:
        counted = "dec_segments" if "dec_segments" in batch else "qry_segments"
        share = self._rows / len(batch[counted])
        tokens = sum((v > 0).sum() for k, v in batch.items() if k.endswith("_segments"))
        self.examples += float(share * batch[counted].max(axis=1).sum())
        self.tokens += float(share * tokens)

    def take(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        values = {
            "examples_per_s": self.examples / seconds,
            "tokens_per_s": self.tokens / seconds,
        }
        self.restart()
        return values


@contextlib.contextmanager
def _on_signal() -> Iterator[Callable[[int], int]]:
    """A function that gives, at a step, the signal after which to save and stop, or 0.

    All hosts get it at the same step. A second SIGINT (Ctrl-C) stops at once.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else 0
        return
    received = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: received[0] if received else 0
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lock(workdir: str) -> Iterator[None]:
    """Holds the workdir for one run: two would write the same files."""
    with contextlib.ExitStack() as stack:
        if distributed.is_first():
            files.make_folder(workdir)
            problem = f"{workdir}: another run trains here; wait for it or use another --workdir"
            stack.enter_context(files.lock(os.path.join(workdir, ".lock"), problem))
        yield


def _begun(workdir: str) -> Config | None:
    """The config of the run that the workdir holds, if it has saved anything yet."""
    path = os.path.join(workdir, "config.json")
    if not has_checkpoint(workdir) or not files.path(path).exists():
        return None
    earlier = config_lib.load(path)
    return _sharded(earlier, earlier.data.shards or 1)  # before there was the option


def _sharded(config: Config, shards: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards))


def _with_shards(workdir: str, config: Config) -> Config:
    """The config with a number of streams where it leaves that open: a run keeps what it has."""
    if config.data.shards:
        return config
    earlier = _begun(workdir)
    if earlier is not None:
        return _sharded(config, earlier.data.shards)
    return _sharded(config, streams.choose(jax.process_count(), config.train.batch_rows))


def _check_same_run(workdir: str, config: Config) -> None:
    """Refuses options with which the workdir's checkpoints or its data position mean another thing.

    Raises:
        UserError: options differ; it names them.
    """
    if native.is_native(workdir):
        raise UserError(
            f"{workdir} holds an imported or exported model; train in another --workdir, with "
            f"--config.init_from={workdir}"
        )
    earlier = _begun(workdir)
    if earlier is None:
        return
    for name in config_lib.differences(earlier, config, FIXED):
        if name not in FREE:
            before, now = (get(c, name) for c in (earlier, config))
            raise UserError(
                f"{workdir} holds a run with config.{name}={before!r}, now it is {now!r}; use "
                "another --workdir or the earlier options"
            )
