"""Synthesis against an endpoint without a model: speed, memory, and what faults and kills lose.

    python -m benchmarks.synthesis [--documents=10000] [--faults=0.2] [--kills=3]

Prints one JSON object. `speed`: requests a second at concurrency 64, without faults. `faults`: all
documents with that share of faults, run again until nothing is left undone: records against those
of a run without faults, and the peak of the memory. `kills`: kill -9 at random moments, then the
same command until its end: records against those of the undisturbed run, and how many requests the
endpoint got more than that run, at most those in flight at each kill.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from clara_jax.errors import UserError, command

CONCURRENCY = 64
_SYLLABLES = "ba ko mi tru len sar dop wex qui nal fro zhe gar tio lun".split()


def write_documents(path: str, count: int, seed: int = 0) -> None:
    """Writes documents of made-up words, no two of them alike."""
    draw = random.Random(seed)

    def word() -> str:
        return "".join(draw.choice(_SYLLABLES) for _ in range(draw.randint(2, 4)))

    with open(path, "w", encoding="utf-8") as f:
        for number in range(count):
            sentences = [
                f"{word().title()} {word()} {word()} of {word().title()} in "
                f"{draw.randint(1200, 2020)} {word()} {word()} {word()}."
                for _ in range(draw.randint(3, 10))
            ]
            title = f"{word().title()} {number}"
            f.write(json.dumps({"title": title, "text": " ".join(sentences)}) + "\n")


@contextlib.contextmanager
def endpoint(*options: str) -> Iterator[str]:
    """Yields the address of an endpoint in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fake_endpoint", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def counts(url: str) -> dict[str, int]:
    """What the endpoint counted."""
    with urllib.request.urlopen(f"{url}/counts") as f:
        return json.load(f)


def synthesize(
    program: Sequence[str], documents: str, output: str, url: str, **options: Any
) -> list[str]:
    """The command line of a run."""
    options = {"base_url": url, "model": "none", "concurrency": CONCURRENCY} | options
    return [
        *program,
        "--mode=synthesize",
        f"--documents={documents}",
        f"--output={output}",
        "--config=configs/synthesize.py",
        *(f"--config.synthesis.{name}={value}" for name, value in options.items()),
    ]


def finish(line: Sequence[str], log: str) -> dict[str, Any]:
    """Runs a command line until nothing is left undone.

    Returns:
        Seconds, the number of runs, and the peak of the resident memory of one.
    """
    begun, runs, peak = time.monotonic(), 0, 0
    while True:
        with open(log, "a") as f:
            process = subprocess.Popen(line, stdout=f, stderr=f)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        runs, peak = runs + 1, max(peak, usage.ru_maxrss)
        if code not in (0, 1):
            raise UserError(f"a run ended with exit code {code}; see {log}")
        if code == 0:
            seconds = time.monotonic() - begun
            return {"seconds": round(seconds, 1), "runs": runs, "peak_mb": round(peak / 1024)}


def fingerprint(output: str) -> dict[str, Any]:
    """What tells sets of records apart: how many, how many twice, and a hash of all."""
    lines = []
    for name in ("train.jsonl", "excluded.jsonl"):
        with open(os.path.join(output, name), "rb") as f:
            lines += [hashlib.sha256(line).hexdigest() for line in f]
    return {
        "lines": len(lines),
        "doubled": len(lines) - len(set(lines)),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()[:16],
    }


def kill_and_resume(line: Sequence[str], log: str, moments: Sequence[float]) -> int:
    """Kills a run after each of these seconds, then lets it finish; returns how many it killed."""
    killed = 0
    for moment in moments:
        with open(log, "a") as f:
            process = subprocess.Popen(line, stdout=f, stderr=f)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.wait()
    finish(line, log)
    return killed


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--faults", type=float, default=0.2, help="share of the requests")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of documents, faults and moments")
    parser.add_argument("--program", default=f"{sys.executable} -m clara_jax.main")
    options = parser.parse_args(argv)
    draw, figures = random.Random(options.seed), {}
    program = options.program.split()
    with tempfile.TemporaryDirectory() as folder:
        documents, log = (os.path.join(folder, name) for name in ("documents.jsonl", "log"))
        write_documents(documents, options.documents, options.seed)

        def place(name: str) -> str:
            return os.path.join(folder, name)

        with endpoint() as url:
            taken = finish(synthesize(program, documents, place("whole"), url), log)
            before = counts(url)["requests"]
        whole = fingerprint(place("whole"))
        figures["speed"] = taken | {
            "requests": before,
            "requests_per_second": round(before / taken["seconds"]),
            **whole,
        }
        _tell(figures)
        with endpoint(f"--faults={options.faults}", f"--seed={options.seed}") as url:
            # With the usual two repairs, one request in two thousand would get three broken replies
            # in a row, which excludes its document: no fault of ours, but no equal records.
            line = synthesize(
                program, documents, place("faults"), url, repairs=8, timeout=2.0, retries=8
            )
            figures["faults"] = finish(line, log) | {"endpoint": counts(url)}
        faulty = fingerprint(place("faults"))
        figures["faults"] |= {**faulty, "same_as_undisturbed": faulty == whole}
        _tell(figures)
        with endpoint() as url:
            line = synthesize(program, documents, place("kills"), url)
            moments = [draw.uniform(0.1, 0.9) * taken["seconds"] / 2 for _ in range(options.kills)]
            killed = kill_and_resume(line, log, moments)
            more = counts(url)["requests"] - before
        again = fingerprint(place("kills"))
        figures["kills"] = {
            "after_seconds": [round(moment, 1) for moment in moments],
            "killed": killed,
            "requests_more": more,
            "requests_in_flight_at_most": killed * CONCURRENCY,
            **again,
            "same_as_undisturbed": again == whole,
        }
    print(json.dumps(figures, indent=2))


def _tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
