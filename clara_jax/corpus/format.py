"""The files of a store: what its folder holds, and how each is read and written.

    STORE/manifest.json            what the store is; a part counts once it is listed here
    STORE/parts/00000/memories     zarr3 [rows, M, D], shards of documents, one an inner chunk
    STORE/parts/00000/scales       zarr3 float32 [rows, M], where memories are int8
    STORE/parts/00000/documents.arrow
    STORE/parts/00000/checksums.json

Local or on gs://: arrays by TensorStore's own drivers, the rest by clara_jax.files.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
from collections.abc import Collection, Generator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import tensorstore
from absl import logging

from clara_jax import checksums, files
from clara_jax.errors import UserError, reason

VERSION = 1
MANIFEST, PARTS, TABLE, MEMORIES, SCALES = (
    "manifest.json",
    "parts",
    "documents.arrow",
    "memories",
    "scales",
)
DTYPES = ("bfloat16", "int8")  # of memories on disk, as zarr names them
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.large_string()),  # of the row: the document's, or DOCUMENT#CHUNK
        ("parent", pyarrow.large_string()),  # of the document
        ("chunk", pyarrow.int32()),  # from 0
        ("title", pyarrow.large_string()),
        ("text", pyarrow.large_string()),
        ("tokens", pyarrow.int32()),  # that were read
        ("cut", pyarrow.int32()),  # that were not
        ("digest", pyarrow.binary(16)),  # of the whole document, to know it again
    ]
)
_SHARD = 64 * 2**20  # bytes of memories in a file, about


# How a part is repaired.
REPAIR = (
    "; --mode=compress --verify with the store's --workdir and --documents makes it again, or put "
    "a copy back"
)


# What is wrong with a file system, and not with a file.
_PASSING = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT)


class Damaged(UserError):
    """A file of a store cannot be read or written, whatever is asked of the store."""


@contextlib.contextmanager
def damaged(what: str, advice: str = "") -> Generator[None]:
    """Turns an error of reading or writing files into `Damaged`: what failed, why, what helps."""
    try:
        yield
    except (ValueError, OSError, pyarrow.ArrowException) as e:
        raise Damaged(f"{what} ({reason(e)[:200]}){advice}") from e


def unreadable(place: str) -> contextlib.AbstractContextManager[None]:
    """`damaged` while a file or folder of a part is read."""
    return damaged(f"{place}: this part of the store cannot be read", REPAIR)


def writing(store: str) -> contextlib.AbstractContextManager[None]:
    """`damaged` while a store is written: its disk may be full, or a permission missing."""
    advice = "; make room and run the same command to go on"
    return damaged(f"{store}: cannot be written", advice)


@dataclasses.dataclass(frozen=True)
class StorePart:
    """Some rows of a store, which never change."""

    name: str  # of its folder
    rows: int  # how many
    documents: int  # that they are of
    fed_tokens: int  # of text, that the model read
    cut_tokens: int  # that it did not: of long titles, and of words that no piece holds
    text_bytes: int  # of titles and texts in UTF-8


def _total(name: str) -> property:
    """A number of all parts together."""
    return property(lambda manifest: sum(getattr(part, name) for part in manifest.parts))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a store is.

    `rows`, `documents`, `fed_tokens`, `cut_tokens` and `text_bytes` are those of all parts, and
    include what has been deleted, until the store is compacted.
    """

    fingerprint: dict[str, str]  # of what made it (runs/fingerprint.py)
    memory_tokens: int  # M
    width: int  # D
    dtype: str  # of memories on disk
    rate: int  # `config.rate` of the model
    document_length: int  # most tokens of a row's text
    part: int  # rows of a part, about
    parts: tuple[StorePart, ...] = ()  # in the order of their rows
    # documents that are no more, with the number of parts that this is said of: one of the same id
    # may have been added later
    deleted: dict[str, int] = dataclasses.field(default_factory=dict)
    numbered: int = 0  # parts that there ever were, so that no name is given twice
    version: int = VERSION  # of this layout

    rows = _total("rows")
    documents = _total("documents")
    fed_tokens = _total("fed_tokens")
    cut_tokens = _total("cut_tokens")
    text_bytes = _total("text_bytes")

    @property
    def realised_compression(self) -> float:
        """Tokens read over memory vectors: less than `rate`, as most texts are not full."""
        return self.fed_tokens / max(self.rows * self.memory_tokens, 1)

    def arrays(self, rows: int) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of the arrays of a number of rows, by name."""
        arrays = {MEMORIES: (self.dtype, [rows, self.memory_tokens, self.width])}
        if self.dtype == "int8":
            arrays[SCALES] = ("float32", [rows, self.memory_tokens])
        return arrays

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays of a number of rows in main memory, not filled, by name."""
        arrays = self.arrays(rows).items()
        return {
            name: np.empty(shape, tensorstore.dtype(dtype).numpy_dtype)
            for name, (dtype, shape) in arrays
        }

    @property
    def row_bytes(self) -> int:
        """Of a row's memory, its scales included."""
        return sum(array.nbytes for array in self.empty(1).values())

    @property
    def memory_bytes(self) -> int:
        """Of all memories."""
        return self.rows * self.row_bytes

    def as_json(self) -> dict[str, Any]:
        """What manifest.json holds; its `summary` is for people and is not read."""
        names = (
            "rows",
            "documents",
            "fed_tokens",
            "cut_tokens",
            "realised_compression",
            "memory_bytes",
            "text_bytes",
        )
        summary = {name: getattr(self, name) for name in names}
        summary["memory_bytes_over_text_bytes"] = self.memory_bytes / max(self.text_bytes, 1)
        return {**dataclasses.asdict(self), "summary": summary}


def read_manifest(store: str) -> Manifest:
    """Reads a store's manifest.

    Raises:
        UserError: there is none, it is `Damaged`, or of a version that this program does not know.
    """
    path = os.path.join(store, MANIFEST)
    if not files.path(path).exists():
        raise Damaged(f"{store}: no store there ({MANIFEST} is missing); --mode=compress makes one")
    try:
        values = checksums.loads(files.read(path))
        if values["version"] != VERSION:
            raise UserError(
                f"{store}: a store of version {values['version']!r}, this program knows {VERSION}"
            )
        del values["summary"]
        parts = tuple(StorePart(**part) for part in values.pop("parts"))
        manifest = Manifest(**values, parts=parts)
        if not _is_sound(manifest):  # or parts that it should list might be taken for leftovers
            raise ValueError("values that no store has")
        return manifest
    except (ValueError, KeyError, TypeError) as e:
        raise Damaged(f"{path}: damaged ({reason(e)}); restore it from a copy") from e


def _is_sound(manifest: Manifest) -> bool:
    """Whether a manifest's values are of the right kinds."""
    if not (isinstance(manifest.deleted, dict) and isinstance(manifest.fingerprint, dict)):
        return False
    sizes = (
        manifest.memory_tokens,
        manifest.width,
        manifest.rate,
        manifest.document_length,
        manifest.part,
    )
    counts = [manifest.numbered, *manifest.deleted.values()]
    for part in manifest.parts:
        counts += dataclasses.astuple(part)[1:]
    names = [part.name for part in manifest.parts]
    return (
        manifest.dtype in DTYPES
        and all(type(size) is int and size > 0 for size in sizes)
        and all(type(count) is int and count >= 0 for count in counts)
        and max(manifest.deleted.values(), default=0) <= len(names)
        and all(isinstance(name, str) and name.isdecimal() for name in names)
        and len(set(names)) == len(names)
    )


def write_manifest(store: str, manifest: Manifest) -> None:
    """Replaces the manifest in one go."""
    files.write(os.path.join(store, MANIFEST), checksums.dumps(manifest.as_json()))


def whole(store: str, manifest: Manifest) -> Manifest:
    """The manifest without parts at its end that are damaged, as a power cut may leave them."""
    torn: dict[str, str] = {}
    for part in reversed(manifest.parts):
        if not (problem := damage(store, part)):
            break
        torn[part.name] = problem
    if torn:
        logging.warning(
            "%s: opened without its last %d parts, which are damaged (%s)%s",
            store,
            len(torn),
            "; ".join(torn.values()),
            REPAIR,
        )
    return without(manifest, torn)


def damage(store: str, part: StorePart, memories: bool = False) -> str:
    """What is wrong with the files of a part, or nothing.

    Args:
        store: a local one; nothing is said of others.
        part: of it.
        memories: whether all files are read, or only the documents, and the sizes of the others.
    """
    folder = part_folder(store, part.name)
    problem = checksums.damage(folder, content=memories)
    if problem or files.is_remote(store):
        return problem and f"{folder}: {problem}"
    try:
        read_table(folder, part.rows)
    except Damaged as e:
        if getattr(e.__cause__, "errno", None) in _PASSING:
            raise
        return str(e).removesuffix(REPAIR)
    return ""


def without(manifest: Manifest, names: Collection[str]) -> Manifest:
    """A manifest without parts of these names."""
    is_kept = [part.name not in names for part in manifest.parts]
    return dataclasses.replace(
        manifest,
        parts=tuple(itertools.compress(manifest.parts, is_kept)),
        deleted={name: sum(is_kept[:count]) for name, count in manifest.deleted.items()},
    )


def part_folder(store: str, name: str) -> str:
    """The folder of a part."""
    return os.path.join(store, PARTS, name)


def kvstore(folder: str) -> dict[str, str]:
    """Where TensorStore finds a folder."""
    if files.is_remote(folder):
        bucket, _, inside = folder.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}
    return {"driver": "file", "path": os.path.join(os.path.abspath(folder), "")}


def create_part(
    store: str, manifest: Manifest, name: str, table: pyarrow.Table
) -> dict[str, tensorstore.TensorStore]:
    """Writes the documents of a part; returns its arrays, by name, to write to."""
    folder = part_folder(store, name)
    with writing(store):
        arrays = create_arrays(folder, manifest, table.num_rows)
        write_table(folder, table)
    return arrays


def create_arrays(folder: str, manifest: Manifest, rows: int) -> dict[str, tensorstore.TensorStore]:
    """New arrays of a part, by name, to write to."""
    shard = max(1, min(rows, _SHARD // manifest.row_bytes))
    opened = {}
    for name, (dtype, whole) in manifest.arrays(rows).items():
        shape = whole[1:]
        metadata = {
            "shape": whole,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}},
            "codecs": [_sharded([1, *shape])],
        }
        opened[name] = _open(folder, name, metadata=metadata)
    return {name: future.result() for name, future in opened.items()}


def open_arrays(folder: str, manifest: Manifest, rows: int) -> dict[str, tensorstore.TensorStore]:
    """A part's arrays, by name.

    Raises:
        Damaged: they are not there, or others.
    """
    expected = manifest.arrays(rows)
    with unreadable(folder):
        opened = {name: _open(folder, name) for name in expected}
        arrays = {name: future.result() for name, future in opened.items()}
        for name, (dtype, shape) in expected.items():
            there = (arrays[name].dtype.name, list(arrays[name].shape))
            if there != (dtype, shape):
                raise ValueError(f"{name} are {there}, not {(dtype, shape)}")
        return arrays


def write_table(folder: str, table: pyarrow.Table) -> None:
    """Writes a part's documents."""
    out = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(out, SCHEMA) as writer:
        writer.write_table(table.combine_chunks())
    if not files.is_remote(folder):
        os.makedirs(folder, exist_ok=True)
    files.write(os.path.join(folder, TABLE), out.getvalue().to_pybytes())


def read_table(folder: str, rows: int) -> pyarrow.Table:
    """A part's documents, which stay on disk.

    Raises:
        Damaged: they are not there, or hold another number of rows.
    """
    path = os.path.join(folder, TABLE)
    with unreadable(path):
        if problem := checksums.damage(folder, lambda name: name == TABLE):
            raise ValueError(problem)
        with pyarrow.memory_map(files.local(path)) as source:
            table = pyarrow.ipc.open_file(source).read_all()
        if not (files.path(folder) / checksums.NAME).exists():
            table.validate(full=True)  # else a damaged offset ends the process
        if table.schema != SCHEMA or table.num_rows != rows:
            raise ValueError(f"not {rows} rows of a store")
        return table


def seal(store: str, part: StorePart) -> None:
    """Puts a part that is written on disk, with checksums; object storage has its own."""
    if not files.is_remote(store):
        folder = part_folder(store, part.name)
        checksums.seal(folder)
        files.sync(os.path.dirname(folder))
        files.sync(store)


def part_of(name: str, table: pyarrow.Table) -> StorePart:
    """What the manifest says of a part."""

    def total(values: Any) -> int:
        return pyarrow.compute.sum(values).as_py() or 0

    size = sum(total(pyarrow.compute.binary_length(table[column])) for column in ("title", "text"))
    firsts = total(pyarrow.compute.equal(table["chunk"], 0).cast(pyarrow.int64()))
    fed, cut = total(table["tokens"]), total(table["cut"])
    return StorePart(name, table.num_rows, firsts, fed, cut, size)


def _sharded(inner: Sequence[int]) -> dict[str, Any]:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {"chunk_shape": list(inner), "codecs": codecs, "index_codecs": codecs}
    return {"name": "sharding_indexed", "configuration": configuration}


def _open(folder: str, name: str, **made: Any) -> tensorstore.Future:
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore(os.path.join(folder, name)),
        # A document whose file is gone is an error, not a vector of zeros; zeros are data.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
        **made,
    }
    return tensorstore.open(spec, open=not made, create=bool(made), context=_context())


@functools.cache
def _context() -> tensorstore.Context:
    # For the shards' indices alone: who wants a document again keeps it.
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 64 * 2**20}})
