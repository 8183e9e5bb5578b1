"""NarrativeQA as records of ours, for long documents: `--documents` of the fidelity command.

    python -m clara_jax.data.importers.narrativeqa FOLDER --set=test --output=narrative.jsonl

FOLDER is a copy of the data set's repository: documents.csv (titles), qaps.csv (questions with two
answers each) and third_party/wikipedia/summaries.csv. The document of a record is the summary, some
600 words, or with --stories=FOLDER the whole story, from the files ID.content that the data set's
download script writes; HTML's tags are taken out, stories that are not there are left out.
"""

import argparse
import csv
import html
import os
import re
import sys
from collections.abc import Iterator, Sequence

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError, command
from clara_jax.text.chunks import whole

SETS = ("train", "valid", "test")
_HIDDEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def convert(folder: str, part: str, stories: str = "") -> Iterator[dict]:
    """Records of the scp form, one a document with all its questions.

    Args:
        folder: with the data set's tables.
        part: of SETS.
        stories: folder of the whole texts; empty: summaries.

    Raises:
        UserError: a table cannot be read or lacks a column, or no document of the set is there.
    """
    titles = dict(_rows(folder, "documents.csv", part, ("document_id", "wiki_title")))
    questions: dict[str, list[tuple[str, ...]]] = {}
    columns = ("document_id", "question", "answer1", "answer2")
    for document, *texts in _rows(folder, "qaps.csv", part, columns):
        question, first, second = (text.strip() for text in texts)
        if question and first:
            questions.setdefault(document, []).append((question, first, second))
    if stories:
        texts = ([document, _story(stories, document)] for document in questions)
    else:
        table = os.path.join("third_party", "wikipedia", "summaries.csv")
        texts = _rows(folder, table, part, ("document_id", "summary"))
    empty = True
    for document, text in texts:
        pairs, text = questions.get(document, []), " ".join(text.split())
        if pairs and text:
            empty = False
            title = " ".join(titles.get(document, "").split())
            yield {
                "data_type": "qa",
                "question": [question for question, _, _ in pairs],
                "answers": [first for _, first, _ in pairs],
                "aliases": [[second] if second else [] for _, _, second in pairs],
                "docs": [whole(title, text)],
            }
    if empty:
        raise UserError(f"{stories or folder}: no document of the set {part} with questions")


def _rows(folder: str, name: str, part: str, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """Columns of the rows of one set."""
    path = os.path.join(folder, name)
    csv.field_size_limit(2**30)  # summaries are longer than csv's own limit
    try:
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            if missing := {"set", *columns} - set(reader.fieldnames or ()):
                raise UserError(f"{path}: has no column {min(missing)}; is this NarrativeQA's?")
            for row in reader:
                if row["set"] == part:
                    yield [row[column] or "" for column in columns]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', '') or e})") from e


def _story(folder: str, document: str) -> str:
    path = os.path.join(folder, f"{document}.content")
    if not os.path.exists(path):
        return ""
    text = files.read(path)
    if _TAG.search(text):
        text = html.unescape(_TAG.sub(" ", _HIDDEN.sub(" ", text)))
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.data.importers.narrativeqa",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("folder", help="a copy of the data set's repository")
    parser.add_argument("--set", choices=SETS, default="test", help="(default %(default)s)")
    parser.add_argument("--stories", default="", help="folder of ID.content files")
    parser.add_argument("--output", default="narrativeqa.jsonl", help="(default %(default)s)")
    args = parser.parse_args(argv)
    values = list(convert(args.folder, args.set, args.stories))
    for number, value in enumerate(values, 1):
        records.parse_scp(value, f"{args.folder}: record {number}")
    try:
        records.write(args.output, values)
    except OSError as e:
        raise UserError(f"{args.output}: cannot be written ({e.strerror})") from e
    questions = sum(len(value["question"]) for value in values)
    print(f"{args.output}: {len(values)} documents, {questions} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
