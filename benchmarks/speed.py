"""Speed and memory of training and inference: `python -m benchmarks.speed`.

Times are in matmul units u on CPUs (measure.py), so that machines compare. Every line is
measured in a process of its own, whose peak memory is then its own too.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import export_memory as releasing
from benchmarks import import_memory as importing
from benchmarks import programs
from benchmarks import search as searching
from benchmarks.measure import HEADER
from benchmarks.programs import Options
from clara_jax.errors import UserError, command


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def print_scp(options: Options) -> None:
    """Train steps of one and four rows; four rows also with recomputation."""
    print(HEADER)
    print(alone(programs.scp_step, options, 1, "none"), flush=True)
    plain = alone(programs.scp_step, options, 4, "none")
    print(plain, flush=True)
    for remat in ("dots", "full"):
        recomputed = alone(programs.scp_step, options, 4, remat)
        print(f"{recomputed}   {recomputed.time / plain.time:.2f}x the time", flush=True)


def print_compress(options: Options) -> None:
    """Documents to memories; no logits are computed."""
    print(HEADER)
    print(alone(programs.compress, options), flush=True)


def print_e2e(options: Options) -> None:
    """Joint training on one question, its candidates compressed in the step and before it."""
    print(HEADER)
    compressing = alone(programs.e2e_step, options, True)
    print(compressing, flush=True)
    given = alone(programs.e2e_step, options, False)
    print(f"{given}   {compressing.time / given.time:.2f}x faster", flush=True)


def print_answer(options: Options) -> None:
    """Answers from memories: the prompts alone, and with all tokens."""
    print(HEADER)
    for result in alone(programs.answer, options):
        print(result, flush=True)


def print_packing(options: Options) -> None:
    """Packed rows of each source beside padded ones, in tokens and in time of an example."""
    if not options.sources or not options.base:
        raise UserError("packing needs --base, whose tokenizer is used, and one --source or more")
    print(HEADER)
    for source in options.sources:
        one = dataclasses.replace(options, sources=(source,))
        padded, packed, examples, report = alone(programs.packing, one)
        before, after = padded.time / programs.PADDED_ROWS, packed.time / examples
        print(f"{source}: {report}\n{padded}\n{packed}")
        print(
            f"an example takes {before:.3g} {padded.unit} padded, {after:.3g} packed: "
            f"{before / after:.2f}x faster, {before / after / report.possible_ratio:.0%} of the "
            "possible token ratio",
            flush=True,
        )


def print_import(options: Options) -> None:
    """Memory beside the arrays while a checkpoint of random weights is read onto 8 CPU devices."""
    with tempfile.TemporaryDirectory() as folder:
        importing.write_checkpoint(pathlib.Path(folder), importing.model_of(options.gigabytes))
        for how in importing.RUNS:
            print(alone(importing.measure, folder, *how), flush=True)


def print_release(options: Options) -> None:
    """Memory of importing a released checkpoint of Mistral 7B's shapes, and of exporting it."""
    model = importing.model_of(options.gigabytes)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "base").mkdir()
        importing.write_checkpoint(folder / "base", model)
        releasing.write_tokenizer(folder / "base", model.vocab_size)
        releasing.write_release(folder / "source", folder / "base", model)
        paths = (str(folder / part) for part in ("source", "base", "workdir"))
        for line in alone(releasing.measure, *paths):
            print(line, flush=True)


def print_search(options: Options) -> None:
    """Search among made-up documents: recall of keys, and time in main memory and from disk."""
    for line in alone(searching.measure, options.documents, 512, 200):
        print(line, flush=True)


COMMANDS = {
    "scp": print_scp,
    "compress": print_compress,
    "e2e": print_e2e,
    "answer": print_answer,
    "packing": print_packing,
    "import": print_import,
    "release": print_release,
    "search": print_search,
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "what",
        nargs="*",
        help=f"any of {', '.join(COMMANDS)}; default: all that can be measured, but the last three",
    )
    parser.add_argument("--base", default="", help="base model; default: random weights")
    parser.add_argument("--preset", default="smollm2_135m", help="shape of the random weights")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--chunks", type=int, default=1, help="blocks of the cross-entropy")
    parser.add_argument("--source", action="append", default=[], help="records, for packing")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="to import, in bfloat16")
    parser.add_argument("--documents", type=int, default=200_000, help="to search among")
    args = parser.parse_args(argv)
    if args.chunks < 1:
        parser.error("--chunks must be at least 1")
    if args.documents < 1:
        parser.error("--documents must be at least 1")
    for name in set(args.what) - set(COMMANDS):
        parser.error(f"unknown benchmark {name!r}; known: {', '.join(COMMANDS)}")
    options = Options(
        args.base,
        args.preset,
        args.dtype,
        args.chunks,
        tuple(args.source),
        args.gigabytes,
        args.documents,
    )
    unmeasured = {"import", "release", "search"} | (set() if options.sources else {"packing"})
    default = [name for name in COMMANDS if name not in unmeasured]
    for name in args.what or default:
        COMMANDS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
