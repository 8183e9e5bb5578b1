"""Files of documents: JSONL, Parquet, or plain text with blank lines between documents."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError, reason

_TEXT_KEYS = ("text", "contents", "document")  # of a line that is one document
_LIST_KEYS = ("docs", "context", "content")  # of a record with several
_LONGEST_TITLE = 200  # characters of a first line that is a title
_BATCH = 256  # rows of a Parquet file that are read at once


@dataclasses.dataclass(frozen=True)
class Document:
    """A document as it was given.

    Attributes:
        id: as given; else a digest of title and text.
        title: may be empty.
        text: without the title.
        origin: file and line, for messages.
    """

    id: str
    title: str
    text: str
    origin: str = ""

    @property
    def whole(self) -> str:
        """Title and text, as the model reads them."""
        return whole(self.title, self.text)


def whole(title: str, text: str) -> str:
    """A text with its title as the first line, if it has one."""
    return f"{title}\n{text}" if title else text


def read_documents(path: str | os.PathLike[str]) -> list[str]:
    """The distinct documents of a file in their order, each with its title as the first line.

    Raises:
        UserError: as for `stream`.
    """
    return list(dict.fromkeys(document.whole for document in stream(path)))


def stream(path: str | os.PathLike[str]) -> Iterator[Document]:
    """The documents of a file in their order, empty ones left out.

    In a file `.jsonl` a line is an object with a text under `text`, `contents` or `document`, and
    perhaps a `title` and an `id`; or a record with a list of texts, their titles as first lines,
    under `docs`, `context` or `content`. A file `.parquet` has columns of the same names. Any other
    file is plain text, whose paragraphs are the documents.

    Raises:
        UserError: the file cannot be read, is not UTF-8, has a line that is none of these, or holds
            no document.
    """
    path = os.fspath(path)
    kind = os.path.splitext(path)[1].lower()
    reader = {".jsonl": _lines, ".parquet": _parquet}.get(kind, _paragraphs)
    empty = True
    try:
        for document in reader(path):
            if document.whole.strip():
                empty = False
                yield document
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or reason(e)})") from e
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
            yield from _of_value(value, origin)
        else:
            raise UserError(f"{origin}: must be a text or a mapping, not {value!a:.40}")


def _lines(path: str) -> Iterator[Document]:
    with open(files.local(path), "rb") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                origin = f"{path}:{number}"
                yield from _of_value(records.parse_line(line, origin), origin)


def _paragraphs(path: str) -> Iterator[Document]:
    paragraph: list[str] = []
    position, first = 0, 0
    with open(files.local(path), "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                at = position + e.start
                raise UserError(f"{path}: not UTF-8 at byte {at}; convert it") from e
            position += len(line)
            if text.strip():
                first = first if paragraph else number
                paragraph.append(text.replace("\r\n", "\n"))
            elif paragraph:
                yield _document("".join(paragraph).strip(), "", None, f"{path}:{first}")
                paragraph = []
    if paragraph:
        yield _document("".join(paragraph).strip(), "", None, f"{path}:{first}")


def _parquet(path: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(files.local(path)) as file:
            known = {*_TEXT_KEYS, *_LIST_KEYS, "id", "title"}
            columns = [name for name in file.schema_arrow.names if name in known]
            row = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    present = {name: cell for name, cell in value.items() if cell is not None}
                    yield from _of_value(present, f"{path}: row {row}")
    except pyarrow.ArrowException as e:
        raise UserError(f"{path}: not a readable Parquet file ({reason(e)})") from e


def _of_value(value: Mapping[str, Any], origin: str) -> Iterator[Document]:
    for key in _TEXT_KEYS:
        if key in value:
            text = _text(value[key], key, origin)
            title = _text(value.get("title") or "", "title", origin).strip()
            first, newline, rest = text.strip().partition("\n")
            if title and first.strip() == title:  # it is there already
                title, text = (title, rest) if newline else ("", text)
            yield _document(text, title, value.get("id"), origin)
            return
    for key in _LIST_KEYS:
        if key in value:
            if not isinstance(value[key], list):
                raise UserError(f"{origin}: {key} must be a list of texts, not {value[key]!a:.40}")
            for i, item in enumerate(value[key]):
                text = _text(item, f"{key}[{i}]", origin)
                first, newline, rest = text.partition("\n")
                is_title = newline and first and first == first.strip() and rest.strip()
                is_title = is_title and len(first) <= _LONGEST_TITLE
                title, text = (first, rest) if is_title else ("", text)
                yield _document(text, title, None, origin)
            return
    raise UserError(f"{origin}: has none of {', '.join(_TEXT_KEYS + _LIST_KEYS)}")


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
