"""What each question of an evaluation got: a line of JSONL beside the result, and read back.

A line is a prediction of the result with the values of every metric, so that a paired test needs
neither the model nor a second scoring:

    {"question", "answers", "pos_index", …, "<condition>": its answer,
     "values": {condition: {"exact_match", "f1", "cover_exact_match"}},
     "retrieval": {ranking: {"recall@1", …}}}
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clara_jax import files
from clara_jax.corpus.search import retrieval
from clara_jax.errors import UserError
from clara_jax.evaluation import metrics, statistics

Line = dict[str, Any]
OWN = ("reasoner", "memory")  # conditions that are the model itself, as asked and as in scp


def lines(result: dict[str, Any]) -> list[Line]:
    """The predictions of a result, each with its values.

    Args:
        result: of an evaluation. In an old one, without all accepted answers and rankings, the
            first answer counts alone and `retrieval` is left out.
    """
    found = []
    for prediction in result["predictions"]:
        answers = prediction.get("answers") or [prediction["answer"]]
        line = {key: value for key, value in prediction.items() if key != "ranked"}
        line["values"] = {
            name: {m: v[0] for m, v in metrics.values([prediction[name]], [answers]).items()}
            for name in result["conditions"]
            if name in prediction
        }
        rankings = prediction.get("ranked", {})
        if gold := prediction.get("pos_index"):
            line["retrieval"] = {
                name: {m: v[0] for m, v in retrieval.values([order], [gold]).items()}
                for name, order in rankings.items()
            }
        found.append(line)
    return found


def write(result: dict[str, Any], path: str) -> None:
    """Writes the lines to a file; errors as in `files.write`."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(result))
    files.write(path, text)


def own(result: dict[str, Any]) -> str:
    """The condition that stands for the model itself: the first, where no usual one took place."""
    conditions = result["conditions"]
    return next(name for name in (*OWN, *conditions) if name in conditions)


def rows(found: Sequence[Line], condition: str) -> list[dict[str, float]]:
    """Every metric of each line under a condition, and of the ranking of that name.

    Questions whose gold documents are unknown have no recall.
    """
    return [
        {**line["values"][condition], **line.get("retrieval", {}).get(condition, {})}
        for line in found
    ]


def values(found: Sequence[Line], condition: str) -> dict[str, list[float]]:
    """The metrics of `rows`, each of the lines that have it."""
    each = rows(found, condition)
    return {
        n: [row[n] for row in each if n in row] for n in dict.fromkeys(n for r in each for n in r)
    }


def groups(found: Sequence[Line]) -> list[str]:
    """What was drawn with each line (`statistics.interval`): scp asks several of one document."""
    return [
        f"{n}" if "pos_index" in line else str(line.get("document") or line.get("origin") or n)
        for n, line in enumerate(found)
    ]


class Mean(NamedTuple):
    """A metric's mean over the lines that have it, with its 95 % interval and their number."""

    mean: float
    low: float
    high: float
    lines: int

    def __str__(self) -> str:
        return with_interval(self.mean, (self.low, self.high))


def with_interval(mean: float, ends: Sequence[float]) -> str:
    """For tables."""
    return "{:.3f} ({:.3f}-{:.3f})".format(mean, *ends)


def mean(found: Sequence[Line], condition: str, metric: str) -> Mean | None:
    """The mean of a metric of `rows`; None where no line has it."""
    each = zip(rows(found, condition), groups(found), strict=True)
    has = [(row[metric], group) for row, group in each if metric in row]
    if not has:
        return None
    scores, drawn = zip(*has, strict=True)
    return Mean(float(np.mean(scores)), *statistics.interval(scores, drawn), len(scores))


def with_golds(found: Sequence[Line]) -> int:
    """The number of questions that name their gold documents: recall is over these."""
    return sum(bool(line.get("retrieval")) for line in found)


def by_question(found: Sequence[Line]) -> dict[tuple[str, str, int], Line]:
    """The lines by what tells questions apart, whatever folder their file was read from."""
    seen: dict[tuple[str, str, int], Line] = {}
    for line in found:
        number = 0
        while (line["question"], line["answer"], number) in seen:
            number += 1
        seen[line["question"], line["answer"], number] = line
    return seen


def of(result_path: str | os.PathLike[str], result: dict[str, Any]) -> list[Line]:
    """The lines beside a result's file, or made from it where an older version wrote none.

    Raises:
        UserError: the file is damaged, or lacks questions that the result has.
    """
    path = f"{os.fspath(result_path)}l"
    try:
        text = files.read(path) if files.path(path).exists() else ""
        found = [json.loads(row) for row in text.split("\n") if row] or lines(result)
        wanted = result.get("questions", len(found))
        if len(found) != wanted:
            raise ValueError(f"{len(found)} lines of {wanted} questions")
        for number, line in enumerate(found, 1):
            _check(line, own(result), number)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: damaged ({e!r}); run --mode=evaluate again") from e


def _check(line: Line, condition: str, number: int) -> None:
    """Raises ValueError, or KeyError, where a line is not as the module describes it."""
    scored = [line["values"][condition], *line["values"].values()]
    scored += line.get("retrieval", {}).values()
    numbers = [value for each in scored for value in each.values()]
    texts = [line["question"], line["answer"], *line.get("answers", ()), *line.get("documents", ())]
    texts += [line[name] for name in line["values"]]
    places = [*line.get("pos_index", ()), *line.get("chosen", ())]
    for kinds, each in ((int | float, numbers), (str, texts), (int, places)):
        for value in each:
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"line {number}: {value!r} is of another kind")
