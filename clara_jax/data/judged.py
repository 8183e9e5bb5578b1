"""Questions whose documents are known, to measure a search by: lines of JSON, or a BEIR folder.

{"question": …, "docs": [text, …], "pos_index": [0]}    the records of the later stages
{"question": …, "ids": ["notes-17"]}                    perhaps with an `id` of its own
FOLDER[:split]    queries.jsonl and qrels/split.tsv; its corpus.jsonl is for --documents
"""

import csv
import dataclasses
import hashlib
import os
from collections.abc import Iterator

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError, reason

_SPLIT = "dev"  # alphas are not fitted on what a test reports


@dataclasses.dataclass(frozen=True)
class Judged:
    """A question and the documents that should be found for it, by their ids or their texts."""

    id: str
    question: str
    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def read(name: str) -> tuple[list[Judged], str]:
    """The questions of a file or folder that name a document, and a digest of what was read.

    Raises:
        UserError: it cannot be read, or holds no such question.
    """
    folder, _, split = name.rpartition(":") if not os.path.exists(name) else (name, "", "")
    paths, judged = [name], _lines(name)
    if os.path.isdir(folder):
        paths = [os.path.join(folder, "queries.jsonl"), _qrels(folder, split or _SPLIT)]
        judged = _beir(*paths)
    found = [each for each in judged if each.ids or each.texts]
    if not found:
        raise UserError(f"{name}: no question names its documents, by pos_index, ids or qrels")
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(files.path(path).read_bytes())
    return found, digest.hexdigest()


def _lines(path: str) -> Iterator[Judged]:
    for number, (value, origin) in enumerate(records.lines(path)):
        question, ids = _text(value, "question", origin), value.get("ids", [])
        texts, gold = value.get("docs", []), value.get("pos_index", [])
        try:
            texts = tuple(texts[place] for place in gold if place >= 0)
        except (TypeError, IndexError, KeyError) as e:
            raise UserError(f"{origin}: pos_index must list positions in docs, not {gold!r}") from e
        if not isinstance(ids, list) or not all(isinstance(x, str) for x in (*ids, *texts)):
            raise UserError(f"{origin}: ids and docs must be lists of texts")
        yield Judged(str(value.get("id", number)), question, tuple(ids), texts)


def _beir(queries: str, qrels: str) -> Iterator[Judged]:
    relevant: dict[str, list[str]] = {}
    try:
        with open(files.local(qrels), encoding="utf-8", newline="") as f:
            for row in list(csv.reader(f, delimiter="\t"))[1:]:  # the first line names the columns
                query, document, grade = row
                if int(grade) > 0:
                    relevant.setdefault(query, []).append(document)
    except (ValueError, csv.Error, OSError) as e:
        raise UserError(f"{qrels}: not lines of query-id, corpus-id, score ({reason(e)})") from e
    for value, origin in records.lines(queries):
        name = _text(value, "_id", origin)
        if name in relevant:
            yield Judged(name, _text(value, "text", origin), tuple(relevant[name]))


def _qrels(folder: str, split: str) -> str:
    path = os.path.join(folder, "qrels", f"{split}.tsv")
    if not os.path.exists(path):
        there = sorted(p.stem for p in files.path(folder).glob("qrels/*.tsv"))
        raise UserError(
            f"{path}: not there; give {folder}:SPLIT, one of {', '.join(there) or 'qrels/*.tsv'}"
        )
    return path


def _text(value: dict, key: str, origin: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip() or not records.is_unicode(text):
        raise UserError(f"{origin}: {key} must be a text, not {text!a:.40}")
    return text
