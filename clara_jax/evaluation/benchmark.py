"""Speed and memory of training and compression: `python -m clara_jax.evaluation.benchmark`.

On CPUs times are in matmul units u, so that machines compare: CPU seconds of all threads, over
those of one 2048 x 2048 x 2048 float32 matmul that is timed between the runs. On accelerators they
are seconds. Every line is measured in a process of its own, whose peak memory is then its own too.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import sharding
from clara_jax.config import Config, Data, Mesh, Model, Train
from clara_jax.data import pipeline
from clara_jax.data.rows import FRAME, PADDED_DECODER, Report, measure
from clara_jax.errors import UserError, command
from clara_jax.models import clara
from clara_jax.models.config import ExtraTokens
from clara_jax.training.losses import IGNORE
from clara_jax.training.optim import make_optimizer
from clara_jax.training.setup import Setup, create
from clara_jax.training.step import compile_step, init_optimizer, make_step

REPEATS = 5  # the median counts
DOCUMENT, RATE = 256, 16  # tokens of a document, compression rate
PROMPT = 60  # tokens of the padded decoder rows that carry no label
COMPRESSED = 8  # documents compressed at once
PADDED_ROWS = 4  # examples of the padded step that packing is compared with
TOKENS = PADDED_DECODER + DOCUMENT + FRAME + DOCUMENT // RATE  # of a padded example, both sides
# The PyTorch release on two cores, float32, the same shapes, in u.
RELEASE = {"1 row": 47.0, "4 rows": 163.0, "compress": 7.5}
RELEASE_MODEL = "smollm2_135m"
_RSS_UNITS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, else KiB


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure on.

    Attributes:
        base: HF directory, hub id or .gguf file; empty: random weights of `preset`.
        preset: architecture of the random weights.
        dtype: of the activations.
        chunks: blocks of the cross-entropy.
        sources: records whose packing is measured.
    """

    base: str = ""
    preset: str = "smollm2_135m"
    dtype: str = "float32"
    chunks: int = 1
    sources: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: what was run.
        time: median, in `unit`.
        unit: "u" or "s".
        seconds: median wall-clock seconds.
        tokens: that one run works on, padding included.
        program_gib: what the compiled program needs: arguments and temporary arrays.
        peak_gib: most main memory that the process ever held.
        release: time of the PyTorch release in u, where it was measured.
    """

    name: str
    time: float
    unit: str
    seconds: float
    tokens: int
    program_gib: float
    peak_gib: float
    release: float | None = None

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


# --- Measuring -----------------------------------------------------------------------------------


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


def make_setup(options: Options, remat: str = "none", **data: Any) -> Setup:
    """A model as at the start of training, on one device."""
    config = Config(
        model=Model(
            preset=options.preset, base=options.base, dtype=options.dtype, remat=remat,
            tokenizer="" if options.base else "facts",
        ),
        data=Data(document_length=DOCUMENT, rate=RATE, sources=",".join(options.sources), **data),
        train=Train(loss_chunks=options.chunks),
    )  # fmt: skip
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return create(config, mesh)


def random_batch(extra: ExtraTokens, rows: int) -> dict[str, np.ndarray]:
    """Rows that hold one full example each, of random tokens."""
    rng = np.random.default_rng(0)
    M = len(extra.memory)
    enc = rng.integers(0, extra.vocab_size, (rows, TOKENS - PADDED_DECODER), np.int32)
    enc[:, 0], enc[:, -M:] = extra.enc, extra.memory
    dec = rng.integers(0, extra.vocab_size, (rows, PADDED_DECODER), np.int32)
    first = PROMPT - M - 2
    dec[:, first : first + M], dec[:, first + M] = extra.memory, extra.sep
    slots, targets = np.full_like(dec, -1), np.full_like(dec, IGNORE)
    slots[:, first : first + M] = np.arange(enc.shape[1] - M, enc.shape[1])
    targets[:, PROMPT - 1 : -1] = dec[:, PROMPT:]
    batch = {"dec_slots": slots, "dec_targets": targets}
    for side, tokens in (("enc", enc), ("dec", dec)):
        batch[f"{side}_tokens"] = tokens
        batch[f"{side}_segments"] = np.ones_like(tokens)
        batch[f"{side}_positions"] = np.zeros_like(tokens) + np.arange(tokens.shape[1])
    return batch


def step_program(
    setup: Setup, name: str, batch: dict[str, np.ndarray], release: float | None = None
) -> Program:
    """Whole train steps: forward, backward, clipping and AdamW."""
    # Copies, for the step gives its state's memory away and the setup may serve another program.
    trained = {key: jax.tree.map(jnp.copy, setup.trees[key]) for key in setup.config.trained}
    frozen = {key: tree for key, tree in setup.trees.items() if key not in trained}
    optimizer = make_optimizer(setup.config)
    state = (trained, init_optimizer(setup, optimizer, trained))
    rows = sharding.put_batch(setup.mesh, batch)
    step_fn = compile_step(setup, make_step(setup, optimizer), state)
    compiled = step_fn.lower(state, frozen, rows, np.int32(0)).compile()

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, rows, np.int32(0))
        return state, metrics

    tokens = batch["enc_tokens"].size + batch["dec_tokens"].size
    return Program(name, compiled, run, tokens, release)


# --- What is measured, each line in a process of its own -----------------------------------------


def release(options: Options, name: str) -> float | None:
    """The release's time, if these are the model and the device that it was measured with."""
    same = not options.base and (options.preset, options.dtype) == (RELEASE_MODEL, "float32")
    return RELEASE.get(name) if same and jax.default_backend() == "cpu" else None


def scp_step(options: Options, rows: int, remat: str) -> Result:
    """A train step of `rows` padded examples."""
    setup = make_setup(options, remat)
    name = f"{rows} row{'s' * (rows > 1)}"
    full = f"scp step, {name}" + (f", remat {remat}" if remat != "none" else "")
    batch = random_batch(setup.extra, rows)
    return measured(step_program(setup, full, batch, release(options, name)))[0]


def compress(options: Options) -> Result:
    """Compressing one document of full length, as one of COMPRESSED in a batch."""
    setup = make_setup(options)
    batch = random_batch(setup.extra, COMPRESSED)
    arrays = [jnp.asarray(batch[f"enc_{x}"]) for x in ("tokens", "positions", "segments")]

    @jax.jit
    def memories(trees: clara.Trees, tokens: Any, positions: Any, segments: Any) -> Any:
        hidden = clara.encode(setup.decoder, trees, tokens, positions, segments)
        return clara.memory_vectors(setup.model, trees, hidden, tokens)

    compiled = memories.lower(setup.trees, *arrays).compile()
    program = Program(
        "compress, 1 document", compiled, lambda: compiled(setup.trees, *arrays),
        batch["enc_tokens"].size, release(options, "compress"),
    )  # fmt: skip
    whole = measured(program)[0]
    return dataclasses.replace(
        whole,
        time=whole.time / COMPRESSED,
        seconds=whole.seconds / COMPRESSED,
        tokens=whole.tokens // COMPRESSED,
    )


def packing(options: Options) -> tuple[Result, Result, float, Report]:
    """Train steps of PADDED_ROWS padded examples and of about as many tokens of packed rows.

    Returns:
        Both results, how many examples the packed rows hold on average, and the packing's report.
    """
    setup = make_setup(options)
    config, extra = setup.config, setup.extra
    source = pipeline.open_data(config)
    lengths = pipeline.row_lengths(config, setup.tokenizer, extra, source)
    dataset = pipeline.make_dataset(config, setup.tokenizer, extra, source=source, lengths=lengths)
    report = measure(dataset, config.data, extra)
    rows = max(1, round(PADDED_ROWS * TOKENS / (lengths.encoder + lengths.decoder)))
    first = [row for row, _ in zip(dataset, range(rows), strict=False)]
    batch = {key: np.stack([row[key] for row in first]) for key in first[0]}
    padded, packed = measured(
        step_program(setup, f"padded step, {PADDED_ROWS} rows", random_batch(extra, PADDED_ROWS)),
        step_program(setup, f"packed step, {rows} row{'s' * (rows > 1)}", batch),
    )
    return padded, packed, rows * report.examples / report.rows, report


# --- Commands ------------------------------------------------------------------------------------


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def print_scp(options: Options) -> None:
    """Train steps of one and four rows; four rows also with recomputation."""
    print(HEADER)
    print(alone(scp_step, options, 1, "none"), flush=True)
    plain = alone(scp_step, options, 4, "none")
    print(plain, flush=True)
    for remat in ("dots", "full"):
        recomputed = alone(scp_step, options, 4, remat)
        print(f"{recomputed}   {recomputed.time / plain.time:.2f}x the time", flush=True)


def print_compress(options: Options) -> None:
    """Documents to memories; no logits are computed."""
    print(HEADER)
    print(alone(compress, options), flush=True)


def print_packing(options: Options) -> None:
    """Packed rows of each source beside padded ones, in tokens and in time of an example."""
    if not options.sources or not options.base:
        raise UserError("packing needs --base, whose tokenizer is used, and one --source or more")
    print(HEADER)
    for source in options.sources:
        one = dataclasses.replace(options, sources=(source,))
        padded, packed, examples, report = alone(packing, one)
        before, after = padded.time / PADDED_ROWS, packed.time / examples
        print(f"{source}: {report}\n{padded}\n{packed}")
        print(
            f"an example takes {before:.3g} {padded.unit} padded, {after:.3g} packed: "
            f"{before / after:.2f}x faster, {before / after / report.possible_ratio:.0%} of the "
            "possible token ratio",
            flush=True,
        )


COMMANDS = {"scp": print_scp, "compress": print_compress, "packing": print_packing}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.benchmark", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "what", nargs="*", help=f"any of {', '.join(COMMANDS)}; default: all that can be measured"
    )
    parser.add_argument("--base", default="", help="base model; default: random weights")
    parser.add_argument("--preset", default="smollm2_135m", help="shape of the random weights")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--chunks", type=int, default=1, help="blocks of the cross-entropy")
    parser.add_argument("--source", action="append", default=[], help="records, for packing")
    args = parser.parse_args(argv)
    if args.chunks < 1:
        parser.error("--chunks must be at least 1")
    for name in set(args.what) - set(COMMANDS):
        parser.error(f"unknown benchmark {name!r}; known: {', '.join(COMMANDS)}")
    options = Options(args.base, args.preset, args.dtype, args.chunks, tuple(args.source))
    default = [name for name in COMMANDS if name != "packing" or options.sources]
    for name in args.what or default:
        COMMANDS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
