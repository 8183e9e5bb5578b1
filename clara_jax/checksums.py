"""Checksums of what we write: a damaged file is reported when it is read, not used.

A sealed folder holds `checksums.json`, the size and CRC-32 of each of its files, which is written
last, when all of them are on disk. Files of JSON carry their own. What earlier versions wrote has
no checksums and is not checked.

    seal("export")
    damage("export")  # "weights.safetensors differs from its checksum", or ""
"""

import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clara_jax import files
from clara_jax.errors import UserError

NAME = "checksums.json"
_KEY = "crc32"
_BLOCK = 2**22
_THREADS = 8  # zlib lets others run meanwhile

Among = Callable[[str], bool]


def _all(name: str) -> bool:
    return True


def seal(folder: files.Name, among: Among = _all) -> None:
    """Puts all files below a local folder on disk, and then their sizes and checksums into it.

    Args:
        folder: of the files.
        among: which of them will not change, by their path in it.
    """
    paths = {os.path.relpath(path, folder): path for path in files.sync_all(folder)}
    paths = {n: path for n, path in sorted(paths.items()) if n != NAME and among(n)}
    with ThreadPoolExecutor(_THREADS) as pool:
        known = dict(zip(paths, pool.map(_of_file, paths.values()), strict=True))
    files.write(os.path.join(folder, NAME), dumps({"files": known}))


def damage(folder: files.Name, among: Among = _all, content: bool = True) -> str:
    """What is wrong with a file of a sealed folder, in a few words; empty where nothing is.

    Args:
        folder: of the files; nothing is wrong with one that is not sealed.
        among: which files count, by their path in it.
        content: whether they are read, or only their sizes are looked at.
    """
    seal = os.path.join(folder, NAME)
    if files.is_remote(folder) or not os.path.exists(seal):
        return ""
    try:
        known = loads(files.read(seal))["files"]
        marks = [(name, [int(size), int(crc)]) for name, (size, crc) in known.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        return f"{NAME} is damaged ({e})"

    def wrong(mark: tuple[str, list[int]]) -> str:
        name, written = mark
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{name} is missing"
        if (size := os.path.getsize(path)) != written[0]:
            return f"{name} has {size} bytes of {written[0]}"
        return f"{name} differs from its checksum" if content and _of_file(path) != written else ""

    with ThreadPoolExecutor(_THREADS) as pool:
        return next(filter(None, pool.map(wrong, (mark for mark in marks if among(mark[0])))), "")


def check(folder: files.Name, advice: str, among: Among = _all) -> None:
    """Raises a UserError, which ends with the advice, where `damage` finds any."""
    if problem := damage(folder, among):
        raise UserError(f"{folder}: {problem}; {advice}")


def dumps(values: dict[str, Any]) -> str:
    """JSON of an object, with a checksum in it."""
    return json.dumps({**values, _KEY: _of_values(values)}, indent=2)


def loads(text: str) -> dict[str, Any]:
    """What `dumps` made the text of, or an earlier version without a checksum.

    Raises:
        ValueError: it is no JSON object, or differs from its checksum.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    known = values.pop(_KEY, None)
    if known not in (None, _of_values(values)):
        raise ValueError("differs from its checksum")
    return values


def _of_values(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _of_file(path: str) -> list[int]:
    """Size and CRC-32."""
    size = crc = 0
    with open(path, "rb") as f:
        while block := f.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
