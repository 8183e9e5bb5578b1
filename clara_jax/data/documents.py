"""Files of documents: JSON, JSONL, CSV, TSV, Parquet, or plain text with blank lines between."""

import csv
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError, reason
from clara_jax.text.chunks import whole

__all__ = ["Document", "of_value", "of_values", "paragraphs", "read_documents", "stream", "whole"]

_KEYS = ("text", "contents", "document", "docs", "context", "content", "passage", "article")
IDS = ("id", "_id", "docid", "doc_id", "docno", "pid")
_LONGEST_TITLE = 200  # characters of a first line that is a title
_BATCH = 256  # rows of a Parquet file that are read at once
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")


@dataclasses.dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is within a limit."""

    id: str  # as given; else a digest of title and text
    title: str  # may be empty
    text: str  # without the title
    origin: str = ""  # file and line, for messages

    @property
    def whole(self) -> str:
        """Title and text, as the model reads them."""
        return whole(self.title, self.text)


def read_documents(path: str | os.PathLike[str]) -> list[str]:
    """The distinct documents of a file in their order, each with its title as the first line.

    Raises:
        UserError: as for `stream`.
    """
    return list(dict.fromkeys(document.whole for document in stream(path)))


def stream(path: str | os.PathLike[str]) -> Iterator[Document]:
    """The documents of a file in their order, empty ones left out.

    In a file `.jsonl` or `.ndjson` a line is what `of_value` takes; a file `.json` is one such
    object, a list of them or of texts, or lines. A file `.parquet`, `.csv` or `.tsv` has columns of
    the same names. Any other file but those of _REFUSED is plain text, whose paragraphs are the
    documents. In a folder, that of a BEIR set, corpus.jsonl is read.

    Raises:
        UserError: the file cannot be read, is not UTF-8, has a line that is none of these, or holds
            no document.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, "corpus.jsonl")
    kind = os.path.splitext(path)[1].lower()
    empty = True
    if kind in _REFUSED:
        raise UserError(
            f"{path}: {kind} is not read; convert it to one of {', '.join(_READERS)} or plain text"
        )
    for document in _READERS.get(kind, paragraphs)(path):
        if document.whole.strip():
            empty = False
            yield document
    if empty:
        raise UserError(f"{path}: holds no document")


def of_values(values: Iterable[Document | Mapping[str, Any] | str]) -> Iterator[Document]:
    """Documents as a program gives them: texts, or mappings such as the lines of a file.

    Raises:
        UserError: one is neither, with its number.
    """
    for number, value in enumerate(values):
        origin = f"documents[{number}]"
        if isinstance(value, Document):
            yield value
        elif isinstance(value, str):
            yield _document(value, "", None, origin)
        elif isinstance(value, Mapping):
            yield from of_value(value, origin)
        else:
            raise UserError(f"{origin}: must be a text or a mapping, not {value!a:.40}")


def of_value(value: Mapping[str, Any], origin: str) -> Iterator[Document]:
    """The documents of one row.

    Args:
        value: has a text under `text`, `contents`, `document`, `context`, `content`, `passage` or
            `article`, and perhaps a `title` and an `id` (or another of IDS); or under one of these
            or `docs` a list of texts with their titles as first lines, or of such rows.
        origin: file and line.

    Raises:
        UserError: it has none of these, or a value is of the wrong type.
    """
    value = records.present(value)
    key = next((key for key in _KEYS if key in value), None)
    if key is None:
        raise UserError(f"{origin}: has none of {', '.join(_KEYS)}")
    content = value[key]
    if isinstance(content, list):
        for i, item in enumerate(content):
            if isinstance(item, Mapping):
                yield from of_value(item, f"{origin}: {key}[{i}]")
            else:
                title, text = _titled(_text(item, f"{key}[{i}]", origin))
                yield _document(text, title, None, origin)
        return
    if key == "docs":
        raise UserError(f"{origin}: {key} must be a list of texts, not {content!a:.40}")
    text = _text(content, key, origin)
    title = _text(value.get("title", ""), "title", origin).strip()
    first, newline, rest = text.strip().partition("\n")
    if title and first.strip() == title:  # it is there already
        title, text = (title, rest) if newline else ("", text)
    name = next((value[key] for key in IDS if key in value), None)
    yield _document(text, title, name, origin)


def paragraphs(path: str, headings: bool = False) -> Iterator[Document]:
    """The paragraphs of a text file.

    Args:
        path: of the file.
        headings: whether a heading of Markdown is the title of the paragraphs below it.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    title, paragraph, first = "", [], 0
    for number, text in _text_lines(path):
        heading = _HEADING.match(text.strip()) if headings else None
        if (heading or not text.strip()) and paragraph:
            yield _document("".join(paragraph).strip(), title, None, f"{path}:{first}")
            paragraph = []
        if heading:
            title = heading[1]
        elif text.strip():
            first = first if paragraph else number
            paragraph.append(text)


def _text_lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, and an empty one."""
    position = 0
    try:
        with open(files.local(path), "rb") as f:
            for number, line in enumerate(itertools.chain(f, [b""]), 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.replace("\r\n", "\n")
                position += len(line)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 at byte {position + e.start}; convert it") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or reason(e)})") from e


def _lines(path: str) -> Iterator[Document]:
    for value, origin in records.lines(path):
        yield from of_value(value, origin)


def _json(path: str) -> Iterator[Document]:
    text = "".join(line for _, line in _text_lines(path))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield from _lines(path)  # many a `.json` holds lines; else the error names the line
        return
    values = value if isinstance(value, list) else [value]
    for number, one in enumerate(values, 1):
        origin = f"{path}: number {number}"
        if isinstance(one, Mapping):
            yield from of_value(one, origin)
        else:
            yield _document(_text(one, "a document", origin), "", None, origin)


def _table(path: str) -> Iterator[Document]:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    lines = (line for _, line in _text_lines(path))
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        names = rows.fieldnames or []
        if not set(_KEYS) & set(names):
            raise UserError(
                f"{path}:1: must name the columns, one of them {', '.join(_KEYS)}: {names!a:.80}"
            )
        for row in rows:
            origin = f"{path}:{rows.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{origin}: has not the {len(names)} cells that line 1 names")
            yield from of_value(row, origin)
    except csv.Error as e:
        hint = 'double a " inside a cell, and put the cell between two'
        raise UserError(f"{path}:{rows.reader.line_num}: {e}; {hint}") from e


def _parquet(path: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(files.local(path)) as file:
            known = {*_KEYS, *IDS, "title"}
            columns = [name for name in file.schema_arrow.names if name in known]
            row = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    yield from of_value(value, f"{path}: row {row}")
    except pyarrow.ArrowException as e:
        raise UserError(f"{path}: not a readable Parquet file ({reason(e)})") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or reason(e)})") from e


_READERS = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
# Text that is no prose: markup would be compressed with it.
_REFUSED = (".html", ".htm", ".xml", ".yaml", ".yml", ".rtf")


def _titled(text: str) -> tuple[str, str]:
    """Title and text of a record's document."""
    first, newline, rest = text.partition("\n")
    is_title = newline and first and first == first.strip() and rest.strip()
    return (first, rest) if is_title and len(first) <= _LONGEST_TITLE else ("", text)


def _document(text: str, title: str, name: Any, origin: str) -> Document:
    if name is None:
        name = records.digest(whole(title, text)).hex()
    elif isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    elif not _text(name, "id", origin).strip() or "\n" in name or name != name.strip():
        raise UserError(
            f"{origin}: id must not be empty, hold a newline, nor begin or end with a blank: "
            f"{name!a:.80}"
        )
    return Document(name, title, text, origin)


def _text(text: Any, name: str, origin: str) -> str:
    if not isinstance(text, str) or not records.is_unicode(text):
        raise UserError(f"{origin}: {name} must be a text, not {text!a:.40}")
    return text
