"""A training run: what it starts from and resumes, and what ends it."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Generator
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from clara_jax import config as config_lib
from clara_jax import distributed, files
from clara_jax.config import Config, tied, with_options
from clara_jax.config_checks import DRAW, METHOD, get
from clara_jax.data import streams
from clara_jax.errors import UserError
from clara_jax.interop import native
from clara_jax.runs.checkpoint import Checkpoints, has_checkpoint
from clara_jax.runs.lineage import save_origins
from clara_jax.runs.setup import start
from clara_jax.training import writers
from clara_jax.training.goodput import Goodput
from clara_jax.training.inputs import open_inputs
from clara_jax.training.loop import Loop
from clara_jax.training.optim import make_optimizer
from clara_jax.training.profile import Trace
from clara_jax.training.step import (
    compile_step,
    held_out_loss,
    init_optimizer,
    make_step,
)

_DATA = "data.json"  # of a workdir: what `Inputs.source` was


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
    config = _with_kept(workdir, config)
    _check_same_run(workdir, config)
    writer = writers.MetricWriter(workdir, config.train.tensorboard)
    model, trees = start(config, workdir)
    config = model.config  # with the hash of its base
    inputs = open_inputs(model, trees, workdir)
    evaluate = None if inputs.held_out is None else held_out_loss(model, inputs.held_out)

    # Weights are this workdir's newest checkpoint's, else those that `start` gave.
    trained = {name: trees[name] for name in config.trained}
    frozen = {name: tree for name, tree in trees.items() if name not in trained}
    optimizer = make_optimizer(config)
    opt_state = init_optimizer(model, optimizer, trained)
    first = 0
    with Checkpoints(workdir, config.train.keep_checkpoints) as checkpoints:
        restored = checkpoints.restore(trained, opt_state, inputs.train)
        if restored is not None:
            first, trained, opt_state = restored
            _check_same_data(workdir, inputs.source)
            logging.info("resuming %s at step %d", workdir, first)
        writers.truncate(workdir, first)
        # Only now is it certain that options and workdir fit.
        if distributed.is_first():
            config_lib.save(config, os.path.join(workdir, "config.json"))
            save_origins(workdir, config)
            files.write(os.path.join(workdir, _DATA), json.dumps(inputs.source))
        state = (trained, opt_state)
        loop = Loop(
            model=model,
            step_fn=compile_step(model, make_step(model, optimizer), state),
            frozen=frozen,
            data=inputs.train,
            evaluate=evaluate,
            checkpoints=checkpoints,
            writer=writer,
            goodput=goodput,
            trace=Trace(workdir, config.profile, first, config.train.steps),
            state=state,
            done=first,
        )
        with _on_signal() as received, contextlib.closing(loop):
            return loop.run(received)


@contextlib.contextmanager
def _on_signal() -> Generator[Callable[[int], int]]:
    """A function that gives, at a step, the signal after which to save and stop, or 0.

    All hosts get it at the same step: JAX's preemption service sees to that or, where it is
    switched off, they agree after each step. A second SIGINT (Ctrl-C) stops at once.
    """
    several = jax.process_count() > 1
    if several and jax.config.jax_enable_preemption_service:  # pyrefly: ignore[missing-attribute]
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else 0
        return
    received = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if several:
            yield lambda step: signal.SIGTERM if distributed.any_of(bool(received)) else 0
        else:
            yield lambda step: received[0] if received else 0
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lock(workdir: str) -> Generator[None]:
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
    return with_options(config, {"data.shards": shards})


def _with_kept(workdir: str, config: Config) -> Config:
    """The config with what a run keeps: the hash of its base, and its streams if that is open."""
    earlier = _begun(workdir)
    if earlier is None:
        shards = streams.choose(jax.process_count(), config.train.batch_rows)
    else:
        shards = earlier.data.shards
        config = with_options(config, {"model.base_hash": earlier.model.base_hash})
    return _sharded(config, config.data.shards or shards)


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
    for name in config_lib.differences(earlier, config, tied(METHOD, DRAW)):
        before, now = (get(c, name) for c in (earlier, config))
        raise UserError(
            f"{workdir} holds a run with config.{name}={before!r}, now it is {now!r}; use "
            "another --workdir or the earlier options"
        )


def _check_same_data(workdir: str, source: dict[str, int | str]) -> None:
    """Refuses data in which the place of a checkpoint would mean other records.

    Raises:
        UserError: there are more or other records than the run began with.
    """
    path = os.path.join(workdir, _DATA)
    if not files.path(path).exists():  # of a run before there was the file
        return
    try:
        earlier = dict(json.loads(files.read(path)))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: damaged ({e}); restore it from a copy") from e
    if earlier != source:
        raise UserError(
            f"{workdir} holds a run that began with {earlier.get('records')} records of "
            f"config.data.sources, now there are {source['records']}, or others; use the earlier "
            f"data, or another --workdir with --config.init_from={workdir}; or remove {path} to "
            "resume with these in another order"
        )
