"""Changing a store: documents are added in parts, deleted by a mark, and compacted.

Only the manifest says what a store holds, and it is replaced in one go: a kill at any moment leaves
the store as it was after the last whole part, and the same command resumes there. With many
processes all of them compress the same batches, each on its own devices; they take turns in writing
parts, and the first one alone writes the manifest, when all know that a part is written.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pyarrow
from absl import logging

from clara_jax import config, distributed, files
from clara_jax.corpus import format, locks, pieces
from clara_jax.corpus.format import MEMORIES, SCALES, Damaged, Manifest, StorePart
from clara_jax.corpus.pieces import NewRow
from clara_jax.corpus.store import Store
from clara_jax.data.documents import Document, of_values
from clara_jax.errors import UserError
from clara_jax.inference.encode import encode_batches
from clara_jax.models.clara import Trees
from clara_jax.runs import abilities
from clara_jax.runs.fingerprint import fingerprint
from clara_jax.runs.setup import Model

_COLUMNS = format.SCHEMA.names
Known = dict[str, bytes]  # digests by id: of documents, and nothing for the ids of pieces


def add(
    path: str | os.PathLike[str],
    model: Model,
    trees: Trees,
    documents: Iterable[Document | Mapping[str, Any] | str],
    options: config.Store | None = None,
    report: Callable[[int], None] = lambda documents: None,
) -> Store:
    """Compresses documents into a store, which is made if there is none.

    Those that are there already are left out. Documents are streamed: no more than the memories of
    two parts are held at once.

    Args:
        path: of the store, local or on gs://.
        model: the model.
        trees: its weights.
        documents: texts, or mappings like the lines of a file (`documents.stream`).
        options: `dtype` and `part` count for a new store only.
        report: called with the number of documents that are compressed, after each batch.

    Returns:
        The store with the documents.

    Raises:
        UserError: the store was made by another model, another process is changing it, it cannot
            be written, a document cannot be read, or has the id of another one. What was written
            before stays in the store.
    """
    abilities.can(model, trees, "compress")
    path, options = files.normal(os.fspath(path)), options or config.Store()
    made = fingerprint(model, trees)
    with locks.changing(path, lambda: _manifest(model, made, options)):
        store = Store(path)
        store.check_fingerprint(made, model.config.model.param_dtype)
        writer = _Writer(store, model, trees, options, report)
        for rows in _grouped(_new_rows(store, model, documents), store.manifest.part):
            writer.write(rows)
        writer.commit()
    return Store(path)


def delete(path: str | os.PathLike[str], ids: Sequence[str], again: bool = False) -> Store:
    """Marks documents as deleted, all of them or, after a mistake, none.

    Args:
        path: of the store.
        ids: of the documents.
        again: whether some may be deleted already, by this command before it was killed.

    Raises:
        UserError: an id is not there, or that of a piece; or another process is changing the store.
    """
    path = files.normal(os.fspath(path))
    with locks.changing(path):
        store = Store(path)
        gone = store.gone(ids) if again else set()
        marks = dict.fromkeys((name for name in ids if name not in gone), len(store.parts))
        rows = store.take(store.find(list(marks)), ["id", "parent"])
        for row, parent in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            if parent not in marks:
                raise UserError(f"{path}: {row!r} is a piece of {parent!r}; delete the whole of it")
        if distributed.is_first():
            manifest = format.read_manifest(path)  # damaged parts too: they may be repaired
            deleted = manifest.deleted | marks
            format.write_manifest(path, dataclasses.replace(manifest, deleted=deleted))
    return Store(path)


def repair(path: str | os.PathLike[str], verify: bool = False) -> None:
    """Takes out parts that are damaged, so that their documents can be added again.

    Args:
        path: of the store.
        verify: whether the files of memories are read, or only their sizes are looked at.

    Raises:
        UserError: another process is changing the store, or keeps it (`locks.kept`).
    """
    path = files.normal(os.fspath(path))
    with locks.changing(path):
        if distributed.is_first():
            manifest = format.read_manifest(path)
            problems = {part.name: format.damage(path, part, verify) for part in manifest.parts}
            if gone := [name for name, problem in problems.items() if problem]:
                for name in gone:
                    logging.warning("%s: its documents are compressed again", problems[name])
                numbered = manifest.numbered
                while part_name(numbered - 1) in gone:  # so that the store becomes what it was
                    numbered -= 1
                left = format.without(manifest, gone)
                with locks.alone(path):
                    format.write_manifest(path, dataclasses.replace(left, numbered=numbered))


def compact(path: str | os.PathLike[str]) -> Store:
    """Writes again the parts that hold deleted rows, and small ones together.

    Rows get other numbers, and stores that are open must be opened again.

    Raises:
        UserError: another process is changing the store, or keeps it (`locks.kept`).
    """
    path = files.normal(os.fspath(path))
    with locks.changing(path):
        if distributed.is_first():
            with locks.alone(path):
                check(path)
                store = Store(path)
                parts = list(_compacted(store))
                # What is taken away is known until the next time: the command may be repeated.
                deleted = store.manifest.deleted
                gone = {name: 0 for name, count in deleted.items() if count} or deleted
                manifest = _listing(store.manifest, (*parts,), deleted=gone)
                format.write_manifest(path, manifest)
                locks.remove_unlisted(path, manifest)
    return Store(path)


def check(path: str) -> None:
    """Reads all files of a store.

    Raises:
        Damaged: one differs from what was written.
    """
    for part in format.read_manifest(path).parts:
        if problem := format.damage(path, part, memories=True):
            raise Damaged(problem + format.REPAIR)


def known(store: Store) -> Known:
    """What a store holds, about 200 bytes a document."""
    digests: Known = {}
    for number, start in enumerate(store.starts[:-1]):
        table = store.table(number)
        alive = store.alive_R[start : start + table.num_rows]
        columns = (table[name].to_pylist() for name in ("id", "parent", "digest"))
        for is_alive, row, parent, digest in zip(alive, *columns, strict=True):
            if is_alive:
                digests[parent] = digest
                digests.setdefault(row, b"")
    return digests


def unknown(known: Known, documents: Iterable[Document]) -> Iterator[Document]:
    """Documents that are not known, which are known then.

    Raises:
        UserError: one has the id of another.
    """
    for document in documents:
        digest = pieces.digest(document)
        before = known.get(document.id)
        if before is None:
            known[document.id] = digest
            yield document
        elif before != digest:
            raise UserError(
                f"{document.origin}: another document has the id {document.id!r}; give this one "
                "an id of its own, or delete the other one first"
            )


def _new_rows(
    store: Store, model: Model, documents: Iterable[Document | Mapping[str, Any] | str]
) -> Iterator[list[NewRow]]:
    """Rows of each document that is not in the store."""
    there = known(store)
    for document in unknown(there, of_values(documents)):
        rows = pieces.rows(model, document)
        for row in rows:
            if row.id != row.parent and there.setdefault(row.id, b""):
                raise UserError(
                    f"{document.origin}: a piece of {row.parent!r} has the id {row.id!r}, which is "
                    "that of another document; give one of the two another id"
                )
        yield rows


class _Writer:
    """Compresses rows and writes parts, each committed while the next one is being compressed."""

    def __init__(
        self,
        store: Store,
        model: Model,
        trees: Trees,
        options: config.Store,
        report: Callable[[int], None],
    ):
        self._path, self._manifest = store.path, store.manifest
        self._model, self._trees = model, trees
        self._bucket, self._report = options.bucket, report
        shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        self._batch = -(-options.batch // shards) * shards  # else every device does all of it
        self._written: tuple[StorePart, list[Any]] | None = None

    def write(self, rows: Sequence[NewRow]) -> None:
        """Compresses rows and begins to write them as a part."""
        number = _next_number(self._manifest) + (self._written is not None)
        part = format.part_of(part_name(number), table := _table(rows))
        arrays, writes, size = None, [], self._manifest.part
        for start in range(0, len(rows), size):  # one of these, unless a document is very long
            window = rows[start : start + size]
            compressed = self._compress(window)
            if number % jax.process_count() != jax.process_index():
                continue
            if arrays is None:
                arrays = format.create_part(self._path, self._manifest, part.name, table)
            with format.writing(self._path):
                for write in writes:
                    write.result()
                span = slice(start, start + len(window))
                writes = [arrays[name][span].write(v) for name, v in compressed.items()]
        self._written = part, writes

    def commit(self) -> None:
        """Waits until what was begun is written, and lists it in the manifest."""
        if self._written is None:
            return
        part, writes = self._written
        with format.writing(self._path):
            for write in writes:
                write.result()
            if writes:
                format.seal(self._path, part)
        distributed.barrier("part")
        self._written = None
        self._manifest = _listing(self._manifest, (*self._manifest.parts, part))
        if distributed.is_first():
            with format.writing(self._path):
                format.write_manifest(self._path, self._manifest)

    def _compress(self, rows: Sequence[NewRow]) -> dict[str, np.ndarray]:
        """Memories as they are stored, by the name of their array."""
        manifest, ids = self._manifest, [row.ids for row in rows]
        out = manifest.empty(len(rows))
        batches = encode_batches(
            self._model, self._trees, "compressor", ids, self._batch, self._bucket
        )
        for index, memories_nMD in batches:
            if not np.isfinite(memories_nMD).all():
                raise UserError(f"document {rows[index[0]].id!r}: memories are not finite")
            for name, value in _stored(memories_nMD, manifest.dtype).items():
                out[name][index] = value
            self.commit()  # of the part before, which was written meanwhile
            self._report(sum(rows[i].chunk == 0 for i in index))
        return out


def _stored(memories_nMD: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Memories in the dtype of a store."""
    if dtype == "bfloat16":
        return {MEMORIES: memories_nMD.astype(ml_dtypes.bfloat16)}
    largest_nM = np.abs(memories_nMD).max(-1)
    scales_nM = np.where(largest_nM > 0, largest_nM / 127, 1).astype(np.float32)
    whole_nMD = np.round(memories_nMD / scales_nM[..., None]).astype(np.int8)
    return {MEMORIES: whole_nMD, SCALES: scales_nM}


def _compacted(store: Store) -> Iterator[StorePart]:
    """The parts of a compacted store; those that are new are written."""
    manifest, number, run = store.manifest, _next_number(store.manifest), []
    for i, part in enumerate((*manifest.parts, None)):
        if part is not None:
            rows = np.arange(store.starts[i], store.starts[i + 1])
            rows = rows[store.alive_R[rows]]
            if len(rows) < part.rows or part.rows < manifest.part // 2:
                run.append((part, rows))
                continue
        if len(run) == 1 and len(run[0][1]) == run[0][0].rows:
            yield run[0][0]  # small, and alone
        elif run:
            for rows in _grouped(_by_document(store, run), manifest.part):
                yield _copied(store, part_name(number), rows)
                number += 1
        run = []
        if part is not None:
            yield part


def _by_document(store: Store, run: Sequence[tuple[StorePart, np.ndarray]]) -> Iterator[list[int]]:
    """Rows of each document."""
    for _, rows in run:
        chunks = store.take(rows, ["chunk"])["chunk"].to_numpy()
        for document in np.split(rows, np.flatnonzero(chunks == 0)[1:]):
            if len(document):
                yield document.tolist()


def _copied(store: Store, name: str, rows: Sequence[int]) -> StorePart:
    """Writes a part of rows of others."""
    table, size = store.take(rows, _COLUMNS), store.manifest.part
    arrays = format.create_part(store.path, store.manifest, name, table)
    for start in range(0, len(rows), size):
        stored = store.stored(rows[start : start + size])
        with format.writing(store.path):
            for array, value in stored.items():
                arrays[array][start : start + len(value)].write(value).result()
    part = format.part_of(name, table)
    with format.writing(store.path):
        format.seal(store.path, part)
    return part


def _grouped(documents: Iterable[list[Any]], size: int) -> Iterator[list[Any]]:
    """Rows of whole documents, `size` at most unless a single document has more."""
    rows: list[Any] = []
    for document in documents:
        if rows and len(rows) + len(document) > size:
            yield rows
            rows = []
        rows.extend(document)
    if rows:
        yield rows


def _table(rows: Sequence[NewRow]) -> pyarrow.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    return pyarrow.Table.from_pydict(columns, format.SCHEMA)


def part_name(number: int) -> str:
    """Of a part's folder."""
    return f"{number:05d}"


def _next_number(manifest: Manifest) -> int:
    return max([manifest.numbered, *(int(part.name) + 1 for part in manifest.parts)])


def _listing(manifest: Manifest, parts: tuple[StorePart, ...], **changes: Any) -> Manifest:
    """A manifest with other parts."""
    listing = dataclasses.replace(manifest, parts=parts, **changes)
    numbered = max(_next_number(manifest), _next_number(listing))
    return dataclasses.replace(listing, numbered=numbered)


def _manifest(model: Model, made: dict[str, str], options: config.Store) -> Manifest:
    """Of a new store."""
    return Manifest(
        fingerprint=made,
        memory_tokens=len(model.extra.memory),
        width=model.architecture.d_model,
        dtype=options.dtype,
        rate=model.config.rate,
        document_length=model.config.data.document_length,
        part=options.part,
    )
