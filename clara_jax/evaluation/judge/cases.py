"""What a judge is asked: answers of runs with what they were read from, paraphrases read back.

Results hold the beginnings of documents only. The judge reads them whole: the records are opened
again as the evaluation says, and compared with its questions.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from clara_jax import files
from clara_jax.config import Config, Eval, with_options
from clara_jax.data import records
from clara_jax.data.records import QaRecord
from clara_jax.endpoint.prompts import Kind, numbered
from clara_jax.errors import UserError
from clara_jax.evaluation import candidates, joint, scp
from clara_jax.evaluation.evaluated import Run

OWN = pathlib.Path(__file__).parent / "prompts" / "v1"
# The prompts; the words of the verdicts are the only ones that a reply may have there.
KINDS = {
    "support": Kind(
        ("documents", "question", "answer"),
        {"support": ("supported", "contradicted", "absent"), "reason": str},
    ),
    "equivalence": Kind(
        ("question", "accepted", "answer"),
        {"equivalence": ("equivalent", "different"), "reason": str},
    ),
    "faithfulness": Kind(
        ("reference", "text"),
        {
            "faithfulness": ("faithful", "unfaithful"),
            "completeness": ("complete", "incomplete"),
            "wrong": [str],
            "left_out": [str],
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An answer or a paraphrase."""

    asked: dict[str, dict[str, str]]  # the places of each prompt that is to be sent, by its name
    told: dict[str, Any]  # what the result says of it beside the verdicts
    # replies that nobody needs to be asked for, by the prompt's name
    known: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def key(self, judge: Any) -> str:
        """What the replies depend on, hashed: the same case of two runs is judged once.

        Args:
            judge: what tells judges apart, as JSON.
        """
        return records.digest(json.dumps([judge, self.asked], sort_keys=True)).hex()


def answers(run: Run, condition: str, count: int, sources: str = "") -> list[Case]:
    """The answers of a run under a condition, each with the documents that it was read from.

    An empty answer is not asked about: it is absent and different.

    Args:
        run: an evaluated one.
        condition: of the evaluation.
        count: most answers, from the start; 0: all.
        sources: where the evaluation's records are now; empty: where they were.

    Raises:
        UserError: there is no such condition, it had no documents, or the records are not to be
            had.
    """
    if condition not in run.result["conditions"]:
        raise UserError(
            f"{run.workdir}: no condition {condition!r} was evaluated; there are "
            f"{', '.join(run.result['conditions'])}"
        )
    given = _read(run, condition, sources)
    found = []
    for line, documents in zip(run.lines[: count or None], given, strict=False):
        answer, accepted = line[condition], line.get("answers") or [line["answer"]]
        question = {"question": line["question"], "answer": answer}
        shown = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(documents, 1))
        asked = {
            "support": question | {"documents": shown},
            "equivalence": question | {"accepted": numbered(accepted)},
        }
        told = {
            "origin": line.get("origin"),
            **question,
            "answers": accepted,
            "exact_match": line["values"][condition]["exact_match"],
        }
        known = {"support": {"support": "absent"}, "equivalence": {"equivalence": "different"}}
        found.append(Case(asked, told) if answer.strip() else Case({}, told, known))
    return found


def paraphrases(path: str, count: int) -> dict[tuple[str, str], list[Case]]:
    """The paraphrases of a result of evaluation/fidelity, by run and side.

    An empty text is not asked about: it is no paraphrase, so unfaithful and incomplete.

    Args:
        path: of its JSON file.
        count: most of each side, from the start; 0: all.

    Raises:
        UserError: it is no such result, or holds no paraphrase.
    """
    try:
        runs = json.loads(files.read(path))["runs"]
        found = {
            (label, side): [_paraphrase(sample) for sample in each["samples"][: count or None]]
            for label, run in runs.items()
            for side, each in run.get("text", {}).items()
        }
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: no result of clara_jax.evaluation.fidelity ({e!r})") from e
    if not any(found.values()):
        raise UserError(f"{path}: no paraphrase read back; run fidelity with --parts=text")
    return found


def _paraphrase(sample: dict[str, str]) -> Case:
    reference, text = sample["reference"], sample["read back"]
    told = {"origin": sample.get("origin"), "read back": text}
    if text.strip():
        return Case({"faithfulness": {"reference": reference, "text": text}}, told)
    verdict = {"faithfulness": "unfaithful", "completeness": "incomplete"}
    return Case({}, told, {"faithfulness": verdict | {"wrong": [], "left_out": []}})


def _read(run: Run, condition: str, sources: str) -> Iterator[Sequence[str]]:
    """The documents of each answer, whole."""
    is_joint = "candidates" in run.result
    kind = "none"  # as the constant answer
    if is_joint and condition != joint.CONSTANT:
        kind = joint.CONDITIONS[condition].documents
    elif not is_joint:
        kind = scp.CONDITIONS[condition].documents
    if kind == "none":
        raise UserError(
            f"{run.workdir}: {condition} had no documents, so that nothing can support its "
            "answers; choose another --condition"
        )
    found = _records(run, is_joint, sources)
    predictions = run.result["predictions"]
    for number, (line, prediction) in enumerate(zip(run.lines, predictions, strict=False), 1):
        record = next(found, None)
        asked = line["question"], line["answer"]
        if record is None or (record.question, record.answers[0]) != asked:
            raise UserError(
                f"{run.workdir}: question {number} is not that of the records now (at "
                f"{record.origin if record else 'their end'}); evaluate again, or say with "
                "--sources where they are"
            )
        yield [record.documents[i] for i in _positions(record, prediction, kind)]


def _positions(record: QaRecord, prediction: dict[str, Any], kind: str) -> Sequence[int]:
    """Which of the record's documents an answer was read from."""
    if kind not in ("gold", "reasoner", *prediction.get("ranked", {})):
        return range(len(record.documents))  # all; in scp the only one
    chosen = prediction["chosen"]
    if kind == "reasoner":
        return chosen
    return (record.gold if kind == "gold" else prediction["ranked"][kind])[: len(chosen)]


def _records(run: Run, is_joint: bool, sources: str) -> Iterator[QaRecord]:
    """The records of an evaluation, one a question, in its order."""
    settings, config = run.result.get("settings"), run.config or Config()
    if not isinstance(settings, dict) or "holdout" not in settings:
        raise UserError(f"{run.workdir}: the result does not say on what; evaluate again")
    names = {field.name for field in dataclasses.fields(Eval)} & set(settings)
    options = Eval(**{name: settings[name] for name in names})
    values = {"eval": options, "data.holdout": settings["holdout"]}
    values["stage"] = "e2e" if is_joint else "scp"  # the form of the records
    if sources:  # without eval.sources the evaluation took the dev side of the others
        values["eval.sources" if options.sources else "data.sources"] = sources
    source = candidates.open_questions(with_options(config, values))
    if is_joint:
        return (source[i] for i in range(len(source)))
    return (r for record in scp.qa_records(source) for r in records.questions_of(record))
