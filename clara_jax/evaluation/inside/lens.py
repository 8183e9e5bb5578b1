"""The logit lens slot by slot (paper, Fig. 4): words of the gold document that no question holds.

Whether a query's vectors really look for their document is told by a control: as many such words
must not be found in the document of another question. Function words and words of fewer than four
letters, which any document holds, are not marked; they are counted, for the control has them too.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax import api
from clara_jax.evaluation import statistics
from clara_jax.evaluation.inside.data import Given
from clara_jax.inference import lens
from clara_jax.inference.lens import Word
from clara_jax.models.clara import Trees
from clara_jax.plotting import FONT, pyplot, shortened, slot_labels
from clara_jax.runs.setup import Model
from clara_jax.text import wording

WORDS = 6  # a slot
_EXAMPLES = 3
_SLOTS = 16  # of a picture; all are in the JSON
_MARKED = "#f6b26b"
_FEWEST_LETTERS = 4
# Beside those that wording.stems leaves out.
_FUNCTION = frozenset(
    "although because both down each either even ever every herself himself itself just less "
    "like many more most much must neither never only onto other others ours over same "
    "several shall since some still such themselves though through toward towards under "
    "unless until upon very well what when where whether which while within without your "
    "yours".split()
)


def by_slot(
    model: Model, trees: Trees, memories_nMD: np.ndarray, count: int = WORDS
) -> list[list[list[Word]]]:
    """The words of every slot of each memory, the highest first: [n][M][<= count]."""
    n, M, D = memories_nMD.shape
    # Twice as many tokens, for some are no words.
    found = lens.words(model, trees, memories_nMD.reshape(n * M, 1, D), 2 * count)
    return [[words[:count] for words in found[i * M : (i + 1) * M]] for i in range(n)]


def measure(model: Model, trees: Trees, given: Given) -> dict[str, Any]:
    """Words of queries and of their gold documents, and how many of them say more than was asked.

    A word counts that is a word of the gold document (or starts one) and none of the question. The
    control counts those of another question's document.
    """
    asked = given.questions
    documents = [[record.documents[i] for i in record.gold] for record in asked]
    batch = model.config.eval.batch
    distinct = list(dict.fromkeys(text for texts in documents for text in texts))
    memories = by_slot(model, trees, api.compress(model, trees, distinct, batch).memories)
    of_document = dict(zip(distinct, memories, strict=True))
    of_query = by_slot(
        model, trees, api.encode_query(model, trees, [r.question for r in asked], batch)
    )
    out, counts = [], {"query": [], "memory": []}
    for n, (record, texts, query) in enumerate(zip(asked, documents, of_query, strict=True)):
        said = {"query": query, "memory": of_document[texts[0]]}
        read = {"query": texts, "memory": texts[:1]}
        other = _another(documents, n)
        marked = {
            name: [lens.mark(words, record.question, read[name]) for words in slots]
            for name, slots in said.items()
        }
        for name, slots in said.items():
            control = [lens.mark(words, record.question, other) for words in slots]
            counts[name].append((_distinct(marked[name]), _distinct(control)))
        out.append({
            "question": record.question, "answer": record.answers[0], "document": texts[0],
            **{name: [_plain(words) for words in slots] for name, slots in marked.items()},
        })  # fmt: skip
    return {
        "questions": len(asked),
        "role": "compressor" if trees.get("reasoner") is None else "reasoner",
        "counts": {name: _against_control(pairs) for name, pairs in counts.items()},
        "words": out,
    }


def _has_meaning(word: str) -> bool:
    word = word.casefold()
    if word.isascii() and len(word) < _FEWEST_LETTERS:  # Chinese words are shorter
        return False
    return word not in _FUNCTION and bool(wording.stems(word))


def _another(documents: Sequence[Sequence[str]], n: int) -> Sequence[str]:
    """Documents of the next question that shares none with question n; its own if none does."""
    following = (documents[(n + i) % len(documents)] for i in range(1, len(documents)))
    return next((texts for texts in following if not set(texts) & {*documents[n]}), documents[n])


def _against_control(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    ours, theirs = zip(*pairs, strict=True)
    paired = statistics.paired(ours, theirs)
    return {
        "own": float(np.mean(ours)),
        "another": float(np.mean(theirs)),
        "difference": paired.difference,
        "interval": [paired.low, paired.high],
        "p": paired.p,
    }


def _distinct(slots: Sequence[Sequence[Word]]) -> int:
    """How many words that are marked the slots hold, each counted once."""
    return len({word.text.casefold() for words in slots for word in words if word.in_documents})


def _plain(words: Sequence[Word]) -> list[list[Any]]:
    """Text, score and whether it is marked."""
    return [
        [word.text, round(word.score, 2), word.in_documents and _has_meaning(word.text)]
        for word in words
    ]


def draw(found: dict[str, Any]) -> Any:
    """Words of a few queries (left) and their documents (right), those of the document marked."""
    examples = found["words"][:_EXAMPLES]
    slots = min(len(examples[0]["query"]), _SLOTS)
    figure, axes = pyplot().subplots(
        len(examples), 2, figsize=(13, len(examples) * (1.1 + 0.3 * slots)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for line, example in zip(axes, examples, strict=True):
        titles = {
            "query": f"query: {shortened(example['question'], 62)}",
            "memory": textwrap.fill(f"document: {shortened(example['document'], 130)}", 75),
        }
        for ax, (name, title) in zip(line, titles.items(), strict=True):
            _words(ax, example[name][:slots])
            ax.set_title(title, fontsize=FONT + 1, loc="left")
    figure.suptitle(
        "Logit lens: the words that each memory vector says, likeliest first\n"
        "orange: in the gold document and not in the question; short and function words left out",
        fontsize=12,
    )  # fmt: skip
    return figure


def _words(axes: Any, slots: Sequence[Sequence[Sequence[Any]]]) -> None:
    for y, words in enumerate(slots):
        for x, (word, _, marked) in enumerate(words):
            axes.text(
                x + 0.5, y + 0.5, shortened(word, 13), ha="center", va="center", fontsize=FONT,
                bbox={"facecolor": _MARKED if marked else "#eeeeee", "edgecolor": "none", "pad": 2},
            )  # fmt: skip
    axes.set(xlim=(0, WORDS), ylim=(len(slots), 0), xticks=[])
    axes.set_yticks(np.arange(len(slots)) + 0.5, slot_labels(len(slots)), fontsize=FONT)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def text(found: dict[str, Any]) -> list[str]:
    """The numbers and a few queries, as lines of Markdown; marked words are bold."""
    names = {"query": f"the query ({found['role']})", "memory": "the document (compressor)"}
    lines = [
        f"Words of the gold document that the question does not hold, said by the vectors of each "
        f"of {found['questions']} questions and documents, and as many of another document:",
        "",
        "| vectors of | its document | another | difference | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, label in names.items():
        c = found["counts"][name]
        lines.append(
            f"| {label} | {c['own']:.2f} | {c['another']:.2f} | {c['difference']:.2f} "
            f"({c['interval'][0]:.2f} to {c['interval'][1]:.2f}) | {c['p']:.4f} |"
        )
    lines.append("")
    for example in found["words"][:_EXAMPLES]:
        lines += [f"*{example['question']}* (answer: {example['answer']})", ""]
        for name in ("query", "memory"):
            for slot, words in enumerate(example[name][:_SLOTS]):
                said = ", ".join(f"**{w}**" if marked else w for w, _, marked in words)
                lines.append(f"- {name}, slot {slot}: {said}")
        lines.append("")
    return lines
