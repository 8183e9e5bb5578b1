"""Compiles what we publish for TPUs and prints it as a Markdown table.

    python -m benchmarks.tpu_table [--only=mistral_7b] [--output=table.jsonl]

Each row is `--mode=compile` in a process of its own: minutes of two cores and about 3 GB at 7B.
`--output` keeps the JSON of each, and rows that it holds are not compiled again by the same jax and
libtpu. Run it in the repository, whose configs it reads.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from clara_jax.aot.chips import versions
from clara_jax.errors import UserError, command


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one topology."""

    config: str  # name of a file in configs/
    model: str  # its argument
    topology: str  # of TPUs
    options: tuple[str, ...] = ()  # set beside the config's own
    program: str = "train"  # see aot/programs.py

    @property
    def name(self) -> str:
        """What `--only` looks for."""
        return " ".join((self.config, self.model, self.topology, self.program, *self.options))

    def arguments(self) -> list[str]:
        """Of clara_jax.main."""
        return [
            "--mode=compile",
            f"--config=configs/{self.config}.py:{self.model}",
            f"--topology={self.topology}",
            f"--program={self.program}",
            *(f"--config.{option}" for option in self.options),
        ]


_MEMORIES = "data.memories=once"
_SERVING = ("mesh.tensor=8", "mesh.fsdp=1", "eval.batch=64")
ROWS = (
    Row("scp", "mistral_7b", "v5e:4x4"),
    Row("scp", "mistral_7b", "v5e:4x4", ("model.remat=full", "model.attention=xla")),
    Row("scp", "mistral_7b", "v5e:4x4", ("model.param_dtype=int8",)),
    Row("scp", "mistral_7b", "v5p:2x2x1"),
    Row("scp", "mistral_7b", "v6e:2x4"),
    Row("scp", "llama3_8b", "v5e:4x4"),
    Row("scp", "smollm2_135m", "v5e:1x1", ("model.remat=full", "train.loss_chunks=16")),
    Row("scp", "llama2_70b", "v5p:4x4x8", ("mesh.fsdp=32", "mesh.tensor=4")),
    Row("e2e", "mistral_7b", "v5e:4x4", (_MEMORIES,)),
    Row("e2e", "mistral_7b", "v5e:4x4", (_MEMORIES, "model.param_dtype=int8")),
    Row("e2e", "mistral_7b", "v5e:4x4"),
    Row("scp", "mistral_7b", "v5e:2x4", _SERVING, "prefill"),
    Row("scp", "mistral_7b", "v5e:2x4", _SERVING, "decode"),
    Row("scp", "mistral_7b", "v5e:2x4", (*_SERVING, "model.param_dtype=int8"), "decode"),
    Row("scp", "mistral_7b", "v5e:4x4", ("eval.batch=256",), "compress"),
    Row("e2e", "smollm2_135m", "v5e:2x4", ("eval.batch=32",), "search"),
)


def markdown(results: Sequence[tuple[Row, dict[str, Any]]]) -> str:
    """The table."""
    lines = [
        "| program | model | topology | options | HBM GiB | spare | compute s | interconnect s | "
        "step s | MFU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, f in results:
        spare = 1 - f["hbm_bytes_per_device"] / f["hbm_limit_bytes"]
        keys = ("compute_seconds", "interconnect_seconds", "predicted_step_seconds")
        times = ["–" if f[key] is None else f"{f[key]:.3g}" for key in keys]
        mfu = "–" if f["predicted_mfu"] is None else f"{f['predicted_mfu']:.2f}"
        lines.append(
            f"| {row.config} {row.program}, {f['rows']} rows | {row.model} | {row.topology} | "
            f"{' '.join(row.options)} | {f['hbm_bytes_per_device'] / 2**30:.1f} | {spare:.0%} | "
            f"{' | '.join(times)} | {mfu} |"
        )
    return "\n".join(lines)


def compile_row(row: Row) -> dict[str, Any]:
    """The JSON object of `--mode=compile`.

    Raises:
        UserError: it failed; its last line of errors is reported.
    """
    command_line = [sys.executable, "-m", "clara_jax.main", *row.arguments()]
    done = subprocess.run(command_line, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{row.name}: exit code {done.returncode}: {reason}")
    return json.loads(done.stdout)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--output", help="file of JSON lines that is added to")
    options = parser.parse_args(argv)
    rows = [row for row in ROWS if options.only in row.name]
    if not rows:
        names = "\n  ".join(row.name for row in ROWS)
        raise UserError(f"--only={options.only}: no such row; there are\n  {names}")
    known = _read(options.output)
    if options.output:
        open(options.output, "a", encoding="utf-8").close()  # rather now than after minutes
    results = []
    for number, row in enumerate(rows, 1):
        if row.name not in known or known[row.name]["versions"] != versions():
            print(f"{number}/{len(rows)} {row.name}", file=sys.stderr, flush=True)
            known[row.name] = compile_row(row)
            if options.output:
                with open(options.output, "a", encoding="utf-8") as f:
                    f.write(json.dumps({"name": row.name, **known[row.name]}) + "\n")
        results.append((row, known[row.name]))
    print(markdown(results))
    return 0


def _read(path: str | None) -> dict[str, dict[str, Any]]:
    if not path or not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as f:
            lines = {line["name"]: line for line in map(json.loads, f)}
        markdown([(row, lines[row.name]) for row in ROWS if row.name in lines])
        return lines
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not what --output writes ({e}); give another file") from e


if __name__ == "__main__":
    sys.exit(main())
