"""Pieces of an evaluation that are finished, kept so that a kill costs one piece and no more."""

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from clara_jax import distributed, files, ledger
from clara_jax.data.records import digest
from clara_jax.ledger import Ledger

Piece = dict[str, Any]


class Journal:
    """A ledger `unfinished-….jsonl` that is removed when the evaluation is written.

    It is there from the first piece on. The first line is what the pieces depend on, every other
    line is a piece; a damaged one is left out. Every process of a run reads it, the first one
    writes. On object storage, which cannot append, nothing is kept.

    Args:
        folder: of the file, such as the run's `eval/`; None keeps nothing.
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
        with files.writing(f"{self._path}:"):
            os.makedirs(folder, exist_ok=True)
            size = ledger.read(self._path, self._take, self._warn)
            distributed.barrier("journal")  # all have read it
            if distributed.is_first():
                Ledger(self._path, size).close()
                if not size:
                    os.remove(self._path)  # it can be written; a mistake leaves nothing behind
        if self._pieces:
            logging.info("%d pieces of this evaluation are done already", len(self._pieces))

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def piece(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """What `compute` returns, as JSON has it, or what an earlier run kept under the name."""
        if not distributed.any_of(name not in self._pieces):
            return self._pieces[name]
        self._pieces[name] = piece = json.loads(json.dumps(compute()))
        if self._path is not None and distributed.is_first():
            with files.writing(f"{self._path}:"), Ledger(self._path) as file:
                if not file.size:
                    file.append(json.loads(self._head))
                file.append({"name": name, "piece": piece})
        return piece

    def close(self) -> None:
        """Removes the file: the evaluation is written."""
        if self._path is not None and distributed.is_first():
            with contextlib.suppress(FileNotFoundError):  # there was no piece
                os.remove(self._path)

    def _take(self, line: ledger.Entry, start: int) -> None:
        if start:
            self._pieces[line["name"]] = dict(line["piece"])

    def _warn(self, problem: str) -> None:
        logging.warning("%s, computed again", problem)
