"""Pieces of an evaluation that are finished, kept so that a kill costs one piece and no more."""

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from clara_jax import distributed, files
from clara_jax.data.records import digest
from clara_jax.errors import UserError

Piece = dict[str, Any]


class Journal:
    """A file `unfinished-….jsonl` that only grows, and goes when the evaluation is written.

    It is there from the first piece on. The first line tells what the pieces depend on, every other
    line is a piece; a damaged one is left out. Every process of a run reads it, the first one
    writes. On object storage, which cannot append, nothing is kept.

    Args:
        folder: where it lies, such as the run's `eval/`; None keeps nothing.
        basis: what the numbers depend on, as JSON; another basis is another file.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, folder: str | None, basis: Piece):
        self._pieces: dict[str, Piece] = {}
        self._path = None
        if folder is None or files.is_remote(folder):
            return
        self._head = json.dumps(basis, sort_keys=True)
        self._path = os.path.join(folder, f"unfinished-{digest(self._head).hex()[:12]}.jsonl")
        try:
            os.makedirs(folder, exist_ok=True)
            whole = self._read()
            distributed.barrier("journal")  # all have read it
            if distributed.is_first():
                with open(self._path, "a", encoding="utf-8") as f:
                    f.truncate(whole)  # a kill may have cut the last line
                if not whole:
                    os.remove(self._path)  # it can be written; a mistake leaves nothing behind
        except OSError as e:
            raise UserError(f"{self._path}: cannot be written ({e.strerror})") from e
        if self._pieces:
            logging.info("%d pieces of this evaluation are done already", len(self._pieces))

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def piece(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """What `compute` gives, as JSON has it, or what an earlier run kept under the name."""
        if not distributed.any_of(name not in self._pieces):
            return self._pieces[name]
        line = json.dumps({"name": name, "piece": compute()}, ensure_ascii=False)
        self._pieces[name] = json.loads(line)["piece"]
        if self._path is not None and distributed.is_first():
            try:
                with open(self._path, "a", encoding="utf-8") as f:
                    f.write(line + "\n" if f.tell() else f"{self._head}\n{line}\n")
            except OSError as e:
                raise UserError(f"{self._path}: cannot be written ({e.strerror})") from e
        return self._pieces[name]

    def close(self) -> None:
        """Removes the file: the evaluation is written."""
        if self._path is not None and distributed.is_first():
            with contextlib.suppress(FileNotFoundError):  # there was no piece
                os.remove(self._path)

    def _read(self) -> int:
        """Takes in whole lines; the number of bytes that they have."""
        if not os.path.exists(self._path):
            return 0
        with open(self._path, "rb") as f:
            data = f.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines()[1:], 2):
            try:
                entry = json.loads(line)
                self._pieces[entry["name"]] = dict(entry["piece"])
            except (ValueError, KeyError, TypeError) as e:
                logging.warning("%s:%d: damaged (%s), computed again", self._path, number, e)
        return whole
