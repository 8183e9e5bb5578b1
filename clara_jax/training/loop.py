"""The training loop: each step is dispatched before the metrics of earlier ones are looked at."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from clara_jax import sharding
from clara_jax.errors import UserError
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress, doing
from clara_jax.runs.checkpoint import Checkpoints
from clara_jax.runs.setup import Model
from clara_jax.training import writers
from clara_jax.training.goodput import Goodput
from clara_jax.training.profile import Trace
from clara_jax.training.step import Metrics, Step

_READ = 1.01  # times the cross-entropy that other documents' memories cost where they are read


@dataclasses.dataclass
class Loop:
    """The training loop."""

    model: Model  # what is trained
    step_fn: Step  # the compiled step
    frozen: Trees  # trees that are not trained
    data: Iterator[Any]  # this process's rows of each batch
    # gives the held-out losses of all trees; None: it is not asked for
    evaluate: Callable[[Trees], dict[str, float]] | None
    checkpoints: Checkpoints  # of the workdir
    writer: writers.MetricWriter  # of metrics
    goodput: Goodput  # counts where the time goes
    trace: Trace  # of a few steps
    state: Any  # trained trees and optimizer state, after `done` steps
    done: int  # steps that were dispatched

    def __post_init__(self):
        train, self._first = self.model.config.train, self.done
        self._progress = Progress(
            train.steps, f"training {self.model.config.stage}", start=self.done
        )
        self._throughput = _Throughput(train.batch_rows)
        # Steps that are dispatched and not looked at yet, with the throughput if they are logged.
        self._pending: list[tuple[int, Metrics, dict[str, float] | None]] = []
        self._largest = jax.jit(lambda trees: optax.tree_utils.tree_norm(trees, ord=jnp.inf))

    def run(self, received: Callable[[int], int]) -> int:
        """Trains to the last step, the end of the data, or a signal.

        Args:
            received: gives, after a step, the signal after which to save and stop, or 0.

        Returns:
            The exit code (`train`).
        """
        options, first = self.model.config.train, self.done
        end, signal_number = options.steps, 0
        while self.done < end and not signal_number:
            with self.goodput.spent("data"):
                batch = next(self.data, None)
            if batch is None:
                logging.warning("the data end at step %d of %d", self.done, end)
                end = self.done
            else:
                self.step(batch)
            signal_number = received(self.done)
            last = self.done == end and self.done > first
            if self.done % options.checkpoint_every == 0 or last or signal_number:
                self.save()
            due = options.eval_every > 0 and self.done % options.eval_every == 0
            if (due and batch is not None) or (last and not due):
                self.held_out()
        self.report(self.done + 1)
        if self.done == 0:
            raise UserError(
                f"config.data.sources={self.model.config.data.sources} give no whole batch of "
                f"config.train.batch_rows={options.batch_rows} rows in config.data.epochs="
                f"{self.model.config.data.epochs}; take fewer rows or more epochs"
            )
        with self.goodput.spent("checkpoints"):
            self.checkpoints.wait()
        logging.info("%s", self.goodput.summary())
        if signal_number:
            name = signal.Signals(signal_number).name
            logging.warning("%s: saved step %d; the same command resumes", name, self.done)
            return 128 + signal_number
        return 0

    def step(self, batch: dict[str, np.ndarray]) -> None:
        """Dispatches one step, and looks at earlier ones where their metrics are to be logged."""
        options = self.model.config.train
        self._throughput.count(batch)
        # Two steps in flight keep the device busy; more would delay a signal's checkpoint.
        if len(self._pending) >= 2:
            jax.block_until_ready(self._pending[-2][1])
        arrays = sharding.put_batch(self.model.mesh, batch)
        self.trace.before(self.done, self.state)
        first = doing("compiling the step") if self.done == self._first else nullcontext()
        with first, jax.profiler.StepTraceAnnotation("train", step_num=self.done):
            self.state, metrics = self.goodput.run(
                self.step_fn, self.state, self.frozen, arrays, np.int32(self.done)
            )
        self.done += 1
        log = self.done % options.log_every == 0 or self.done == options.steps
        if log:
            self.report(self.done)  # not this step itself, so that the device has work meanwhile
        self._pending.append((self.done, metrics, self._throughput.take() if log else None))

    def report(self, upto: int) -> None:
        """Looks at the steps before `upto`, which have ended by now or will before `upto` does."""
        while self._pending and self._pending[0][0] < upto:
            number, metrics, rates = self._pending.pop(0)
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
            self._check(number, "the loss", metrics["loss"])
            if rates is not None:
                self.writer.write(number, metrics | rates | self.goodput.seconds())
                self._progress.update(number, f"loss {metrics['loss']:.4f}")

    def save(self) -> None:
        """Starts to save this step, if its numbers are finite."""
        with self.goodput.spent("checkpoints"):
            self.report(self.done + 1)
            self.writer.flush()
            trained, opt_state = self.state
            self._check(self.done, "the largest weight", float(self._largest(trained)))
            self.checkpoints.save(self.done, trained, opt_state, self.data)

    def held_out(self) -> None:
        """Writes the held-out losses, if they are asked for."""
        if self.evaluate is None:
            return
        with self.goodput.spent("evaluation"), doing("held-out loss"):
            self.report(self.done + 1)
            values = self.evaluate({**self.frozen, **self.state[0]})
            self.writer.write(self.done, values)
            logging.info("step %d: %s", self.done, values)
            own, others = (values.get(f"eval/ce_loss{name}") for name in ("", "_others"))
            if own is not None and others is not None and others < _READ * own:
                logging.warning(
                    "step %d: the generator does not read its memories: its held-out cross-entropy "
                    "is %.3f, and %.3f with those of other documents",
                    self.done,
                    own,
                    others,
                )
            self._throughput.restart()

    def close(self) -> None:
        """Ends what writes and counts."""
        for part in (self._progress, self.trace, self.goodput, self.writer):
            part.close()

    def _check(self, number: int, what: str, value: float) -> None:
        if not np.isfinite(value):
            latest = self.checkpoints.latest()
            saved = "Nothing is saved yet" if latest is None else f"Step {latest} is saved"
            raise UserError(
                f"step {number}: {what} is {value}; stopped. {saved}; try a lower "
                "config.optim.learning_rate or config.optim.clip"
            )


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
