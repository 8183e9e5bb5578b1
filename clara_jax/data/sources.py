"""Random-access sources of records, checked when they are opened.

A source has a length, gives a record for a position, keeps a hash of each record's title for the
train/dev split, and can be pickled: processes and threads that prepare data read each by
themselves. The same names give ScpRecords for SCP (form `scp`) and QaRecords for the later stages
(form `qa`).
"""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np

from clara_jax import files
from clara_jax.data import records
from clara_jax.data.facts import FactsQuestions, FactsSource
from clara_jax.data.records import QaRecord, ScpRecord
from clara_jax.data.tfds_source import TfdsSource
from clara_jax.errors import UserError

SPLITS = ("train", "dev")

Expand = Callable[[dict[str, Any], str], Iterable[Any]]  # to records of either form
R = TypeVar("R", covariant=True)


class Source(Protocol[R]):
    """Records of one form by position."""

    @property
    def keys(self) -> np.ndarray:
        """Hashes of their titles, uint32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> R: ...


def own_records(value: dict[str, Any], origin: str) -> list[ScpRecord]:
    """Records of a line: itself in the scp form, its gold documents in the e2e form."""
    if records.is_scp(value):
        return [records.parse_scp(value, origin)]
    return records.gold_records(records.parse_qa(value, origin))


def own_questions(value: dict[str, Any], origin: str) -> list[QaRecord]:
    """Questions of a line of either form; those of the scp form have one candidate."""
    if records.is_scp(value):
        return records.questions_of(records.parse_scp(value, origin))
    return [records.parse_qa(value, origin)]


def _documents(value: dict[str, Any], origin: str) -> tuple[str, ...]:
    """All documents of a line of either form."""
    if records.is_scp(value):
        return (records.parse_scp(value, origin).document,)
    return records.parse_qa(value, origin).documents


def documents_of(value: dict[str, Any], origin: str) -> list[ScpRecord]:
    """Reconstruction records of all documents of a line of either form."""
    return [records.reconstruction(each, origin) for each in _documents(value, origin)]


def continuations_of(value: dict[str, Any], origin: str) -> list[ScpRecord]:
    """Continuation records of all documents of a line of either form."""
    return [r for each in _documents(value, origin) for r in records.continuation(each, origin)]


class JsonlSource:
    """A JSONL file; opening it reads and checks every line once and remembers where each begins.

    Args:
        path: the file, or a URL, which is copied to a local file first.
        expand: turns one decoded line into records.
        distinct: leave out records whose document was seen before.

    Raises:
        UserError: the file is missing or empty, or a line is malformed, with file and line.
    """

    def __init__(self, path: str, expand: Expand = own_records, distinct: bool = False):
        self._path, self._expand, self._local = path, expand, files.local(path)
        self._file: BinaryIO | None = None
        places, keys = [], []
        seen: set[bytes] = set()
        offset, filled = 0, False
        for number, line in enumerate(self._lines(), 1):
            filled = filled or bool(line.strip())
            for part, record in enumerate(self._records(line, number) if line.strip() else ()):
                if distinct:
                    document = records.digest(record.document)
                    if document in seen:
                        continue
                    seen.add(document)
                places.append((offset, len(line), number, part))
                keys.append(record.key)
            offset += len(line)
        if not filled:
            raise UserError(f"{path}: is empty; write one record a line")
        if not places:
            raise UserError(
                f"{path}: no records; in scp a file of question, docs and answer needs "
                "pos_index, which names the documents to ask about, and later stages need questions"
            )
        self._places = np.array(places, np.int64)
        self.keys = np.array(keys, np.uint32)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Any:
        start, length, number, part = self._places[index].tolist()
        file = self._file or open(self._local, "rb")  # noqa: SIM115  (open for more reads)
        self._file = file
        # pread shares no file position, so that threads do not disturb each other.
        return self._records(os.pread(file.fileno(), length, start), number)[part]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __repr__(self) -> str:
        return f"JsonlSource({self._path!r}, {len(self)} records)"

    def _records(self, line: bytes, number: int) -> list[Any]:
        origin = f"{self._path}:{number}"
        return list(self._expand(records.parse_line(line, origin), origin))

    def _lines(self) -> Iterable[bytes]:
        try:
            with open(self._local, "rb") as f:
                yield from f
        except OSError as e:
            raise UserError(f"{self._path}: cannot be read ({e.strerror})") from e


class _View:
    """A source made of another, or of several, with the hashes of its own records."""

    def __init__(self, source: Any, keys: np.ndarray):
        self._source, self.keys = source, keys

    def __len__(self) -> int:
        return len(self.keys)


class Concatenation(_View):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Source[Any]]):
        super().__init__(sources, np.concatenate([source.keys for source in sources]))
        self._ends = np.cumsum([len(source) for source in sources])

    def __getitem__(self, index: int) -> Any:
        which, rest = _place(self._ends, index)
        return self._source[which][rest]

    def __repr__(self) -> str:
        counted = collections.Counter(map(repr, self._source))
        return " + ".join(f"{n} * {name}" if n > 1 else name for name, n in counted.items())


class AsText(_View):
    """Another source whose documents are read as plain text, not compressed."""

    def __init__(self, source: Source[ScpRecord]):
        super().__init__(source, source.keys)

    def __getitem__(self, index: int) -> ScpRecord:
        return dataclasses.replace(self._source[index], compress=False)

    def __repr__(self) -> str:
        return f"text of {self._source!r}"


class EachQuestion(_View):
    """The questions of an scp source one by one, each with its document as the only candidate."""

    def __init__(self, source: Source[ScpRecord]):
        counts = [len(source[i].questions) for i in range(len(source))]
        if not sum(counts):
            raise UserError(f"each: {source!r} holds no question")
        super().__init__(source, np.repeat(source.keys, counts))
        self._ends = np.cumsum(counts)

    def __getitem__(self, index: int) -> QaRecord:
        which, rest = _place(self._ends, index)
        return records.questions_of(self._source[which])[rest]

    def __repr__(self) -> str:
        return f"each question of {self._source!r}"


class Subset(_View):
    """Some records of a source, by their positions."""

    def __init__(self, source: Source[Any], positions: np.ndarray):
        super().__init__(source, source.keys[positions])
        self._positions = positions

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._positions[index])]

    def __repr__(self) -> str:
        return f"{len(self)} of {self._source!r}"


def _place(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Which of the parts that end there holds a position, and where in it."""
    which = int(np.searchsorted(ends, index, side="right"))
    return which, index - int(ends[which - 1] if which else 0)


# Form, then `scheme` of a source's name `scheme:rest`, to what opens it, given the rest and the
# TFDS directory. A name without scheme is a JSONL file.
SCHEMES: dict[str, dict[str, Callable[[str, str], Source[Any]]]] = {
    "scp": {
        "": lambda path, _: JsonlSource(path),
        "tfds": TfdsSource,
        "facts": FactsSource.open,
        "text": lambda name, tfds_dir: AsText(open_source(name, tfds_dir)),
        "reconstruct": lambda path, _: JsonlSource(path, documents_of, distinct=True),
        "continue": lambda path, _: JsonlSource(path, continuations_of, distinct=True),
    },
    "qa": {
        "": lambda path, _: JsonlSource(path, own_questions),
        "facts": FactsQuestions.open,
        "each": lambda name, tfds_dir: EachQuestion(open_source(name, tfds_dir)),
    },
}


def open_source(name: str, tfds_dir: str = "", form: str = "scp") -> Source[Any]:
    """Opens one source, by its scheme in SCHEMES.

    Raises:
        UserError: it cannot be opened or holds a malformed record, or does not give this form.
    """
    scheme, colon, rest = name.partition(":")
    if scheme in SCHEMES[form]:
        return SCHEMES[form][scheme](rest, tfds_dir)
    if colon and scheme in SCHEMES["scp"]:
        raise UserError(
            f"{name}: {scheme}: is for scp; later stages read .jsonl files, facts: and each:{name}"
        )
    return SCHEMES[form][""](name, tfds_dir)


def open_sources(
    names: str,
    *,
    split: str = "train",
    holdout: float = 0.0,
    tfds_dir: str = "",
    form: str = "scp",
) -> Source[Any]:
    """Opens sources as one, and keeps one side of the train/dev split.

    A document belongs to dev if the hash of its title falls into the first `holdout` of all
    hashes: the same title is on the same side in every source, run and machine.

    Args:
        names: names for `open_source` with commas between; `3*name` counts its records thrice.
        split: train or dev.
        holdout: share of the titles that belong to dev.
        tfds_dir: where TFDS keeps its data; empty: its default.
        form: of the records, scp or qa.

    Raises:
        UserError: there is no source, one cannot be opened, or no record is on this side.
    """
    opened: list[Source[Any]] = []
    for name in records.names_of(names):
        times, star, rest = name.partition("*")
        if star and re.fullmatch("[0-9]{1,6}", times) and int(times) > 0:
            opened += [open_source(rest, tfds_dir, form)] * int(times)
        else:
            opened.append(open_source(name, tfds_dir, form))
    if not opened:
        raise UserError("config.data.sources is empty; name a .jsonl file or a tfds:name/split")
    source = opened[0] if len(opened) == 1 else Concatenation(opened)
    is_dev = source.keys < holdout * 2**32
    positions = np.flatnonzero(is_dev if split == "dev" else ~is_dev)
    if not len(positions):
        raise UserError(
            f"no record of {names} belongs to {split} with "
            f"config.data.holdout={holdout}; choose another holdout"
        )
    return source if len(positions) == len(source) else Subset(source, positions)
