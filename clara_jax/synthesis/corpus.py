"""Documents of any corpus, in pieces within the limit, each passage once, none of an evaluation."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from clara_jax import files
from clara_jax.config import Config
from clara_jax.data import records, tokenizer
from clara_jax.errors import UserError, reason
from clara_jax.synthesis import duplicates
from clara_jax.synthesis.document import Document
from clara_jax.text import chunks, sentences

_TEXT_KEYS = ("text", "content", "passage", "contents", "document", "docs", "context", "article")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
_RELEASE = re.compile(r"This a document about (.*?)\. ?$")  # the title line of the release's data
_LONGEST_TITLE = 200  # characters of a first line that is a title
_TABLES = (".json", ".csv", ".tsv", ".parquet", ".html", ".xml")  # no plain text, nor read here

Raw = tuple[str, str, str]  # title, text, source


@dataclasses.dataclass
class Counts:
    """What became of a corpus.

    Attributes:
        documents: that were read.
        empty: of them, without text.
        pieces: that the others were cut into.
        exact: pieces left out as copies of an earlier one.
        near: pieces left out as nearly that.
        leaked: pieces left out because they occur in evaluation files.
        kept: pieces that were given out.
    """

    documents: int = 0
    empty: int = 0
    pieces: int = 0
    exact: int = 0
    near: int = 0
    leaked: int = 0
    kept: int = 0

    def as_json(self) -> dict[str, int]:
        """What goes into a manifest."""
        return dataclasses.asdict(self)


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
    options = config.synthesis
    limit = options.documents or None
    found = _distinct(_pieces(_raw(names, config.data.tfds_dir), config, counts), config, counts)
    for document in itertools.islice(found, limit):
        counts.kept += 1
        yield document
    if not counts.documents:
        raise UserError(f"{names}: holds no document")
    logging.info("corpus %s: %s", names, json.dumps(counts.as_json()))


def identity(title: str, text: str) -> str:
    """A name for a passage that copies share, whatever their blanks and case."""
    return records.digest("\n".join(" ".join(t.lower().split()) for t in (title, text))).hex()


def _pieces(raws: Iterable[Raw], config: Config, counts: Counts) -> Iterator[Document]:
    name = config.synthesis.tokenizer
    encode = tokenizer.load_tokenizer(name).encode if name else None
    limit = config.data.document_length

    def size(text: str) -> int:
        return len(encode(text)) if encode else sentences.estimate(text)

    for title, text, source in raws:
        counts.documents += 1
        if not text.strip():
            counts.empty += 1
            continue
        title, text = " ".join(title.split()), " ".join(text.split())
        title, parts = chunks.pieces(title, text, size, limit)
        for piece in parts:
            counts.pieces += 1
            yield Document(identity(title, piece), title, piece, source)


def _distinct(documents: Iterable[Document], config: Config, counts: Counts) -> Iterator[Document]:
    threshold = config.synthesis.near_duplicates
    exact = duplicates.Exact()
    near = duplicates.Near(threshold) if threshold < 1 else None
    leaks = _leaks(config.synthesis.exclude)
    for document in documents:
        words = sentences.words(document.text)
        if not exact.add(bytes.fromhex(document.id)):
            counts.exact += 1
        elif leaks and leaks.holds(words):
            counts.leaked += 1
            logging.info("%s: left out, it occurs in an evaluation file", document.source)
        elif near and not near.add(words or [document.text]):
            counts.near += 1
        else:
            yield document


def _leaks(names: str) -> duplicates.Leaks | None:
    if not names.strip():
        return None
    leaks = duplicates.Leaks()
    for _, text, _ in _raw(names, ""):
        leaks.add(sentences.words(text))
    leaks.close()
    return leaks


def _raw(names: str, tfds_dir: str) -> Iterator[Raw]:
    found = [name for name in map(str.strip, names.split(",")) if name]
    if not found:
        raise UserError(
            "no documents named; give a file, a folder, tfds:name/split or hf:name/split"
        )
    for name in found:
        if name.startswith("tfds:"):
            yield from _tfds(name, tfds_dir)
        elif name.startswith("hf:"):
            yield from _hf(name)
        elif os.path.isdir(name):
            yield from _folder(name)
        else:
            yield from _file(name)


def _folder(name: str) -> Iterator[Raw]:
    for place, folders, inside in os.walk(name):
        folders.sort()
        for file in sorted(inside):
            if file.lower().endswith((".txt", ".md", ".jsonl")):
                yield from _file(os.path.join(place, file))


def _file(name: str) -> Iterator[Raw]:
    if name.lower().endswith(_TABLES):
        raise UserError(f"{name}: is no plain text; write it as .txt, or as .jsonl with a key text")
    try:
        with open(files.local(name), "rb") as lines:
            if name.lower().endswith(".jsonl"):
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        origin = f"{name}:{number}"
                        yield from _of_value(records.parse_line(line, origin), origin)
            else:
                yield from _paragraphs(lines, name, name.lower().endswith(".md"))
    except OSError as e:
        raise UserError(f"{name}: cannot be read ({e.strerror})") from e


def _paragraphs(lines: Iterable[bytes], name: str, headings: bool) -> Iterator[Raw]:
    title, paragraph, first = "", [], 0
    for number, line in enumerate(itertools.chain(lines, [b""]), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as e:
            raise UserError(f"{name}:{number}: not UTF-8; convert it") from e
        heading = _HEADING.match(text) if headings else None
        if (not text or heading) and paragraph:
            yield title, " ".join(paragraph), f"{name}:{first}"
            paragraph = []
        if heading:
            title = heading[1]
        elif text:
            first = first if paragraph else number
            paragraph.append(text)


def _tfds(name: str, tfds_dir: str) -> Iterator[Raw]:
    from clara_jax.data import tfds_source

    rows = tfds_source.open_rows(name.removeprefix("tfds:"), tfds_dir)
    for i in range(len(rows)):
        origin = f"{name}:{i}"
        try:
            value = tfds_source.decode(rows[i])
        except (RuntimeError, ValueError, ImportError) as e:
            raise UserError(f"{origin}: cannot be read ({reason(e)})") from e
        yield from _of_value(value, origin)


def _hf(name: str) -> Iterator[Raw]:
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
            yield from _of_value(value, f"{name}:{i}")
    except UserError:
        raise
    except Exception as e:  # its errors have no common base
        raise UserError(f"{name}: cannot be read ({reason(e)})") from e


def _of_value(value: dict[str, Any], origin: str) -> Iterator[Raw]:
    key = next((key for key in _TEXT_KEYS if value.get(key) is not None), None)
    if key is None:
        raise UserError(f"{origin}: has none of {', '.join(_TEXT_KEYS)}")
    given = _text(value.get("title") or "", "title", origin).strip()
    if not isinstance(value[key], list):
        text = _text(value[key], key, origin)
        yield given, text[len(given) :] if given and records.title(text) == given else text, origin
        return
    for i, item in enumerate(value[key]):
        if isinstance(item, dict):
            yield from _of_value(item, f"{origin}: {key}[{i}]")
            continue
        first, newline, text = _text(item, f"{key}[{i}]", origin).strip().partition("\n")
        if newline and len(first) <= _LONGEST_TITLE:  # the form of records
            release = _RELEASE.match(first)
            yield (release[1] if release else first), text, origin
        else:
            yield given, item, origin


def _text(text: Any, name: str, origin: str) -> str:
    if not isinstance(text, str) or not records.is_unicode(text):
        raise UserError(f"{origin}: {name} must be a text, not {text!a:.40}")
    return text
