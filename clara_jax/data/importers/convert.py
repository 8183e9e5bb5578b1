"""Ready data of others in our record forms.

    python -m clara_jax.data.importers.convert KIND INPUT OUTPUT

KIND is `clara` (the files of apple/CLaRa_multi_stage), `teacher` (questions, retrieved documents
and a teacher's answer, as PISCO and COCOM train on), `squad` (the nested JSON, versions 1 and 2,
or JSONL with one question a line), or one of public_sets.py: `hotpotqa` (2Wiki too),
`musique`, `nq` or `pubmedqa`. It prints how many records were written, and what was left out and
why.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.data.importers import public_sets
from clara_jax.errors import UserError, command
from clara_jax.text.chunks import whole

UNANSWERABLE = "questions without an answer"
NO_DOCUMENT = "questions without documents"
EMPTY = "records with an empty question, answer or document"

_QUESTION_KEYS = ("question", "query", "content")
_DOCUMENT_KEYS = ("docs", "doc", "documents", "context", "contexts")
# The teacher's words before the reference, which instruct data also has.
_LABEL_KEYS = ("mistral_label", "teacher_answer", "label", "answer", "answers", "gold_answer")

Left = collections.Counter[str]
Row = tuple[dict[str, Any], str]
Importer = Callable[[str, Left], Iterator[Row]]


def clara(path: str, left: Left) -> Iterator[Row]:
    """The release's files of all stages, their documents as title, line end and text."""
    for value, origin in records.lines(path):
        if isinstance(value.get("docs"), list):
            value = value | {"docs": [_plain(document) for document in value["docs"]]}
        if value.get("data_type") == "qa" and isinstance(value.get("question"), str):
            value = {key: v for key, v in value.items() if key != "data_type"}  # of later stages
        elif records.is_scp(value) and isinstance(value.get("answers"), str):
            value = value | {"answers": [value["answers"]]}
        yield value, origin


def teacher(path: str, left: Left) -> Iterator[Row]:
    """Questions with retrieved documents and the answer that a teacher gave to them."""
    for value, origin in records.lines(path):
        question = _first(value, _QUESTION_KEYS, origin)
        documents = _first(value, _DOCUMENT_KEYS, origin)
        answer = _first(value, _LABEL_KEYS, origin)
        documents = [documents] if isinstance(documents, str) else documents
        if isinstance(documents, list):
            documents = [_joined(document) for document in documents]
        record = {"question": question, "docs": documents, "answer": answer}
        for key in ("pos_index", "gold_answer"):
            if value.get(key) is not None and key not in record:
                record[key] = value[key]
        yield record, origin


def squad(path: str, left: Left) -> Iterator[Row]:
    """Paragraphs with all their questions, as scp records; aliases are kept."""
    if path.lower().endswith(".jsonl"):
        yield from _flat(path, left)
        return
    try:
        value = json.loads(files.read(path).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e})") from e
    articles = value.get("data") if isinstance(value, dict) else None
    if not isinstance(articles, list):
        raise UserError(f"{path}: has no list `data`; one question a line needs the ending .jsonl")
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{path}: data[{a}]")):
            origin = f"{path}: data[{a}].paragraphs[{p}]"
            questions = _list(paragraph, "qas", origin)
            yield from _paragraph(article.get("title"), paragraph, questions, left, origin)


def _flat(path: str, left: Left) -> Iterator[Row]:
    """Rows of one question each; those of one paragraph that follow each other are one record."""

    def context(row: Row) -> str:
        value, origin = row
        if not isinstance(value.get("context"), str):
            raise UserError(f"{origin}: context must be a text")
        return value["context"]

    for _, group in itertools.groupby(records.lines(path), context):
        values, origins = zip(*group, strict=True)
        yield from _paragraph(values[0].get("title"), values[0], values, left, origins[0])


def _paragraph(
    title: Any, value: dict[str, Any], rows: Sequence[Any], left: Left, origin: str
) -> Iterator[Row]:
    questions, answers, aliases = [], [], []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise UserError(f"{origin}: question {i} must be an object with a text `question`")
        texts = _answers(row.get("answers"), f"{origin}: question {i}")
        if row.get("is_impossible") or not texts:
            left[UNANSWERABLE] += 1
            continue
        questions.append(row["question"].strip())
        answers.append(texts[0])
        aliases.append(texts[1:])
    if not questions:
        return
    context = value.get("context")
    if not isinstance(context, str):
        raise UserError(f"{origin}: context must be a text")
    title = title.replace("_", " ").strip() if isinstance(title, str) else ""
    record = {
        "data_type": "qa",
        "question": questions,
        "answers": answers,
        "docs": [whole(title, " ".join(context.split()))],
    }
    yield record | ({"aliases": aliases} if any(aliases) else {}), origin


def _answers(value: Any, origin: str) -> list[str]:
    """Distinct texts of `[{text}]`, of `{text: []}`, of `[text]` or of one text."""
    if isinstance(value, dict):
        value = value.get("text")
    value = [value] if isinstance(value, str) else value or []
    texts: list[Any] = [v.get("text") if isinstance(v, dict) else v for v in _each(value)]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{origin}: answers must hold texts")
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _plain(document: Any) -> Any:
    return records.plain(document) if isinstance(document, str) else document


def _joined(document: Any) -> Any:
    if not isinstance(document, dict):
        return _plain(document)
    text = document.get("text", document.get("content", document.get("contents")))
    return whole(document.get("title") or "", text) if isinstance(text, str) else text


def _first(value: dict[str, Any], keys: tuple[str, ...], origin: str) -> Any:
    for key in keys:
        if value.get(key) is not None:
            return value[key]
    raise UserError(f"{origin}: has none of {', '.join(keys)}")


def _list(value: Any, key: str, origin: str) -> list[Any]:
    values = value.get(key) if isinstance(value, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{origin}: {key} must be a list")
    return values


def _benchmark(kind: str, path: str, left: Left) -> Iterator[Row]:
    for row in public_sets.read(kind, path):
        if row is None:
            left[UNANSWERABLE] += 1
        else:
            yield row


KINDS: dict[str, Importer] = {"clara": clara, "teacher": teacher, "squad": squad} | {
    kind: functools.partial(_benchmark, kind) for kind in public_sets.KINDS
}


def convert(kind: str, source: str, output: str) -> tuple[int, Left]:
    """Writes a file of records; returns their number, and what was left out.

    Raises:
        UserError: a record is not of this kind, with its line; nothing is written then.
    """
    if source.lower().endswith(".parquet"):
        raise UserError(f"{source}: Parquet is not read; write it as JSONL first")
    if os.path.exists(output) and os.path.samefile(source, output):
        raise UserError(f"{output}: is the input too; give another name")
    left: Left = collections.Counter()
    written = 0
    with files.whole_file(output) as f:
        for value, origin in KINDS[kind](source, left):
            if reason := _unfit(value):
                left[reason] += 1
                continue
            parse = records.parse_scp if records.is_scp(value) else records.parse_qa
            parse(value, origin)
            f.write(json.dumps(value, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise UserError(f"{source}: no record of kind {kind} in it")
    return written, left


def _unfit(value: dict[str, Any]) -> str:
    """Why a record of the right form is of no use; empty where it is."""
    documents = value.get("docs", value.get("context", value.get("content")))
    if documents == []:
        return NO_DOCUMENT
    keys = ["answers"]
    if value.get("data_type") != "paraphrase":
        keys += ["question", "answer"]
    texts = [text for key in keys if key in value for text in _each(value[key])]
    texts += _each(documents) if records.is_scp(value) else []
    return EMPTY if any(isinstance(text, str) and not text.strip() for text in texts) else ""


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.data.importers.convert", description=__doc__.splitlines()[0]
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("input", help="file of the data set")
    parser.add_argument("output", help="JSONL file to write")
    args = parser.parse_args(argv)
    written, left = convert(args.kind, args.input, args.output)
    print(f"{args.output}: {written} records")
    for reason, count in left.items():
        print(f"left out: {count} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
