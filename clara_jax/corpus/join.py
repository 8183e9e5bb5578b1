"""Stores that were made apart, as by the workers of `--shard`, become one.

The joined store has parts of its own, whose files are hard links to those of the stores where the
file system has them, else copies. Parts never change, so neither store is seen from the other. What
a later store says of a document counts, as if the stores had been written one after the other.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Sequence

from clara_jax import files
from clara_jax.corpus import format, locks, write
from clara_jax.corpus.format import Damaged, Manifest
from clara_jax.corpus.store import Store
from clara_jax.errors import UserError

_OWN = {"parts": (), "deleted": {}, "numbered": 0, "part": 1}  # in which stores may differ


def join(path: str, stores: Sequence[str]) -> Store:
    """Makes a store of others, which stay as they are; to repeat it changes nothing.

    Args:
        path: of the new store, a local folder.
        stores: the others, of the same model and kind.

    Raises:
        UserError: one cannot be read, is on object storage, or differs in what it was made by; two
            documents have the same id; or there is another store at the path.
    """
    path, stores = files.normal(path), [files.normal(store) for store in stores]
    if any(map(files.is_remote, (path, *stores))):
        raise UserError("--join is for local folders; copy the stores to a disk first")
    if not stores:
        raise UserError("--join: names no store")
    places = [os.path.realpath(store) for store in (path, *stores)]
    if len(set(places)) < len(places):
        raise UserError(f"--join={','.join(stores)}: names a store twice, or --store itself")
    with contextlib.ExitStack() as stack:
        for store in stores:
            stack.enter_context(locks.kept(store))
        opened = [_whole(store) for store in stores]
        joined = _joined(opened)
        empty = dataclasses.replace(joined, parts=(), deleted={}, numbered=0)
        with locks.changing(path, lambda: empty):
            there = format.read_manifest(path)
            if there == joined:
                return Store(path)
            if there != empty:
                raise UserError(f"{path}: holds another store; give --store another name")
            sources = [format.part_folder(s.path, part.name) for s in opened for part in s.parts]
            with format.writing(path):
                for source, part in zip(sources, joined.parts, strict=True):
                    _link(source, format.part_folder(path, part.name))
                if sources:
                    files.sync(os.path.join(path, format.PARTS))
                    files.sync(path)
                format.write_manifest(path, joined)
    return Store(path)


def _whole(path: str) -> Store:
    """A store of which no file is missing or shorter than it was."""
    for part in format.read_manifest(path).parts:
        if problem := format.damage(path, part):
            raise Damaged(problem + format.REPAIR)
    return Store(path)


def _joined(stores: Sequence[Store]) -> Manifest:
    """The manifest of stores together."""
    first, count = stores[0], 0
    known: write.Known = {}
    deleted: dict[str, int] = {}
    kind = dataclasses.replace(first.manifest, **_OWN)
    for store in stores:
        other = dataclasses.replace(store.manifest, **_OWN)
        for field in dataclasses.fields(kind):
            if getattr(other, field.name) != getattr(kind, field.name):
                raise UserError(
                    f"{store.path}: differs from {first.path} in {field.name.replace('_', ' ')}; "
                    "only stores of the same model, dtype and rate can be joined"
                )
        marks = {name: count + parts for name, parts in store.manifest.deleted.items()}
        for name in marks:
            known.pop(name, None)
        for name, digest in write.known(store).items():
            if name in known and digest and name not in marks:
                marks[name] = count  # of the copies before
            if known.setdefault(name, digest) != digest:
                raise UserError(
                    f"{store.path}: another document of the stores before has the id {name!r}; "
                    "delete one of the two first"
                )
        deleted |= marks
        count += len(store.parts)
    parts = itertools.chain.from_iterable(store.parts for store in stores)
    named = tuple(
        dataclasses.replace(part, name=write.part_name(number)) for number, part in enumerate(parts)
    )
    return dataclasses.replace(first.manifest, parts=named, deleted=deleted, numbered=count)


def _link(source: str, folder: str) -> None:
    """Gives the files of a part another name; keys for search are of each store's own."""

    def link(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(file, name)

    keys = shutil.ignore_patterns("keys-*")
    shutil.copytree(source, folder, ignore=keys, copy_function=link)
    files.sync_all(folder)
