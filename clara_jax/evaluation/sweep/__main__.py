"""A table of runs that differ in one option or a few: trained, evaluated and collected.

    python -m clara_jax.evaluation.sweep configs/sweep.py:quickstart --output=sweeps/quickstart
        [--dry_run] [--only='rate=*,base'] [--set=NAME=VALUE …]

What is done is not done again: a run that was killed goes on where it stopped. A run that fails
stays in the table with its reason and is tried again next time. OUTPUT/sweep.md and sweep.json hold
the table, sweep_*.png are pictures of it, OUTPUT/runs has the workdirs. --dry_run prints the runs
with parameters and cost; it needs no weights and no accelerator, so that it serves for models that
no machine at hand can hold.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from clara_jax import files
from clara_jax.aot.chips import CHIPS
from clara_jax.errors import UserError, command, reason
from clara_jax.evaluation import evaluate, evaluated, predictions
from clara_jax.evaluation.sweep import draw, plan
from clara_jax.evaluation.sweep.cost import cost_table
from clara_jax.evaluation.sweep.plan import Planned, Stage
from clara_jax.runs.checkpoint import has_checkpoint, newest_step
from clara_jax.runs.workdir import newest_path
from clara_jax.text import markdown
from clara_jax.training import train

METRICS = {
    "f1": "F1",
    "exact_match": "EM",
    "cover_exact_match": "cover EM",
    "recall@1": "recall@1",
    "recall@3": "recall@3",
    "recall@5": "recall@5",
    "mrr": "MRR",
}
Record = dict[str, Any]


def carry_out(planned: Sequence[Planned], output: str) -> int:
    """Trains and evaluates what is not done; returns 0, 1 if a run failed, or 128 + signal.

    Every run leaves OUTPUT/results/NAME.json, whether done or failed.
    """
    failed: dict[str, str] = {}  # workdirs of stages, with reasons
    files.make_folder(os.path.join(output, "results"))
    for run in planned:
        recorded(run, output)  # damaged, it is told before any work
    for run in planned:
        if (recorded(run, output) or {}).get("status") == "done":
            print(f"{run.name}: done already", file=sys.stderr)
            continue
        print(f"{run.name}: {', '.join(s.workdir for s in run.stages)}", file=sys.stderr)
        begun = time.monotonic()
        record: Record = {"name": run.name, "key": run.key}
        try:
            for stage in run.stages:
                if stage.workdir in failed:
                    raise UserError(failed[stage.workdir])
                if code := _trained(stage, failed):
                    return code
            evaluate.run(run.evaluated, run.stages[-1].workdir)
            record |= {"status": "done", **_numbers(run.stages[-1])}
        except Exception as e:  # whatever it is, the other runs go on
            if not isinstance(e, UserError):
                logging.exception("%s failed", run.name)
            text = str(e) if isinstance(e, UserError) else reason(e)
            print(f"{run.name} failed: {text}", file=sys.stderr)
            record |= {"status": "failed", "error": text}
        record["seconds"] = time.monotonic() - begun
        files.write(_record_path(run, output), json.dumps(record, indent=2))
    return int(any((recorded(run, output) or {}).get("status") == "failed" for run in planned))


def _trained(stage: Stage, failed: dict[str, str]) -> int:
    """Trains a stage that has not come to its end; returns the exit code of the training."""
    config, workdir = stage.config, stage.workdir
    if has_checkpoint(workdir) and newest_step(workdir) >= config.train.steps:
        return 0
    try:
        return train.train(config, workdir)
    except Exception as e:
        failed[workdir] = f"{config.stage} failed: {reason(e)}"
        raise


def _numbers(stage: Stage) -> Record:
    """Of the evaluation just written: means and intervals of the model itself."""
    path = newest_path(stage.workdir)
    assert path is not None  # it was just written
    found = evaluated.read(stage.workdir, path, "")
    every = ((name, predictions.mean(found.lines, found.own, name)) for name in found.values)
    means = {name: mean for name, mean in every if mean is not None}
    return {
        "workdir": stage.workdir,
        "evaluation": os.path.basename(path),
        "stage": stage.config.stage,
        "questions": found.result["questions"],
        "rate": found.result["compression_rate"],
        "metrics": {name: each.mean for name, each in means.items()},
        "intervals": {name: [each.low, each.high] for name, each in means.items()},
    }


def _record_path(run: Planned, output: str) -> str:
    return os.path.join(output, "results", f"{run.name.replace('/', '_')}.json")


def recorded(run: Planned, output: str) -> Record | None:
    """What an earlier call left of a run, if it was the same run.

    Raises:
        UserError: it is damaged.
    """
    path = _record_path(run, output)
    if not files.path(path).exists():
        return None
    try:
        record = json.loads(files.read(path))
        if record["status"] == "done" and not {*record["metrics"]} <= {*record["intervals"]}:
            raise ValueError("metrics without intervals")
        return record if record["key"] == run.key else None
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: damaged ({e!r}); remove it") from e


def _row(run: Planned, output: str) -> Record:
    """What is known of a run; what is damaged ends no table."""
    try:
        known = recorded(run, output)
    except UserError as e:
        print(e, file=sys.stderr)
        path = os.path.relpath(_record_path(run, output), output)
        known = {"name": run.name, "status": f"damaged: remove {path}", "key": run.key}
    return known or {"name": run.name, "status": "not run", "key": run.key}


def test_against_base(planned: Sequence[Planned], records: Sequence[Record]) -> None:
    """Adds `same_questions` to records and, where they are the base's, `less_base`: F1 less its.

    Args:
        planned: all runs, the base first.
        records: of these, in the same order.
    """
    base = None
    for run, record in zip(planned, records, strict=True):
        if "evaluation" not in record or (base and record["key"] == planned[0].key):
            continue  # not done, done before there were tests, or the base under another name
        workdir = run.stages[-1].workdir
        try:
            found = evaluated.read(workdir, os.path.join(workdir, "eval", record["evaluation"]), "")
        except UserError as e:
            print(f"{run.name} is not tested against the base: {e}", file=sys.stderr)
            continue
        if run is planned[0]:
            base = found
        elif base:
            count = len(evaluated.shared(found, base)[0])
            record["same_questions"] = count == len(found.lines) == len(base.lines)
            if record["same_questions"]:
                record["less_base"] = dataclasses.asdict(
                    evaluated.paired(found, base, ("f1",))["f1"][0]
                )


def table(
    planned: Sequence[Planned],
    output: str,
    paper: Mapping[str, Mapping[str, float]],
    comparable: bool = False,
    source: str = "",
) -> tuple[str, list[Record]]:
    """The runs as Markdown and as JSON, in the sweep's order.

    Args:
        planned: all runs of the sweep.
        output: its folder.
        paper: numbers of the paper by run and metric.
        comparable: whether ours compare with them.
        source: of these numbers.
    """
    records: list[Record] = [{**_row(run, output), "at": dict(run.at)} for run in planned]
    test_against_base(planned, records)
    known = {name for record in records for name in record.get("metrics", {})}
    shown = [name for name in METRICS if name in known]
    beside = [name for name in METRICS if any(name in numbers for numbers in paper.values())]
    tested = any("less_base" in record for record in records)
    head = ["run", "stage", "rate", *(METRICS[name] for name in shown)]
    head += ["F1 − base (p)"] * tested
    mark = "comparable" if comparable else "not comparable"
    head += [f"{METRICS[name]}, paper ({mark})" for name in beside] + ["minutes", "status"]
    cells = []
    for record in records:
        numbers, intervals = record.get("metrics", {}), record.get("intervals", {})
        row = [record["name"], record.get("stage", "")]
        row.append(f"{record['rate']:.1f}x" if "rate" in record else "")
        row += [
            predictions.with_interval(numbers[n], intervals[n]) if n in numbers else ""
            for n in shown
        ]
        if tested:
            row.append(draw.less_base(record))
        theirs = paper.get(record["name"], {})
        if theirs:
            record["paper"] = {"comparable": comparable, **theirs}
        row += [f"{theirs[n]:g}" if n in theirs else "" for n in beside]
        row.append(f"{record['seconds'] / 60:.1f}" if "seconds" in record else "")
        error = record.get("error")
        cells.append([*row, f"failed: {error}" if error else record["status"]])
    text = markdown.table(head, cells)
    if source:
        text += f"\n\nPaper: {source}."
    if tested:
        text += (
            "\n\nF1 − base: of runs that answered the base's questions, paired by question; p is "
            "that of Fisher's randomisation test, each run by itself."
        )
    return text, records


def _options(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as options; a value that is JSON is what it says, any other is a text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UserError(f"--set={text}: must be NAME=VALUE, such as e2e:train.steps=100")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", help="file with get_sweep, with an argument: FILE.py:NAME")
    parser.add_argument("--output", required=True, help="folder of the runs and the table")
    parser.add_argument("--dry_run", action="store_true", help="only print runs, parameters, cost")
    parser.add_argument("--only", default="", help="names of runs, with commas; * and ? match")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of all runs, as data.sources=x.jsonl or e2e:select.k=3",
    )
    parser.add_argument("--chip", choices=CHIPS, default="v5e", help="that --dry_run counts in")
    args = parser.parse_args(argv)
    sweep, folder = plan.load(args.config)
    output = files.absolute(os.path.expanduser(args.output))
    options = _options(args.set)
    planned = plan.expand(sweep, folder, output, options)
    chosen = plan.only(planned, args.only)
    if args.dry_run:
        print(cost_table(chosen, args.chip))
        return 0
    code = carry_out(chosen, output)
    comparable = plan.comparable(sweep, options)
    text, records = table(planned, output, sweep.paper, comparable, sweep.source)
    try:
        pictures = draw.draw(records, output)
    except UserError as e:
        pictures = []
        print(f"no pictures: {e}", file=sys.stderr)
    shown = "".join(f"\n![{name}]({name})\n" for name in pictures)
    files.write(os.path.join(output, "sweep.md"), f"{text}\n{shown}")
    files.write(os.path.join(output, "sweep.json"), json.dumps(records, indent=2))
    print(text)
    if pictures:
        print(f"\npictures: {', '.join(os.path.join(output, name) for name in pictures)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
