"""The table of time and memory by rate."""

import dataclasses
import json
from collections.abc import Sequence

from clara_jax import files
from clara_jax.errors import UserError
from clara_jax.evaluation.paper import paper

HEAD = (
    "",
    "compress, s a document",
    "query, s",
    "prompt, s",
    "decode, s",
    "answer, s",
    "faster than text",
    "program GiB",
    "peak GiB",
    "stored KiB a document",
    "cache MiB a question",
)


PAPER = (
    f"{paper.NAME}, Table 15, one H100 of 80 GB. Comparable where model and device are the same, "
    "but for the length of answers, which it does not tell."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; seconds are wall-clock medians of one document or one question."""

    name: str  # the rate, or full text
    compress: float  # seconds of a document; 0 of a text
    query: float  # of encoding a question; 0 of a text, which nothing ranks here
    prompt: float  # of reading a prompt to the first token
    whole: float  # of the prompt and all tokens of an answer
    program_gib: float  # most that one of the programs needs, arguments and temporary arrays
    peak_gib: float  # most main memory that the process ever held
    stored: float  # bytes of a document as it is kept, in bfloat16, or as text at 4 bytes a token
    cache: float  # bytes of keys and values of a question

    @property
    def answer(self) -> float:
        """Seconds of a question whose documents are compressed."""
        return self.query + self.whole

    @property
    def decode(self) -> float:
        """Seconds of all tokens but the first; 0 where the clock does not tell them apart."""
        return max(self.whole - self.prompt, 0.0)


def read(path: str) -> list[Row]:
    """The rows of a NAME.json that the command wrote.

    Raises:
        UserError: it is no such file.
    """
    try:
        return [Row(**row) for row in json.loads(files.read(path))["rows"]]
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: no table of evaluation.efficiency ({e!r})") from e


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows below HEAD, each beside the full text's answer."""
    text = next((row for row in rows if row.name == "full text"), None)
    found = []
    for row in rows:
        seconds = (row.compress, row.query, row.prompt, row.decode, row.answer)
        faster = f"{text.answer / row.answer:.2f}x" if text else ""
        found.append(
            [
                row.name,
                *(f"{value:.3g}" if value else "" for value in seconds),
                faster,
                f"{row.program_gib:.2f}",
                f"{row.peak_gib:.2f}",
                f"{row.stored / 2**10:.1f}",
                f"{row.cache / 2**20:.2f}",
            ]
        )
    return found
