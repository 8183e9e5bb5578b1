"""Questions whose documents are known, to measure a search by: lines of JSON, or a BEIR folder.

{"question": …, "docs": [text, …], "pos_index": [0]}    the records of the later stages
{"question": …, "ids": ["notes-17"]}                    perhaps with an `id` of its own
FOLDER[:split]    queries.jsonl and qrels/split.tsv; its corpus.jsonl is for --documents
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError, reason

_SPLIT = "dev"  # no alpha is fitted on what a test reports


@dataclasses.dataclass(frozen=True)
class Judged:
    """A question and the documents that should be found for it."""

    id: str  # of the question
    question: str
    # how good each document is, from 1, by its id, or by the digest of its text
    gold: Mapping[str | bytes, int]


def read(name: str) -> tuple[list[Judged], str]:
    """The questions of a file or folder that name a document, and a digest of what was read.

    Raises:
        UserError: it cannot be read, or holds no such question.
    """
    folder, _, split = (name, "", "") if os.path.exists(name) else name.rpartition(":")
    paths, judged = [name], _lines(name)
    if os.path.isdir(folder):
        paths = [os.path.join(folder, "queries.jsonl"), _qrels(folder, split or _SPLIT)]
        judged = _beir(*paths)
    useful = [each for each in judged if each.gold]
    if not useful:
        raise UserError(f"{name}: no question names its documents, by pos_index, ids or qrels")
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(files.path(path).read_bytes())
    return useful, digest.hexdigest()


def _lines(path: str) -> Iterator[Judged]:
    for number, (value, origin) in enumerate(records.lines(path)):
        question, names = _text(value, "question", origin), value.get("ids", [])
        texts, places = value.get("docs", []), value.get("pos_index", [])
        for key, values, kind in (
            ("ids", names, str),
            ("docs", texts, str),
            ("pos_index", places, int),
        ):
            if not isinstance(values, list) or not all(isinstance(x, kind) for x in values):
                raise UserError(f"{origin}: {key} must be a list, not {values!a:.40}")
        if not all(0 <= place < len(texts) for place in places):
            raise UserError(f"{origin}: pos_index must list positions in docs, not {places}")
        gold = [*names, *(records.digest(texts[place]) for place in places)]
        yield Judged(str(value.get("id", number)), question, dict.fromkeys(gold, 1))


def _beir(queries: str, qrels: str) -> Iterator[Judged]:
    golds: dict[str, dict[str | bytes, int]] = {}
    try:
        for line in files.read(qrels).splitlines()[1:]:  # the first one names the columns
            query, document, grade = line.split("\t")
            if int(grade) > 0:
                golds.setdefault(query, {})[document] = int(grade)
    except (ValueError, OSError) as e:
        raise UserError(f"{qrels}: not lines of query-id, corpus-id, score ({reason(e)})") from e
    for value, origin in records.lines(queries):
        name = _text(value, "_id", origin)
        yield Judged(name, _text(value, "text", origin), golds.get(name, {}))


def _qrels(folder: str, split: str) -> str:
    path = os.path.join(folder, "qrels", f"{split}.tsv")
    if not os.path.exists(path):
        there = sorted(p.stem for p in files.path(folder).glob("qrels/*.tsv"))
        raise UserError(
            f"{path}: not there; give {folder}:SPLIT, one of {', '.join(there) or 'qrels/*.tsv'}"
        )
    return path


def _text(value: dict[str, Any], key: str, origin: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip() or not records.is_unicode(text):
        raise UserError(f"{origin}: {key} must be a text, not {text!a:.40}")
    return text
