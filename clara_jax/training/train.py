"""The training loop: each step is dispatched before the metrics of earlier ones are looked at."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.data import pipeline, sources
from clara_jax.errors import UserError
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress
from clara_jax.training import writers
from clara_jax.training.checkpoint import Checkpoints
from clara_jax.training.optim import make_optimizer
from clara_jax.training.setup import Setup, start, trained_names
from clara_jax.training.step import (
    Metrics,
    Step,
    compile_step,
    held_out_loss,
    init_optimizer,
    make_step,
)


def train(config: Config, workdir: str) -> int:
    """Trains to `config.train.steps`, from the workdir's newest checkpoint if it has one.

    Returns:
        0, or 143 if SIGTERM ended the run after saving.

    Raises:
        UserError: the config, the data or the workdir does not fit.
    """
    setup = start(config)
    _claim(workdir, config)
    processes = jax.process_count()
    rows = config.train.batch_rows // config.train.accumulate
    shards = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"config.train.batch_rows / accumulate = {rows} rows do not divide by the "
            f"{shards} devices of config.mesh data x fsdp"
        )
    source = pipeline.open_data(config)
    lengths = pipeline.row_lengths(config, setup.tokenizer, setup.extra, source)
    data = pipeline.make_train_iterator(
        config, setup.tokenizer, setup.extra, source=source, lengths=lengths,
        process_index=jax.process_index(), process_count=processes,
    )  # fmt: skip
    evaluate = _held_out(setup, lengths) if config.train.eval_every else None

    # Weights are this workdir's newest checkpoint's, else those that `start` gave.
    trained = {name: setup.trees[name] for name in trained_names(config)}
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
        state = (trained, opt_state)
        step_fn = compile_step(setup, make_step(setup, optimizer), state)
        with _on_sigterm() as terminated:
            return _loop(
                setup, workdir, first, state, frozen, data, step_fn, checkpoints, evaluate,
                terminated,
            )  # fmt: skip


def _loop(
    setup: Setup, workdir: str, first: int, state: Any, frozen: Trees, data: Iterator[Any],
    step_fn: Step, checkpoints: Checkpoints, evaluate: Callable | None,
    terminated: Callable[[int], bool],
) -> int:  # fmt: skip
    config = setup.config.train
    writer = writers.MetricWriter(workdir, config.tensorboard)
    progress = Progress(config.steps, f"training {setup.config.stage}", start=first)
    throughput = _Throughput()
    # Steps that are dispatched and not looked at yet, with the throughput if they are to be logged.
    pending: list[tuple[int, Metrics, dict[str, float] | None]] = []

    def report(upto: int) -> None:
        """Looks at the steps before `upto`, which have ended by now or will before `upto` does."""
        while pending and pending[0][0] < upto:
            number, metrics, rates = pending.pop(0)
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if not np.isfinite(metrics["loss"]):
                raise UserError(
                    f"step {number}: the loss is {metrics['loss']}; stopped. The newest checkpoint "
                    f"is step {checkpoints.latest()}; try a lower learning rate or a smaller clip"
                )
            if rates is not None:
                writer.write(number, metrics | rates)
                progress.update(number, f"loss {metrics['loss']:.4f}")

    try:
        for step in range(first, config.steps):
            try:
                batch = next(data)
            except StopIteration:
                logging.warning("the data ended at step %d of %d", step, config.steps)
                break
            throughput.count(batch)
            # Two steps in flight keep the device busy; more would delay SIGTERM's checkpoint.
            if len(pending) >= 2:
                jax.block_until_ready(pending[-2][1])
            batch = sharding.put_batch(setup.mesh, batch)
            state, metrics = step_fn(state, frozen, batch, np.int32(step))
            done = step + 1
            last = done == config.steps
            log = done % config.log_every == 0 or last
            if log:
                report(done)  # not this step itself, so that the device has work meanwhile
            pending.append((done, metrics, throughput.take() if log else None))
            stop = terminated(done)
            if done % config.checkpoint_every == 0 or last or stop:
                report(done + 1)  # no broken state is ever saved
                checkpoints.save(done, state[0], state[1], data)
            if evaluate is not None and (done % config.eval_every == 0 or last):
                report(done + 1)
                held_out = evaluate({**frozen, **state[0]})
                writer.write(done, held_out)
                logging.info("step %d: %s", done, held_out)
                throughput.restart()
            if stop:
                checkpoints.wait()
                logging.warning("SIGTERM: saved step %d; the same command resumes", done)
                return 143
        report(config.steps + 1)
    finally:
        progress.close()
        writer.close()
    return 0


class _Throughput:
    """Examples and real tokens per second since the last look."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.examples, self.tokens = time.perf_counter(), 0, 0

    def count(self, batch: dict[str, np.ndarray]) -> None:
        self.examples += int(batch["dec_segments"].max(axis=1).sum())
        self.tokens += int(sum((batch[k] > 0).sum() for k in ("enc_segments", "dec_segments")))

    def take(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start
        values = {
            "examples_per_s": self.examples * jax.process_count() / seconds,
            "tokens_per_s": self.tokens * jax.process_count() / seconds,
        }
        self.restart()
        return values


@contextlib.contextmanager
def _on_sigterm() -> Iterator[Callable[[int], bool]]:
    """A function that tells, at a step, whether to save and stop; on all hosts at the same step."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _held_out(setup: Setup, lengths: Any) -> Callable[[Trees], dict[str, float]]:
    """`held_out_loss` over the first `eval.records` dev records, in rows like those of training."""
    config = setup.config
    if config.eval.sources:
        data = dataclasses.replace(config.data, sources=config.eval.sources, holdout=0.0)
    else:
        data = dataclasses.replace(config.data, split="dev")
    dev = dataclasses.replace(config, data=data)
    source = pipeline.open_data(dev)
    if 0 < config.eval.records < len(source):
        source = sources.Subset(source, np.arange(config.eval.records))
    rows = config.train.batch_rows // config.train.accumulate
    batches = pipeline.eval_batches(
        dev, setup.tokenizer, setup.extra, source=source, lengths=lengths, batch_rows=rows
    )
    return held_out_loss(setup, batches)


def _claim(workdir: str, config: Config) -> None:
    """Writes config.json, or checks that the one there belongs to the same run."""
    path = os.path.join(workdir, "config.json")
    if os.path.exists(path):
        earlier = config_lib.load(path)
        fixed = ("stage", "seed", "init_from", "model", "lora", "data", "memory", "prompts")
        for name in fixed:
            before, now = getattr(earlier, name), getattr(config, name)
            if before != now:
                raise UserError(
                    f"{workdir} holds a run with another config.{name}: {before} there, {now} "
                    "now; use another --workdir or the earlier options"
                )
    if jax.process_index() == 0:
        os.makedirs(workdir, exist_ok=True)
        config_lib.save(config, path)
