"""What the parts of synthesis give each other: a document, and its questions with answers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Document:
    """A document, or a piece of one that is within the limit.

    Attributes:
        id: unique in the corpus, and the same in every run over it.
        title: of the whole, on each of its pieces; may be empty.
        text: without the title.
        source: the file or data set that it is of, with line or position.
    """

    id: str
    title: str
    text: str
    source: str

    @property
    def whole(self) -> str:
        """Title and text as records hold them."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question with its answer.

    Attributes:
        question: the question.
        answer: as short as possible, from the document alone.
        kind: `simple`, of one fact, or `complex`, of several from different places.
        round: in which it was asked for, from 0.
    """

    question: str
    answer: str
    kind: str = "simple"
    round: int = 0
