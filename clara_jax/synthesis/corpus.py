"""Documents of any corpus, in pieces within the limit, each passage once, none of an evaluation."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging

from clara_jax.config import Config
from clara_jax.data import documents, records
from clara_jax.data.documents import Document
from clara_jax.errors import UserError, reason
from clara_jax.synthesis import duplicates
from clara_jax.text import chunks, sentences

_TABLES = (".json", ".csv", ".tsv", ".parquet", ".html", ".xml")  # no plain text, nor read here


@dataclasses.dataclass
class Counts:
    """What became of a corpus, for the manifest."""

    documents: int = 0  # that were read
    empty: int = 0  # of them, without text
    pieces: int = 0  # that the others were cut into
    exact: int = 0  # pieces left out as copies of an earlier one
    near: int = 0  # pieces left out as nearly that
    leaked: int = 0  # pieces left out because they occur in evaluation files
    kept: int = 0  # pieces that were given out


def read(names: str, config: Config, counts: Counts | None = None) -> Iterator[Document]:
    """The documents of a corpus in their order, streamed.

    Args:
        names: with commas between: a text file, whose paragraphs are documents (a heading of a .md
            file is the title of those below); a .jsonl file; tfds:name/split; hf:name/split; or a
            folder, whose .txt, .md and .jsonl files are read in the order of their names.
        config: `data.document_length` is the limit in tokens; the rest is in `synthesis`.
        counts: is filled while reading.

    Raises:
        UserError: something cannot be read, or holds no document; with its line.
    """
    counts = Counts() if counts is None else counts
    raw = _raw(names, config.data.tfds_dir)
    distinct = _distinct(_pieces(raw, config, counts), config, counts)
    for document in itertools.islice(distinct, config.synthesis.documents or None):
        counts.kept += 1
        yield document
    if not counts.documents:
        raise UserError(f"{names}: holds no document")
    logging.info("corpus %s: %s", names, json.dumps(dataclasses.asdict(counts)))


def identity(title: str, text: str) -> str:
    """A name for a passage that copies share, whatever their blanks and case."""
    return records.digest("\n".join(" ".join(t.lower().split()) for t in (title, text))).hex()


def _pieces(raw: Iterable[Document], config: Config, counts: Counts) -> Iterator[Document]:
    size = _size(config.synthesis.tokenizer)
    for document in raw:
        counts.documents += 1
        if not document.text.strip():
            counts.empty += 1
            continue
        title, text = (" ".join(part.split()) for part in (document.title, document.text))
        title, parts = chunks.pieces(title, text, size, config.data.document_length)
        for piece in parts:
            counts.pieces += 1
            yield Document(identity(title, piece), title, piece, document.origin)


def _size(name: str) -> Callable[[str], int]:
    """What measures a text by a tokenizer, or without one by its words and marks."""
    if not name:
        return sentences.estimate
    from clara_jax.data import tokenizer  # needs JAX, which nothing else here does

    encode = tokenizer.load_tokenizer(name).encode
    return lambda text: len(encode(text))


def _distinct(pieces: Iterable[Document], config: Config, counts: Counts) -> Iterator[Document]:
    threshold = config.synthesis.near_duplicates
    seen: set[bytes] = set()
    near = duplicates.Near(threshold) if threshold < 1 else None
    leaks = _leaks(config.synthesis.exclude)
    for document in pieces:
        words, key = sentences.words(document.text), bytes.fromhex(document.id)
        if key in seen:
            counts.exact += 1
            continue
        seen.add(key)
        if leaks and leaks.holds(words):
            counts.leaked += 1
            logging.info("%s: left out, it occurs in an evaluation file", document.origin)
        elif near and not near.add(words or [document.text]):
            counts.near += 1
        else:
            yield document


def _leaks(names: str) -> duplicates.Leaks | None:
    if not names.strip():
        return None
    return duplicates.Leaks(sentences.words(document.text) for document in _raw(names, ""))


def _raw(names: str, tfds_dir: str) -> Iterator[Document]:
    given = records.names_of(names)
    if not given:
        raise UserError(
            "no documents named; give a file, a folder, tfds:name/split or hf:name/split"
        )
    for name in given:
        if name.startswith("tfds:"):
            yield from _tfds(name, tfds_dir)
        elif name.startswith("hf:"):
            yield from _hf(name)
        elif os.path.isdir(name):
            yield from _folder(name)
        else:
            yield from _file(name)


def _folder(name: str) -> Iterator[Document]:
    for place, folders, inside in os.walk(name):
        folders.sort()
        for file in sorted(inside):
            if file.lower().endswith((".txt", ".md", ".jsonl")):
                yield from _file(os.path.join(place, file))


def _file(name: str) -> Iterator[Document]:
    kind = os.path.splitext(name)[1].lower()
    if kind in _TABLES:
        raise UserError(f"{name}: is no plain text; write it as .txt, or as .jsonl with a key text")
    if kind != ".jsonl":
        yield from documents.paragraphs(name, headings=kind == ".md")
        return
    for value, origin in records.lines(name):
        yield from _of_row(value, origin)


def _tfds(name: str, tfds_dir: str) -> Iterator[Document]:
    from clara_jax.data import tfds_source  # 2 s that other corpora need not wait for

    rows = tfds_source.open_rows(name.removeprefix("tfds:"), tfds_dir)
    for i in range(len(rows)):
        yield from _of_row(tfds_source.read_row(rows, i, name), f"{name}:{i}")


def _hf(name: str) -> Iterator[Document]:
    where, _, split = name.removeprefix("hf:").rpartition("/")
    if not where:
        raise UserError(f"{name}: give hf:name/split, such as hf:rajpurkar/squad/train")
    try:
        import datasets
    except ImportError as e:
        raise UserError(f"{name}: needs pip install datasets") from e
    try:
        if os.path.exists(os.path.join(where, "dataset_dict.json")):
            rows = datasets.load_from_disk(where)[split]
        else:
            rows = datasets.load_dataset(where, split=split, streaming=True)
        for i, value in enumerate(rows):
            yield from _of_row(value, f"{name}:{i}")
    except UserError:
        raise
    except Exception as e:  # its errors have no common base
        raise UserError(f"{name}: cannot be read ({reason(e)})") from e


def _of_row(value: dict[str, Any], origin: str) -> Iterator[Document]:
    """Documents of a row of any data set: its id does not count, and None is nothing."""
    present = {
        key: [records.plain(v.strip()) if isinstance(v, str) else v for v in cell]
        if isinstance(cell, list)
        else cell
        for key, cell in records.present(value).items()
        if key not in documents.IDS
    }
    return documents.of_value(present, origin)
