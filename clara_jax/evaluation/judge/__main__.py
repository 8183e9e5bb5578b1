r"""Faithfulness by an LLM as judge, at any OpenAI-compatible endpoint; optional.

    python -m clara_jax.evaluation.judge runs/a runs/b fidelity.json \
        --base_url=http://127.0.0.1:8000/v1 --model=NAME --output=judge

judges the answers of each run's newest evaluation (is an answer supported by the documents that it
was read from? is it equivalent to an accepted one?) and the paraphrases in a result of
clara_jax.evaluation.fidelity (is the text that was read back faithful, and complete?). It writes
OUTPUT.md and OUTPUT.json: shares with 95 % intervals, every verdict with the judge's reason, and
how often the judge agrees with exact match. Verdicts are few fixed words; a reply without one is
asked for again and then counts as not judged.

OUTPUT_replies keeps every reply of every judge, so that the same command goes on after whatever
ended it, and nothing is asked twice. The key is OPENAI_API_KEY. What the judge gets wrong these
numbers get wrong too: read some of its reasons.
"""

import argparse
import asyncio
import collections
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Synthesis
from clara_jax.endpoint import client as endpoint_lib
from clara_jax.endpoint.asker import Asker
from clara_jax.endpoint.client import Endpoint, Failed, Unavailable
from clara_jax.endpoint.prompts import Prompts
from clara_jax.endpoint.replies import Replies
from clara_jax.errors import INTERRUPTED, UserError, command
from clara_jax.evaluation import evaluated
from clara_jax.evaluation.judge import cases as cases_lib
from clara_jax.evaluation.judge import tables
from clara_jax.evaluation.judge.cases import KINDS, Case
from clara_jax.progress import Progress

LEFT = 1  # exit code where, as after INTERRUPTED, the same command has to be run again
_PREFIX = "config.synthesis."  # of the options' names in messages; here they are flags
_FLAGS = {
    "base_url": "of the endpoint, such as http://127.0.0.1:8000/v1; default: OPENAI_BASE_URL",
    "model": "the judge's name there",
    "concurrency": "requests in flight",
    "max_tokens": "most of a reply",
    "timeout": "seconds for a reply",
    "retries": "of a request after an error, with backoff",
    "prompts": "folder with prompts of your own",
}


def judge(
    answers: dict[str, tuple[str, list[Case]]],
    paraphrases: dict[tuple[str, str], list[Case]],
    options: Synthesis,
    folder: str,
) -> tuple[dict[str, Any], collections.Counter[str]]:
    """Asks about all cases that no earlier run has asked about.

    Args:
        answers: condition and cases of each run.
        paraphrases: cases by run and side.
        options: the endpoint, the judge's name, and how to ask.
        folder: keeps the replies.

    Returns:
        The result, and why cases are left undone, with their numbers.

    Raises:
        UserError: the endpoint is not there, or refuses; or the folder holds something else.
    """
    url, prompts = endpoint_lib.address(options), Prompts(options, KINDS, cases_lib.OWN)
    # In the keys, not in the basis: another judge may use the same folder.
    own = [options.model, options.max_tokens, prompts.hash]
    groups = [*(cases for _, cases in answers.values()), *paraphrases.values()]
    with Replies(folder, {"replies of": "clara_jax.evaluation.judge"}) as store:
        distinct = {case.key(own): case for cases in groups for case in cases if case.asked}
        left = asyncio.run(_work(distinct, options, prompts, store))

        def replies(cases: Sequence[Case]) -> list[tables.Replies]:
            return [_reply(case, case.key(own), store) for case in cases]

        found: dict[str, Any] = {
            "judge": {
                "model": options.model,
                "endpoint": endpoint_lib.host(url),
                "prompts": {"version": prompts.version, "sha256": prompts.hash},
            },
            "answers": {
                label: {"condition": name} | tables.of_answers(cases, replies(cases))
                for label, (name, cases) in answers.items()
            },
            "paraphrases": {},
        }
        for (label, side), cases in paraphrases.items():
            numbers = tables.of_paraphrases(cases, replies(cases))
            found["paraphrases"].setdefault(label, {})[side] = numbers
    return found, left


async def _work(
    cases: dict[str, Case], options: Synthesis, prompts: Prompts, store: Replies
) -> collections.Counter[str]:
    """Judges what the store does not hold; returns why some could not be, with their numbers."""
    left: collections.Counter[str] = collections.Counter()
    done = sum(key in store for key in cases)
    progress = Progress(len(cases), "judging", done)
    todo = (item for item in cases.items() if item[0] not in store)

    async def worker(items: Iterator[tuple[str, Case]], endpoint: Endpoint) -> None:
        nonlocal done
        for key, case in items:
            try:
                result = await _ask(case, Asker(key, endpoint, store, prompts, options, seed=0))
            except Unavailable as e:
                left[str(e)] += 1
                continue
            store.finish(key, result)
            done += 1
            progress.update(done, f"{left.total()} left")

    async with Endpoint(options, KINDS) as endpoint:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(options.concurrency):
                    group.create_task(worker(todo, endpoint))
        except ExceptionGroup as e:
            raise e.exceptions[0] from e
        finally:
            progress.close()
    return left


async def _ask(case: Case, ask: Asker) -> dict[str, Any]:
    """The reply to each prompt of a case, or why there is none."""
    found: dict[str, Any] = {}
    for name, places in case.asked.items():
        try:
            found[name] = await ask(name, name, **places)
        except Failed as e:
            found[name] = {"error": str(e).replace(_PREFIX, "--")}
    return found


def _reply(case: Case, key: str, store: Replies) -> dict[str, Any]:
    if not case.asked:
        return case.known
    error = {"error": "left undone by errors of the endpoint"}
    return store.result(key) or dict.fromkeys(case.asked, error)


def _gather(
    names: Iterable[str], condition: str, count: int, sources: str
) -> tuple[dict[str, tuple[str, list[Case]]], dict[tuple[str, str], list[Case]]]:
    """All cases of runs, and of files of fidelity, which end in .json."""
    names = list(dict.fromkeys(files.normal(name) for name in names))
    paraphrases: dict[tuple[str, str], list[Case]] = {}
    for name in names:
        if name.endswith(".json"):
            found = cases_lib.paraphrases(name, count)
            if both := found.keys() & paraphrases.keys():
                raise UserError(
                    f"{name}: run {min(both)[0]!r} is in another of the files too; judge them one "
                    "by one"
                )
            paraphrases |= found
    workdirs = [name for name in names if not name.endswith(".json")]
    answers = {}
    for run in evaluated.load(workdirs) if workdirs else ():
        name = condition or run.own
        answers[run.label] = name, cases_lib.answers(run, name, count, sources)
    return answers, paraphrases


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.judge", description=__doc__.splitlines()[0]
    )
    add, defaults = parser.add_argument, Synthesis()
    add("runs", nargs="+", metavar="RUN", help="workdir of an evaluated run, or fidelity's .json")
    for name, told in _FLAGS.items():
        default = getattr(defaults, name)
        told += f" (default {default})" if default else ""
        add(f"--{name}", type=type(default), default=default, help=told)
    add("--condition", default="", help="whose answers; default: those of the model itself")
    add("--count", type=int, default=0, help="most of each run, from the start; 0: all")
    add("--sources", default="", help="of the evaluation's records, if they are elsewhere now")
    add("--output", default="judge", help="start of the files' names (default %(default)s)")
    args = parser.parse_args(argv)
    if args.count < 0:
        parser.error("--count must be at least 0")
    if files.is_remote(args.output):
        raise UserError(f"{args.output}: --output must be a local name; copy the files from there")
    try:
        options = config_lib.freeze({"synthesis": {name: getattr(args, name) for name in _FLAGS}})
        endpoint_lib.address(options.synthesis)  # before files are read
        answers, paraphrases = _gather(args.runs, args.condition, args.count, args.sources)
        folder = f"{args.output}_replies"
        result, left = judge(answers, paraphrases, options.synthesis, folder)
    except UserError as e:
        raise UserError(str(e).replace(_PREFIX, "--")) from e
    except KeyboardInterrupt:
        print("clara_jax: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    text = tables.markdown(result)
    print(text)
    settings = {name: getattr(args, name) for name in ("runs", "condition", "count", "sources")}
    try:
        told = json.dumps(result | {"settings": settings}, indent=2, ensure_ascii=False)
        files.write(f"{args.output}.json", told)
        files.write(f"{args.output}.md", text + "\n")
    except OSError as e:
        raise UserError(f"{args.output}: cannot be written ({e.strerror})") from e
    print(f"written: {args.output}.md, {args.output}.json; replies: {folder}")
    if left:
        why = ", ".join(f"{n} {what}" for what, n in left.most_common(3)).replace(_PREFIX, "--")
        text = f"{left.total()} left undone by errors of the endpoint ({why})"
        print(f"clara_jax: {text}; run the same command again", file=sys.stderr)
    return LEFT if left else 0


if __name__ == "__main__":
    sys.exit(main())
