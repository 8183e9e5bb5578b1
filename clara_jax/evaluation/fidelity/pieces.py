"""Fidelity's parts in pieces of a few documents, kept in a journal, with the time that is left."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from clara_jax.data.records import digest
from clara_jax.evaluation.journal import Journal, Piece
from clara_jax.progress import Progress
from clara_jax.runs.fingerprint import model_hash
from clara_jax.runs.setup import Loaded

_SIZE = 16  # documents of a piece where no model says its batch

Item = TypeVar("Item")


class Pieces:
    """What the parts of one run are computed with.

    Args:
        journal: keeps what is finished; None keeps nothing.
        loaded: the run, whose step and hash tell its pieces from others.
        workdir: the run's.
        label: what the progress calls it.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        loaded: Loaded | None = None,
        workdir: str = "",
        label: str = "",
    ):
        self._journal = journal or Journal(None, {})
        self._size = loaded.model.config.eval.batch if loaded else _SIZE
        self._key = f"{workdir} {loaded.model.step} {model_hash(*loaded)}" if loaded else workdir
        self._label = f"{label}: " if label else ""

    def each(
        self,
        part: str,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], Piece],
        times: int = 1,
    ) -> list[Piece]:
        """What `compute` gives for some items after the other, as JSON has it.

        Args:
            part: name of what is computed.
            items: all that it is computed of; a piece is known again by their texts.
            compute: of a few items.
            times: so many batches of items in a piece.
        """
        size = times * self._size
        cuts = [items[start : start + size] for start in range(0, len(items), size)]
        names = [f"{self._key} {part} {digest(repr(cut)).hex()}" for cut in cuts]
        done = sum(len(c) for n, c in zip(names, cuts, strict=True) if n in self._journal)
        progress, found = Progress(len(items), self._label + part, done), []
        for name, cut in zip(names, cuts, strict=True):
            done += 0 if name in self._journal else len(cut)
            found.append(self._journal.piece(name, lambda cut=cut: compute(cut)))
            progress.update(done)
        progress.close()
        return found
