"""Malformed inputs, made by rules: every option with wrong values, every file damaged.

    python -m tests.robustness [--only=TEXT] [--case=NAME ...] [--every=N] [--output=FILE]

Each input is given to a command of its own process. Right is one line on standard error and exit
code 2, or an end as if nothing were wrong: with the same answer, or with a warning. Wrong are
tracebacks, signals, exit code 70, more than SECONDS or BYTES, files that are gone or changed
afterwards and files that are left behind. All of it takes two hours; tests/test_robustness.py
runs some.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

from clara_jax import config as config_lib
from clara_jax.data.facts import FactsSource
from clara_jax.main import main as clara
from clara_jax.text.markdown import table

SECONDS, BYTES = 60, 4 << 30
FLIPS = 20  # bytes of a file that are flipped, each in a case of its own
TRAIN = [
    "--mode=train", "--config=quickstart", "--config.data.sources=facts:40", "--workdir={}/run",
    "--config.train.batch_rows=4", "--config.train.checkpoint_every=1", "--config.data.shards=1",
    "--config.train.log_every=1", "--config.data.packing_bins=4", "--config.eval.records=2",
]  # fmt: skip
ASK = ["--mode=ask", "--workdir={}/run", "--question=which job of beda bifa ?", "--top_k=1"]
COMPRESS = ["--mode=compress", "--store={}/store", "--workdir={}/run"]
COMMANDS = {
    "resume": [*TRAIN, "--config.train.steps=3"],
    "evaluate": [*TRAIN, "--mode=evaluate", "--config.eval.sources={}/records.jsonl"],
    "train": [*TRAIN, "--workdir={}/new", "--config.train.steps=1",
              "--config.data.sources={}/records.jsonl"],
    "ask": [*ASK, "--documents={}/documents.jsonl"],
    "ask of a store": [*ASK, "--store={}/store"],
    "verify": ["--mode=compress", "--store={}/store", "--verify"],
    "add": [*COMPRESS, "--documents={}/more.jsonl"],
    "compact": ["--mode=compress", "--store={}/store", "--compact"],
    "export": ["--mode=export", "--workdir={}/run", "--format=native", "--output={}/exported"],
    "ask of an export": [*ASK, "--workdir={}/native", "--documents={}/documents.jsonl"],
}  # fmt: skip
# Folders and files of the world that a command reads.
READS = {
    "resume": ["run"],
    "evaluate": ["records.jsonl"],
    "train": ["records.jsonl"],
    "ask": ["documents.jsonl", "run"],
    "ask of a store": ["store"],
    "verify": ["store"],
    "add": ["store", "more.jsonl"],
    "compact": ["store"],
    "export": ["run"],
    "ask of an export": ["native"],
}
MAKES = {"resume": "run", "evaluate": "run", "train": "new", "add": "store", "compact": "store",
         "export": "exported", "ask of a store": "store"}  # fmt: skip
# Valid at 10**9, and then endless or as long as the data are.
ENDLESS = {"train.steps", "data.epochs"}


@dataclasses.dataclass(frozen=True)
class Case:
    """An input, and the command that is given it."""

    name: str
    arguments: list[str]  # with {} for the folder
    reads: pathlib.Path | None = None  # file that is damaged, within the folder
    damage: Callable[[pathlib.Path], None] | None = None
    makes: str = ""  # what the command may change


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int  # exit code; negative: the signal that ended it
    out: str
    err: str
    seconds: float
    bytes: int  # the most memory it had


def run(arguments: list[str], folder: pathlib.Path) -> Outcome:
    """Runs a command in a process of its own, which is forked: imports are paid once."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        return _run(arguments, folder, (out, err))


def _run(arguments: list[str], folder: pathlib.Path, files: tuple[IO[bytes], IO[bytes]]) -> Outcome:
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        argv = ["clara", *(a.replace("{}", str(folder)) for a in arguments)]
        sys.argv, code = argv, 70
        os.chdir(folder)
        try:
            code = clara(argv)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    seconds, most = time.monotonic() - begun, 1024 * ended[2].ru_maxrss
    return Outcome(os.waitstatus_to_exitcode(ended[1]), *texts, seconds, most)


def build(folder: pathlib.Path) -> None:
    """A run of two steps, a store, an export and the texts that they are of."""
    folder.mkdir(parents=True)
    facts = [FactsSource(20, seed=1)[i] for i in range(20)]
    for name, some in (("documents", facts[:8]), ("more", facts[8:12])):
        lines = [json.dumps({"text": one.document}) + "\n" for one in some]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    records = [
        {"data_type": "qa", "question": list(one.questions), "answers": list(one.answers),
         "docs": [one.document]}
        for one in facts
    ]  # fmt: skip
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(text)
    for arguments in (
        [*TRAIN, "--config.train.steps=2"],
        [*COMPRESS, "--documents={}/documents.jsonl", "--config.store.part=4"],
        ["--mode=export", "--workdir={}/run", "--format=native", "--output={}/native"],
    ):
        outcome = run(arguments, folder)
        if outcome.code != 0:
            raise RuntimeError(f"{arguments}: {outcome.err}")


def options() -> Iterator[Case]:
    """Every option at values of no sense, or of too much."""
    for name, one in config_lib.OPTIONS.items():
        values = ["-1", "0", "1000000000", "x", "a" * 100_000]
        for value in values:
            huge = value == "1000000000" and name in ENDLESS
            if not huge and not (isinstance(one.default, str) and value.lstrip("-").isdigit()):
                shown = value if len(value) < 20 else f"{len(value)} letters"
                arguments = [*COMMANDS["train"], f"--config.{name}={value}"]
                yield Case(f"--config.{name}={shown}", arguments, makes="new")


def flip(place: float) -> Callable[[pathlib.Path], None]:
    """Damage that flips the byte at a share of a file."""

    def damage(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 0x55
        path.write_bytes(content)

    return damage


def _folder(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {  # for every command that reads a file
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "gone": pathlib.Path.unlink,
    "a folder": _folder,
    "noise": lambda path: path.write_bytes(hashlib.sha256(path.name.encode()).digest() * 9),
    "deep": lambda path: path.write_text("[" * 100_000),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
}
# For the first command that reads a file.
FLIPPED = {f"flipped at {i}/{FLIPS}": flip(i / FLIPS) for i in range(FLIPS)}


def files(world: pathlib.Path) -> Iterator[Case]:
    """Every file that a command reads, damaged in every way; of checkpoints the newest."""
    seen = set()
    for command, names in READS.items():
        for name in names:
            top = world / name
            for path in sorted(p for p in (top.rglob("*") if top.is_dir() else [top])):
                inner = path.relative_to(world)
                nothing = path.is_dir() or path.stat().st_size == 0 or path.suffix == ".lock"
                if nothing or "checkpoints/1" in str(inner):
                    continue
                damages = DAMAGES if inner in seen else DAMAGES | FLIPPED
                seen.add(inner)
                for kind, damage in damages.items():
                    title = f"{command}, {inner} {kind}"
                    makes = MAKES.get(command, "")
                    yield Case(title, COMMANDS[command], inner, damage, makes)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Hashes of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wrong(case: Case, world: pathlib.Path, expected: Outcome | None) -> str:
    """What is wrong with what the command of a case does; empty: nothing.

    Args:
        case: the input and the command.
        world: what `build` made; it is copied.
        expected: what the command does with the input as it should be; None: it is not compared.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "world"
        shutil.copytree(world, folder)
        if case.damage is not None and case.reads is not None:
            case.damage(folder / case.reads)
        before = contents(folder)
        done = run(case.arguments, folder)
        after = contents(folder)
    said = [line for line in done.err.splitlines() if line.startswith("clara_jax: ")]
    changed = [n for n in before if before[n] != after.get(n) and n.split("/")[0] != case.makes]
    left = [n for n in after if n not in before and n.split("/")[0] != case.makes]
    silent = done.out != expected.out if expected and done.code == 0 else False
    checks = {
        f"ended by signal {-done.code}": done.code < 0 and done.seconds <= SECONDS,
        f"exit code {done.code}": done.code not in (0, 2) and done.code >= 0,
        f"more than {SECONDS} s": done.seconds > SECONDS,
        f"{done.bytes >> 20} MiB": done.bytes > BYTES,
        "a traceback": "Traceback (most recent" in done.err,
        f"{len(said)} lines": done.code == 2 and len(said) != 1,
        "a line of over 1,000 letters": any(len(line) > 1000 for line in said),
        f"changed {changed[:3]}": bool(changed),
        f"left {left[:3]}": bool(left),
        "another answer, silently": silent and "\nW " not in f"\n{done.err}",
    }
    found = [what for what, true in checks.items() if true]
    return "; ".join([*found, *said[:1], done.err[-300:]] if found else [])


def cases(world: pathlib.Path) -> list[Case]:
    """All of them."""
    return [*options(), *files(world)]


def expectations(world: pathlib.Path, chosen: Iterable[Case]) -> dict[str, Outcome]:
    """What the commands of cases that answer do where nothing is damaged, by their arguments."""
    asked = {json.dumps(case.arguments): case.arguments for case in chosen if case.damage}
    with tempfile.TemporaryDirectory() as parent:
        copy = pathlib.Path(parent) / "world"
        shutil.copytree(world, copy)
        return {key: run(each, copy) for key, each in asked.items() if ASK[0] in each}


def start() -> None:
    """What all processes share: imports without JAX's threads, and a limit of open files."""
    import jax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import transformers  # noqa: F401

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--case", action="append", default=[], help="of this name, and no others")
    parser.add_argument("--every", type=int, default=1, help="one case of so many")
    parser.add_argument("--output", default="", help="JSON file of what is wrong")
    args = parser.parse_args(argv)
    start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        world = pathlib.Path(folder) / "built"
        build(world)
        every = {case.name: case for case in cases(world)}
        names = args.case or [name for name in every if args.only in name][:: args.every]
        chosen = [every[name] for name in names]
        expected = expectations(world, chosen)
        faults, begun = {}, time.monotonic()
        for number, case in enumerate(chosen, 1):
            if what := wrong(case, world, expected.get(json.dumps(case.arguments))):
                faults[case.name] = what
                print(f"{case.name}: {what}", flush=True)
            if number % 50 == 0:
                took = time.monotonic() - begun
                print(f"{number}/{len(chosen)}, {took:.0f} s, {len(faults)} wrong", flush=True)
    if args.output:
        text = json.dumps({"all": len(every), "cases": len(chosen), "wrong": faults}, indent=1)
        pathlib.Path(args.output).write_text(text)
    print(table(["cases", "wrong"], [[str(len(chosen)), str(len(faults))]]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
