"""Time and memory of compiled programs, on CPUs in units of one matmul.

On CPUs times are in matmul units u, so that machines compare: CPU seconds of all threads, over
those of one 2048 x 2048 x 2048 float32 matmul that is timed between the runs. On accelerators they
are seconds.
"""

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

REPEATS = 5  # the median counts
_RSS_UNITS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, else KiB


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str  # what was run
    time: float  # median, in `unit`
    unit: str  # "u" or "s"
    seconds: float  # median wall-clock seconds
    tokens: int  # that one run works on, padding included
    program_gib: float  # what the compiled program needs: arguments and temporary arrays
    peak_gib: float  # most main memory that the process ever held
    release: float | None = None  # time of the PyTorch release in u, where it was measured

    def __str__(self) -> str:
        release = "" if self.release is None else f"{self.release:g}"
        return (
            f"{self.name:<24} {self.time:9.3g} {self.unit} {release:>8} {self.seconds:8.3g} "
            f"{self.tokens / self.seconds:9.0f} {self.program_gib:11.2f} {self.peak_gib:9.2f}"
        )


HEADER = (
    f"{'':<24} {'time':>11} {'release':>8} {'seconds':>8} {'tokens/s':>9} {'program GiB':>11} "
    f"{'peak GiB':>9}"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to measure; fields as in `Result`. Each `run` gives arrays to wait for."""

    name: str
    compiled: Any
    run: Callable[[], Any]
    tokens: int
    release: float | None = None


def measured(*programs: Program) -> list[Result]:
    """Medians over REPEATS of programs that take turns, on CPUs with the matmul between them."""
    on_cpu = jax.default_backend() == "cpu"
    square = jnp.ones((2048, 2048), jnp.float32)
    matmul = jax.jit(lambda x: x @ x)

    def clock(run: Callable[[], Any]) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        return time.process_time() - cpu, time.perf_counter() - wall

    units: list[float] = []
    clocks: list[list[tuple[float, float]]] = [[] for _ in programs]
    for run in (lambda: matmul(square), *(program.run for program in programs)):
        jax.block_until_ready(run())
    for _ in range(REPEATS):
        for program, taken in zip(programs, clocks, strict=True):
            if on_cpu:
                units += [clock(lambda: matmul(square))[0] for _ in range(3)]
            taken.append(clock(program.run))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNITS_PER_GIB
    results = []
    for program, taken in zip(programs, clocks, strict=True):
        cpu, seconds = (statistics.median(column) for column in zip(*taken, strict=True))
        took, unit = (cpu / statistics.median(units), "u") if on_cpu else (seconds, "s")
        memory = program.compiled.memory_analysis()
        gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
        results.append(
            Result(program.name, took, unit, seconds, program.tokens, gib, peak, program.release)
        )
    return results
