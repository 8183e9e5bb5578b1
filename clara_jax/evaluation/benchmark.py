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
from clara_jax.data.rows import FRAME, PADDED_DECODER, measure
from clara_jax.errors import UserError
from clara_jax.models import clara
from clara_jax.models.config import ExtraTokens
from clara_jax.training.losses import IGNORE
from clara_jax.training.optim import make_optimizer
from clara_jax.training.setup import Setup, create, trained_names
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


def clocked(run: Callable[[], Any]) -> tuple[float, str, float]:
    """Median time of `run` over REPEATS, its unit, and the median of its wall-clock seconds."""
    on_cpu = jax.default_backend() == "cpu"
    square = jnp.ones((2048, 2048), jnp.float32)
    matmul = jax.jit(lambda x: x @ x)

    def cpu_seconds(f: Callable[[], Any]) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(f())
        return time.process_time() - cpu, time.perf_counter() - wall

    units, runs = [], []
    for f in (run, lambda: matmul(square)):
        jax.block_until_ready(f())
    for _ in range(REPEATS):
        if on_cpu:
            units += [cpu_seconds(lambda: matmul(square))[0] for _ in range(3)]
        runs.append(cpu_seconds(run))
    seconds = statistics.median(wall for _, wall in runs)
    if not on_cpu:
        return seconds, "s", seconds
    return statistics.median(cpu for cpu, _ in runs) / statistics.median(units), "u", seconds


def result(name: str, compiled: Any, run: Callable[[], Any], tokens: int, **kwargs: Any) -> Result:
    """Times a compiled program and asks how much memory it takes."""
    took, unit, seconds = clocked(run)
    memory = compiled.memory_analysis()
    program = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNITS_PER_GIB
    return Result(name, took, unit, seconds, tokens, program / 2**30, peak, **kwargs)


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


def step_result(setup: Setup, name: str, batch: dict[str, np.ndarray], **kwargs: Any) -> Result:
    """Times whole train steps: forward, backward, clipping and AdamW."""
    trained = {key: setup.trees[key] for key in trained_names(setup.config)}
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

    return result(
        name, compiled, run, batch["enc_tokens"].size + batch["dec_tokens"].size, **kwargs
    )


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
    return step_result(setup, full, random_batch(setup.extra, rows), release=release(options, name))


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
    whole = result(
        "compress, 1 document", compiled, lambda: compiled(setup.trees, *arrays),
        batch["enc_tokens"].size, release=release(options, "compress"),
    )  # fmt: skip
    return dataclasses.replace(
        whole,
        time=whole.time / COMPRESSED,
        seconds=whole.seconds / COMPRESSED,
        tokens=whole.tokens // COMPRESSED,
    )


def packed_step(options: Options) -> tuple[Result, Any]:
    """A train step of real packed rows, about as many tokens as PADDED_ROWS padded ones."""
    setup = make_setup(options)
    config, extra = setup.config, setup.extra
    source = pipeline.open_data(config)
    lengths = pipeline.row_lengths(config, setup.tokenizer, extra, source)
    dataset = pipeline.make_dataset(config, setup.tokenizer, extra, source=source, lengths=lengths)
    report = measure(dataset, config.data, extra)
    rows = max(1, round(PADDED_ROWS * TOKENS / (lengths.encoder + lengths.decoder)))
    first = [row for row, _ in zip(dataset, range(rows), strict=False)]
    batch = {key: np.stack([row[key] for row in first]) for key in first[0]}
    return step_result(setup, f"packed step, {rows} rows", batch), report


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
    padded = alone(scp_step, options, PADDED_ROWS, "none")
    print(f"{HEADER}\n{padded}", flush=True)
    for source in options.sources:
        packed, report = alone(packed_step, dataclasses.replace(options, sources=(source,)))
        rows = packed.tokens / (report.lengths.encoder + report.lengths.decoder)
        examples = rows * report.examples / report.rows
        gain = (padded.time / PADDED_ROWS) / (packed.time / examples)
        print(packed)
        print(f"  {source}: {report}")
        print(
            f"  an example takes {padded.time / PADDED_ROWS:.3g} {padded.unit} padded, "
            f"{packed.time / examples:.3g} packed: {gain:.2f}x faster, "
            f"{gain / report.possible_ratio:.0%} of the possible token ratio",
            flush=True,
        )


COMMANDS = {"scp": print_scp, "compress": print_compress, "packing": print_packing}


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
    for name in set(args.what) - set(COMMANDS):
        parser.error(f"unknown benchmark {name!r}; known: {', '.join(COMMANDS)}")
    options = Options(args.base, args.preset, args.dtype, args.chunks, tuple(args.source))
    default = [name for name in COMMANDS if name != "packing" or options.sources]
    try:
        for name in args.what or default:
            COMMANDS[name](options)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
