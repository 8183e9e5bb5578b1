"""A corpus that was compressed once: memories, titles and texts, read from a folder as needed.

    store = clara_jax.open_store("store")
    rows = store.find(["notes-17"])
    clara.answer(["When did the bridge open?"], [store.memories(rows)])

A row is a document, or a piece of a long one. Its number stays until the store is compacted.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from clara_jax import files
from clara_jax.corpus import format
from clara_jax.corpus.format import MEMORIES, SCALES, Manifest
from clara_jax.data.documents import whole
from clara_jax.errors import UserError
from clara_jax.models.clara import Trees
from clara_jax.runs.fingerprint import fingerprint
from clara_jax.runs.setup import Model

_OTHER = {  # what differs between a store's model and another, the gravest first
    "base": "base weights",
    "tokenizer": "tokenizer",
    "layout": "document length, rate, positions, lora scale or architecture",
    "compressor": "compressor or memory embeddings",
}


@dataclasses.dataclass(frozen=True)
class StoredDocument:
    """A row of a store."""

    id: str  # of the row: that of the document, or `DOCUMENT#CHUNK` for a piece of a long one
    parent: str  # id of the document
    chunk: int  # which piece of it, from 0
    title: str  # of the document; may be empty
    text: str  # without the title
    tokens: int  # of title and text, that the model read

    @property
    def whole(self) -> str:
        """Title and text, as the model read them."""
        return whole(self.title, self.text)


_FIELDS = [field.name for field in dataclasses.fields(StoredDocument)]


class Store:
    """A store as it was when it was opened; may be read by several threads.

    What is added or deleted later is seen by opening it again; compacting takes files away that
    this one reads.

    Attributes:
        path: of its folder.
        manifest: what it is, and what it holds.
        memory_tokens: M.
        width: D.
        dtype: of memories on disk, bfloat16 or int8.
        parts: of the rows, in order.
        rows: of all parts, deleted ones included.

    Raises:
        UserError: there is no store, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = files.normal(os.fspath(path))
        self.manifest: Manifest = format.whole(self.path, format.read_manifest(self.path))
        self.memory_tokens, self.width = self.manifest.memory_tokens, self.manifest.width
        self.dtype = self.manifest.dtype
        self.parts, self.rows = self.manifest.parts, self.manifest.rows
        counts = [part.rows for part in self.parts]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # of the parts
        self._tables: dict[int, pyarrow.Table] = {}
        self._arrays: dict[int, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"Store({self.path!r}, {self.rows} rows of [{self.memory_tokens}, {self.width}])"

    @functools.cached_property
    def alive_R(self) -> np.ndarray:
        """Which rows are not deleted, bool [rows]."""
        alive_R, deleted = np.ones(self.rows, bool), self.manifest.deleted
        for parts in set(deleted.values()):
            gone = [name for name, count in deleted.items() if count == parts]
            for number in range(parts):
                place = slice(self.starts[number], self.starts[number + 1])
                alive_R[place] &= ~_is_in(self.table(number)["parent"], gone)
        return alive_R

    def memories(self, rows: Sequence[int]) -> np.ndarray:
        """Memories float32 [n, M, D] of rows in their order, read from disk in parallel.

        Raises:
            UserError: there is no such row, or its file is damaged.
        """
        return self._floats(self.stored(rows)).astype(np.float32, copy=False)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """All memories in the order of their rows, the next block being read meanwhile.

        Yields:
            The block's first row, and memories [b <= size, M, D]: bfloat16, or float32 of a store
            that holds int8.
        """
        starts = range(0, self.rows, size)
        reads = (
            (first, self._begin(range(first, min(first + size, self.rows)))) for first in starts
        )
        end = (self.rows, self._begin(()))
        for (first, begun), _ in itertools.pairwise(itertools.chain(reads, [end])):
            yield first, self._floats(self._end(*begun))

    def documents(self, rows: Sequence[int]) -> list[StoredDocument]:
        """What rows hold, in the order that they are named in."""
        table = self.take(rows, _FIELDS)
        columns = [table[name].to_pylist() for name in _FIELDS]
        return [StoredDocument(*values) for values in zip(*columns, strict=True)]

    def texts(self) -> Iterator[str]:
        """Of all rows in order, titles as first lines, as the model read them."""
        for number in range(len(self.parts)):
            table = self.table(number)
            columns = (table[name].to_pylist() for name in ("title", "text"))
            yield from map(whole, *columns)

    def find(self, ids: Sequence[str]) -> list[int]:
        """Rows of documents, each with all of its pieces, or of single pieces.

        Raises:
            UserError: an id is not there, or was deleted.
        """
        matches: dict[str, list[int]] = {name: [] for name in ids}
        for number, start in enumerate(self.starts[:-1]):
            table = self.table(number).select(["id", "parent"])
            is_match_r = _is_in(table["id"], ids) | _is_in(table["parent"], ids)
            for row in np.flatnonzero(is_match_r):
                if self.alive_R[start + row]:
                    for name in {column[row].as_py() for column in table.columns} & set(matches):
                        matches[name].append(int(start + row))
        for name, rows in matches.items():
            if not rows:
                raise UserError(f"{self.path}: holds no document of the id {name!r}")
        return [row for name in ids for row in matches[name]]

    def gone(self, ids: Sequence[str]) -> set[str]:
        """Those of the documents that were deleted, and are not there again."""
        gone = set(ids) & set(self.manifest.deleted)
        for number, start in enumerate(self.starts[:-1]):
            parents = self.table(number)["parent"].to_numpy()
            gone -= set(parents[self.alive_R[start : start + len(parents)]])
        return gone

    def check(self, model: Model, trees: Trees) -> None:
        """Compares a model with the one that made this store.

        Raises:
            UserError: base, compressor, tokenizer or the layout of documents are others.
        """
        self.check_fingerprint(fingerprint(model, trees), model.config.model.param_dtype)

    def check_fingerprint(self, model: dict[str, str], held: str) -> None:
        """`check`, for a model's fingerprint and the dtype that its base is held in."""
        for name, what in _OTHER.items():
            if model[name] != self.manifest.fingerprint.get(name):
                hint = " (int8 is another base than the same in float32)" if held == "int8" else ""
                raise UserError(
                    f"{self.path}: made by another model: other {what}{hint}; use the model that "
                    "made it, or compress the documents into a new store"
                )

    def table(self, number: int) -> pyarrow.Table:
        """The documents of a part."""
        if number not in self._tables:
            rows = self.parts[number].rows
            self._tables[number] = format.read_table(self._folder(number), rows)
        return self._tables[number]

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> pyarrow.Table:
        """Columns of the documents at rows."""
        tables, places = [], np.empty(len(rows), np.int64)
        count = 0
        for number, positions, inside in self._by_part(rows):
            tables.append(self.table(number).select(columns).take(inside))
            places[positions] = np.arange(count, count + len(inside))
            count += len(inside)
        empty = format.SCHEMA.empty_table().select(columns)
        return pyarrow.concat_tables([empty, *tables]).take(places)

    def stored(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Memories [n, M, D] as they are on disk, and the scales [n, M] of int8, by name."""
        return self._end(*self._begin(rows))

    def _begin(self, rows: Sequence[int]) -> tuple[int, list[tuple[int, np.ndarray, dict]]]:
        """Starts to read rows."""
        begun = []
        for number, positions, inside in self._by_part(rows):
            if number not in self._arrays:
                folder, count = self._folder(number), self.parts[number].rows
                self._arrays[number] = format.open_arrays(folder, self.manifest, count)
            arrays = self._arrays[number]
            begun.append((number, positions, {n: a[inside].read() for n, a in arrays.items()}))
        return len(rows), begun

    def _end(self, count: int, begun: list[tuple[int, np.ndarray, dict]]) -> dict[str, np.ndarray]:
        """Waits for what was started."""
        out = self.manifest.empty(count)
        for number, positions, reads in begun:
            with format.unreadable(self._folder(number)):
                for name, future in reads.items():
                    out[name][positions] = future.result()
        return out

    def _floats(self, stored: dict[str, np.ndarray]) -> np.ndarray:
        if SCALES not in stored:
            return stored[MEMORIES]
        return stored[MEMORIES] * stored[SCALES][..., None]  # float32

    def _folder(self, number: int) -> str:
        return format.part_folder(self.path, self.parts[number].name)

    def _by_part(
        self, rows: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Parts of rows, by number; positions among `rows`; and the rows' numbers in the part."""
        rows_n = np.asarray(rows, np.int64)
        if ((rows_n < 0) | (rows_n >= self.rows)).any():
            raise UserError(f"{self.path}: has rows 0 to {self.rows - 1}, not all of {rows_n}")
        parts_n = np.searchsorted(self.starts, rows_n, "right") - 1
        for number in np.unique(parts_n).tolist():
            positions = np.flatnonzero(parts_n == number)
            yield number, positions, rows_n[positions] - self.starts[number]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store; see `Store`."""
    return Store(path)


def _is_in(column: pyarrow.ChunkedArray, values: Sequence[str]) -> np.ndarray:
    wanted = pyarrow.array(values, pyarrow.large_string())
    return pyarrow.compute.is_in(column, wanted).to_numpy()
