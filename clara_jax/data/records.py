"""What a line of data may be, checked once at the border.

Two forms, those of the release:
    scp  {"data_type": "qa" | "paraphrase" | "reconstruction" | "continuation", "question": [...],
          "answers": [...], "docs": [document], "aliases": [[...], ...]?}
    e2e  {"question", "docs" (or "context", "content"), "answer" (or "answers", "golden_answers",
          "gold_answer"), "pos_index"?, "teacher_scores"?}
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from clara_jax import files
from clara_jax.errors import UserError, reason

DATA_TYPES = ("qa", "paraphrase", "reconstruction", "continuation")
_DOCUMENT_KEYS = ("docs", "context", "content")
_PREFIX = re.compile(r"(?:[0-9]+\*)?(?:[a-z]+:)*")  # of a source's name, before its path
_SPACE = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_RELEASE = re.compile(r"This a document about (.*?)\. ?\n ?(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ANSWER_KEYS = ("answer", "answers", "golden_answers", "gold_answer")


@dataclasses.dataclass(frozen=True)
class ScpRecord:
    """One document and what is to be said about it."""

    data_type: str  # one of DATA_TYPES
    questions: tuple[str, ...]  # empty unless `data_type` is qa
    # one a question, or the one text that a record of another type must give
    answers: tuple[str, ...]
    document: str  # text of the document, its title on the first line
    origin: str  # where the record stands, as `file:line`
    compress: bool = True  # whether the generator gets memories of the document, or its plain text
    # for each question what else is accepted as its answer; empty if nothing is
    aliases: tuple[tuple[str, ...], ...] = ()

    @property
    def accepted(self) -> tuple[tuple[str, ...], ...]:
        """All accepted answers of each question, that of `answers` first."""
        aliases = self.aliases or ((),) * len(self.answers)
        return tuple((a, *more) for a, more in zip(self.answers, aliases, strict=True))

    @property
    def key(self) -> int:
        """What decides between train and dev: a hash of the document's title."""
        return title_key(self.document)


@dataclasses.dataclass(frozen=True)
class QaRecord:
    """One question over several documents."""

    question: str  # the question
    documents: tuple[str, ...]  # candidates
    answers: tuple[str, ...]  # every accepted answer, the first is the one to train on
    # positions in `documents` of those that hold the answer; empty where unknown
    gold: tuple[int, ...]
    origin: str  # where the record stands, as `file:line`
    # one a document, from a reranker to learn from; empty where there are none
    teacher_scores: tuple[float, ...] = ()
    # number of documents, the first ones, that may be chosen; 0 = all. Those after them are gold
    # ones that a search did not find (evaluation/candidates.py).
    candidates: int = 0

    @property
    def choice(self) -> tuple[str, ...]:
        """The documents that may be chosen."""
        return self.documents[: self.candidates or None]

    @property
    def key(self) -> int:
        """What decides between train and dev: a hash of the title of the first gold document.

        Of the question, where none is gold.
        """
        return title_key(self.documents[self.gold[0]] if self.gold else self.question)


def parse_line(line: str | bytes, origin: str) -> dict[str, Any]:
    """Decodes one line of JSONL.

    Raises:
        UserError: the line is no JSON object, with its origin.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:  # beside bad syntax: huge integers, deep nesting
        raise UserError(f"{origin}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{origin}: a record must be a JSON object, not {type(value).__name__}")
    return present(value)


def present(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that are there: null stands for none, as exports of tables write it."""
    return {key: field for key, field in value.items() if field is not None}


def names_of(text: str) -> list[str]:
    """Names of sources with commas between, where a leading tilde is the user's folder.

    A comma inside the name of a file that is there belongs to the name.
    """
    parts, found = text.split(","), []
    while parts:
        ends = range(len(parts), 0, -1)
        tried = [_name(",".join(parts[:end])) for end in ends]
        known = (n for n, name in enumerate(tried) if os.path.exists(_PREFIX.sub("", name)))
        n = next(known, len(parts) - 1)
        found.append(tried[n])
        parts = parts[ends[n] :]
    return [name for name in found if name]


def _name(text: str) -> str:
    path = _PREFIX.sub("", text := text.strip(), count=1)
    return text.removesuffix(path) + os.path.expanduser(path)


def lines(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a JSONL file, each with its origin `file:line`; blank lines are left out.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object, with its origin.
    """
    try:
        with open(files.local(path), "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    origin = f"{path}:{number}"
                    yield parse_line(line, origin), origin
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or reason(e)})") from e


def write(path: str, values: Iterable[dict[str, Any]]) -> None:
    """Writes objects as JSONL, all of the file or nothing; raises OSError."""
    files.write(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def is_scp(value: dict[str, Any]) -> bool:
    """Whether a decoded line claims the scp form."""
    return "data_type" in value


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON and Python allow halves of a surrogate pair alone."""
    return not _SURROGATE.search(text)


def parse_scp(value: dict[str, Any], origin: str) -> ScpRecord:
    """Checks a record of the scp form.

    `aliases`, where given, are further accepted answers of each question.

    Raises:
        UserError: a field is missing or of the wrong kind, with the record's origin.
    """
    value = present(value)
    data_type = value.get("data_type")
    if data_type not in DATA_TYPES:
        raise UserError(f"{origin}: data_type {data_type!r} is not one of {', '.join(DATA_TYPES)}")
    documents = _texts(value, "docs", origin)
    if len(documents) != 1:
        raise UserError(f"{origin}: docs must hold one document, not {len(documents)}")
    if not documents[0].strip():
        raise UserError(f"{origin}: the document is empty")
    answers = _texts(value, "answers", origin)
    if data_type != "qa":
        if len(answers) != 1:
            raise UserError(f"{origin}: {data_type} needs one text in answers, not {len(answers)}")
        _filled(answers, "answer", origin)
        return ScpRecord(data_type, (), answers, documents[0], origin)
    questions = _texts(value, "question", origin)
    if not questions:
        raise UserError(f"{origin}: question is empty; a qa record needs one or more")
    if len(questions) != len(answers):
        raise UserError(
            f"{origin}: {len(questions)} questions but {len(answers)} answers; they must pair"
        )
    _filled(questions, "question", origin)
    _filled(answers, "answer", origin)
    aliases = value.get("aliases") or [[]] * len(questions)
    if not isinstance(aliases, list) or len(aliases) != len(questions):
        raise UserError(f"{origin}: aliases must hold a list of texts for each question")
    aliases = tuple(_texts({"aliases": texts or []}, "aliases", origin) for texts in aliases)
    return ScpRecord(data_type, questions, answers, documents[0], origin, aliases=aliases)


def parse_qa(value: dict[str, Any], origin: str) -> QaRecord:
    """Checks a record of the e2e form.

    `aliases`, where given, are further accepted answers, `teacher_scores` a reranker's.

    Raises:
        UserError: a field is missing or of the wrong kind, with the record's origin.
    """
    value = present(value)
    question = value.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{origin}: question must be a text, not {question!r}")
    documents = _texts(value, _first_key(value, _DOCUMENT_KEYS, origin), origin)
    if not documents:
        raise UserError(f"{origin}: there are no documents")
    answers = value[_first_key(value, _ANSWER_KEYS, origin)]
    answers = [answers] if isinstance(answers, str) else answers
    aliases = value.get("aliases", [])
    if not _is_texts(answers) or not answers or not _is_texts(aliases):
        raise UserError(f"{origin}: the answer must be a text or a list of texts")
    gold = value.get("pos_index", [])
    positions = range(len(documents))
    if not isinstance(gold, list) or any(type(i) is not int or i not in positions for i in gold):
        raise UserError(
            f"{origin}: pos_index must list positions in the {len(documents)} documents, "
            f"not {gold!r}"
        )
    _unicode([question], "question", origin)
    _unicode([*answers, *aliases], "answer", origin)
    _filled(answers[:1], "answer", origin)
    if empty := [i for i in gold if not documents[i].strip()]:
        raise UserError(f"{origin}: document {empty[0]}, which pos_index names, is empty")
    accepted = tuple(dict.fromkeys([*answers, *aliases]))
    scores = _scores(value.get("teacher_scores") or [], len(documents), origin)
    return QaRecord(question, documents, accepted, tuple(gold), origin, scores)


def questions_of(record: ScpRecord) -> list[QaRecord]:
    """Each question of a qa record of the scp form, with its document as the only candidate."""
    pairs = zip(record.questions, record.accepted, strict=False)
    return [QaRecord(q, (record.document,), accepted, (0,), record.origin) for q, accepted in pairs]


def gold_records(record: QaRecord) -> list[ScpRecord]:
    """The question over each of its gold documents by itself, as scp records."""
    first, *aliases = record.answers
    question, aliases = (record.question,), (tuple(aliases),)
    return [
        ScpRecord("qa", question, (first,), record.documents[i], record.origin, aliases=aliases)
        for i in record.gold
    ]


def reconstruction(document: str, origin: str) -> ScpRecord:
    """The record that asks for a document word for word."""
    return ScpRecord("reconstruction", (), (document,), document, origin)


def continuation(document: str, origin: str) -> list[ScpRecord]:
    """The record that asks for the second half of a document from its first; none for one word.

    The halves part at the end of the sentence, or where there is none of the word, that is nearest
    the middle.
    """
    for ends in (_SENTENCE_END, _SPACE):
        places = [match.end() for match in ends.finditer(document.rstrip()) if match.start()]
        if places:
            middle = min(places, key=lambda place: abs(2 * place - len(document)))
            first, rest = document[:middle].rstrip(), document[middle:]
            return [ScpRecord("continuation", (), (rest,), first, origin)]
    return []


def plain(document: str) -> str:
    """A document as title, line end and text, where it has the words of the release's data."""
    match = _RELEASE.fullmatch(document)
    return f"{match[1]}\n{match[2]}" if match else document


def title(document: str) -> str:
    """First line of a document, its title."""
    return document.strip().split("\n", 1)[0].strip()


def title_key(document: str) -> int:
    """A hash of the document's title that is the same on every machine."""
    return zlib.crc32(title(document).encode())


def digest(text: str) -> bytes:
    """A hash that tells texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _texts(value: dict[str, Any], key: str, origin: str) -> tuple[str, ...]:
    texts = value.get(key)
    if not _is_texts(texts):
        kind = "missing" if texts is None else type(texts).__name__
        raise UserError(f"{origin}: {key} must be a list of texts, not {kind}")
    _unicode(texts, key, origin)
    return tuple(texts)


def _scores(scores: Any, documents: int, origin: str) -> tuple[float, ...]:
    try:
        numbers = isinstance(scores, list) and all(type(x) in (int, float) for x in scores)
        if numbers and len(scores) in (0, documents) and all(map(math.isfinite, scores)):
            return tuple(map(float, scores))
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise UserError(
        f"{origin}: teacher_scores must list a number for each of the {documents} documents"
    )


def _unicode(texts: Sequence[str], what: str, origin: str) -> None:
    if not all(map(is_unicode, texts)):
        raise UserError(
            f"{origin}: {what} holds half of a surrogate pair (\\ud800 to \\udfff alone), which is "
            "no character; remove it"
        )


def _filled(texts: Sequence[str], what: str, origin: str) -> None:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"{origin}: {what} {number} is empty; fill it or leave the record out")


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _first_key(value: dict[str, Any], keys: tuple[str, ...], origin: str) -> str:
    for key in keys:
        if key in value:
            return key
    raise UserError(f"{origin}: the record has none of {', '.join(keys)}")
