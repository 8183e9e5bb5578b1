"""Runs of many processes: how they meet, how one learns that another is gone, what they agree on.

Every process runs the same program on the same files. What only one may do, such as writing, the
process with index 0 does.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from clara_jax.errors import UserError, tell

T = TypeVar("T")

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LOST = 1  # exit code where another process is gone
_TIMEOUT = "CLARA_JAX_TIMEOUT"  # seconds without a sign of life, in place of those below
_START, _SILENCE = 300, 100  # seconds until all have started, and until a silent one is lost
_MEETING = 10  # seconds that a process which fails waits for others that may fail alike
# What errors of collectives and of the coordination service have in common.
_SIGNS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "coordination service")


@contextlib.contextmanager
def joined() -> Generator[None]:
    """Joins the run's other processes, where the environment says that there are any.

    Inside, an error of one ends all: it reports its own and leaves; the others end with LOST (or by
    SIGABRT, as the coordination service kills them) and one line that says so.

    Raises:
        UserError: the environment does not fit together.
    """
    options = from_environment(os.environ)
    if options is None:
        if jax.process_count() > 1:
            raise UserError(
                "the devices are those of several processes, which the environment does not name: "
                f"set {', '.join(EXPLICIT)} on each"
            )
        logging.info("devices: %s", jax.devices())
        yield
        return
    given = os.environ.get(_TIMEOUT, "0")
    if not given.isdecimal():
        raise UserError(f"{_TIMEOUT}={given!r} must be a number of seconds")
    seconds = int(given)
    farewell = _announce_loss(options.get("coordinator_address", "the first process"))
    _prepare_cpu()
    jax.distributed.initialize(
        **options,
        initialization_timeout=seconds or _START,
        heartbeat_timeout_seconds=seconds or _SILENCE,
    )
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
    logging.info("devices: %s", jax.devices())
    try:
        yield
        barrier("end")  # none leaves, which the others would take for a loss, before all are done
    except BaseException as e:
        _leave(e, farewell)
    farewell()


def from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` needs; None where this is the only process.

    JAX finds all by itself on TPU pods and under Slurm, and there nothing is needed.

    Raises:
        UserError: some of the three variables that tell a process who it is are missing or wrong.
    """
    given = [environment.get(name, "") for name in EXPLICIT]
    if any(given):
        address, count, index = given
        host, _, port = address.rpartition(":")
        numbers = all(text.isdecimal() for text in (count, index, port))
        if not (host and numbers and int(index) < int(count)):
            raise UserError(
                ", ".join(f"{n}={v!r}" for n, v in zip(EXPLICIT, given, strict=True))
                + ": of many processes each needs all three: host:port of the first, how many "
                "there are, and its own number from 0; unset them to run as one"
            )
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    several = (
        environment.get(name, "") for name in ("MEGASCALE_NUM_SLICES", "SLURM_STEP_NUM_TASKS")
    )
    if "," in hosts or any(text.isdecimal() and int(text) > 1 for text in several):
        return {}
    return None


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes to come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_alone(make: Callable[[], T]) -> T:
    """What `make` gives, called by the first process before all others call it."""
    if is_first():
        made = make()
        barrier("first_alone")
        return made
    barrier("first_alone")
    return make()


def from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, whose shape is the same everywhere."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _prepare_cpu() -> None:
    """Collectives of CPUs, which other devices do not look at; before any backend starts."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Else XLA starts those of one program in any order, and gloo pairs them by their order.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_enable_concurrency_optimized_scheduler=false"


def _announce_loss(where: str) -> Callable[[], None]:
    """Has a line printed when this process ends without calling what is returned."""
    # The coordination service ends a process from a thread of its own, with no call of ours after:
    # a shell at the other end of a pipe reports it. Its own session keeps Ctrl-C from it.
    line = (
        f"clara_jax: this process (pid {os.getpid()}) was killed or lost the others: one of them "
        f"is gone or never came, or {where} cannot be reached; its log says why. The same command "
        "on all of them goes on from the last checkpoint"
    )
    shell = subprocess.Popen(
        ["sh", "-c", 'read -r bye || printf "%s\\n" "$0" >&2', line],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def farewell() -> None:
        shell.communicate(b"bye\n")

    return farewell


def _leave(error: BaseException, farewell: Callable[[], None]) -> None:
    """Reports the error and ends the process at once; JAX would wait for the others first."""
    if _is_loss(error):
        logging.error("%s", str(error).splitlines()[0][:200])
        code = LOST  # the line comes when the process has ended
    elif (code := _code(error)) == 2:
        # Others often find the same mistake: each shall report it before the first one ends.
        with contextlib.suppress(Exception):
            from jax._src.distributed import global_state  # no public barrier has a time limit

            if global_state.client is not None:
                global_state.client.wait_at_barrier("clara_jax mistake", _MEETING * 1000)
        farewell()
    else:
        farewell()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _code(error: BaseException) -> int:
    """The exit code for an error that is reported here."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else bool(error.code)
    return tell(error)


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of another process's end."""
    if error is None:
        return False
    signs = isinstance(error, Exception) and any(sign in str(error) for sign in _SIGNS)
    return signs or _is_loss(error.__cause__ or error.__context__)
