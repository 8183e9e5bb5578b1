"""Files of documents: JSONL, or plain text with blank lines between documents."""

import os
import pathlib
import re
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError

_TEXT_KEYS = ("text", "contents", "document")  # of a line that is one document
_LIST_KEYS = ("docs", "context", "content")  # of a record with several


def read_documents(path: str | os.PathLike[str]) -> list[str]:
    """The distinct documents of a file in their order, empty ones left out.

    In a file `.jsonl` a line is an object with a text under `text`, `contents` or `document`, and
    perhaps a `title`, which becomes the first line; or a record with a list of texts under `docs`,
    `context` or `content`. Any other file is plain text, whose paragraphs are the documents.

    Raises:
        UserError: the file cannot be read, is not UTF-8, has a line that is none of these, or holds
            no document.
    """
    path = os.fspath(path)
    try:
        data = pathlib.Path(files.local(path)).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    if path.lower().endswith(".jsonl"):
        lines = enumerate(data.splitlines(), 1)
        found = [
            document
            for number, line in lines
            if line.strip()
            for document in _of_line(line, f"{path}:{number}")
        ]
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: not UTF-8 at byte {e.start}; convert it") from e
        found = map(str.strip, re.split(r"\n\s*\n", text.replace("\r\n", "\n")))
    documents = list(dict.fromkeys(document for document in found if document.strip()))
    if not documents:
        raise UserError(f"{path}: holds no document")
    return documents


def _of_line(line: bytes, origin: str) -> list[str]:
    value = records.parse_line(line, origin)
    for key in _TEXT_KEYS:
        if key in value:
            text = _text(value[key], key, origin)
            title = _text(value.get("title") or "", "title", origin).strip()
            return [f"{title}\n{text}" if title and records.title(text) != title else text]
    for key in _LIST_KEYS:
        if key in value:
            if not isinstance(value[key], list):
                raise UserError(f"{origin}: {key} must be a list of texts, not {value[key]!a:.40}")
            return [_text(text, f"{key}[{i}]", origin) for i, text in enumerate(value[key])]
    raise UserError(f"{origin}: has none of {', '.join(_TEXT_KEYS + _LIST_KEYS)}")


def _text(text: Any, name: str, origin: str) -> str:
    if not isinstance(text, str) or not records.is_unicode(text):
        raise UserError(f"{origin}: {name} must be a text, not {text!a:.40}")
    return text
