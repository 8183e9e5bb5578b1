"""A trace of a few steps for xprof: what each device and the program did when."""

import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
from absl import logging

from clara_jax import files

_BEFORE = 10  # steps before the trace: the first is compiled, the next few warm up


class Trace:
    """Traces `steps` steps into `workdir/profile`, on process 0.

    It begins after ten steps, or fewer if the run is shorter, but never with the first.

    Args:
        workdir: of the run.
        steps: how many; 0: none.
        first: step at which this process begins.
        end: step at which the run ends.
    """

    def __init__(self, workdir: str, steps: int, first: int, end: int):
        self._steps = steps if jax.process_index() == 0 else 0
        self._begin = first + max(1, min(_BEFORE, end - first - steps))
        self._folder = f"{files.absolute(workdir)}/profile"
        self._written = self._folder
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Begins or ends before this step, once the steps that gave `state` have ended."""
        if self._steps and step in (self._begin, self._begin + self._steps):
            jax.block_until_ready(state)
            if step == self._begin:
                if files.is_remote(self._folder):  # the profiler writes to disks only
                    self._written = tempfile.mkdtemp()
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # else Python calls would fill it
                jax.profiler.start_trace(self._written, profiler_options=options)
                self._running = True
            else:
                self.close()

    def close(self) -> None:
        """Ends the trace if it runs, and says where it is."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        if self._written != self._folder:
            _copy(pathlib.Path(self._written), self._folder)
            shutil.rmtree(self._written)
        how = "pip install xprof; xprof --logdir="
        logging.info("trace of steps from %d on: %s%s", self._begin + 1, how, self._folder)


def _copy(folder: pathlib.Path, to: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            target = f"{to}/{file.relative_to(folder).as_posix()}"
            files.make_folder(os.path.dirname(target))
            files.path(target).write_bytes(file.read_bytes())
