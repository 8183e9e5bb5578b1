"""Made-up facts for the quickstart: documents and questions drawn on the fly, nothing to download.

A document tells about one subject: a name of two words and one sentence for each of a few of its
attributes. Its questions ask for every part, the subject's name included, for what no question
needs the compressor drops. Any word can be the value of any document, so answers cannot be guessed.

The later stages get one question about a subject and twenty candidates. Two of them are about the
subject with the name's words the other way round and have the attribute too, and six share a word
of the name: which words a question and a document share does not tell where the answer is.
"""

import dataclasses
import functools
import itertools
import re
from typing import Self

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clara_jax.data.records import QaRecord, ScpRecord
from clara_jax.errors import UserError

_PAIRS = tuple(itertools.permutations("bdfgklm", 2))[:40]
_NAMES = tuple(a + v + b + "a" for v, (a, b) in zip("eiou" * 10, _PAIRS, strict=True))

# Attribute → its possible values. What differs between documents is only which are chosen.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": tuple(n[:-1] + "ton" for n in _NAMES[:8]),
    "job": ("baker", "pilot", "nurse", "judge", "miner", "tailor", "farmer", "singer"),
    "animal": ("horse", "goat", "cat", "dog", "mule", "crow", "owl", "fox"),
    "colour": ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
    "food": ("bread", "rice", "soup", "figs", "plums", "cheese", "beans", "honey"),
    "instrument": ("drum", "flute", "harp", "lute", "horn", "violin", "organ", "cello"),
}
FACTS = 4  # sentences of a document, in random order
VERSIONS = 4  # documents about each subject among the candidates of questions
REVERSED, RELATED, CANDIDATES = 2, 3, 20  # candidates: name reversed; with either word; all
_MOST = 10**8  # documents of a source; it keeps four bytes for each


def parse(rest: str) -> tuple[int, int]:
    """Number and seed of `<number>[:<seed>]`.

    Raises:
        UserError: that is not its form.
    """
    # So many digits that int takes them; isdigit would let ² pass.
    match = re.fullmatch(r"([0-9]{1,1000})(?::([0-9]{1,1000}))?", rest)
    count, seed = (int(part or 0) for part in match.groups()) if match else (0, 0)
    if count < 1:
        raise UserError(f"facts:{rest}: expected facts:<documents>[:<seed>], as facts:10000:1")
    if count > _MOST:
        raise UserError(f"facts:{rest}: too many documents; ask for {_MOST} or fewer")
    return count, seed


def draw(rng: np.random.Generator, name: str) -> tuple[str, dict[str, str]]:
    """A document about a subject, and its attributes with their values."""
    chosen = rng.choice(list(ATTRIBUTES), FACTS, replace=False)
    values = {str(a): str(rng.choice(ATTRIBUTES[a])) for a in chosen}
    facts = " . ".join(f"the {a} is {v}" for a, v in values.items())
    return f"this is {name} . {facts} .", values


@dataclasses.dataclass(frozen=True)
class _Facts:
    """`facts:<n>[:<seed>]`: n records; seed 0 by default."""

    count: int
    seed: int = 0

    @classmethod
    def open(cls, rest: str, tfds_dir: str = "") -> Self:
        """Parses `<n>[:<seed>]`."""
        return cls(*parse(rest))

    def __len__(self) -> int:
        return self.count

    @property
    def keys(self) -> np.ndarray:
        """For `holdout`: a random number a record, since no two share a subject by design."""
        return np.random.default_rng(self.seed).integers(2**32, size=len(self), dtype=np.uint32)


class FactsSource(_Facts):
    """`facts:<n>[:<seed>]` for SCP: n documents with a question for every part.

    Record i depends on the seed and i alone, so another seed gives documents never seen.
    """

    def __getitem__(self, index: int) -> ScpRecord:
        rng = np.random.default_rng((self.seed, index))
        first, second = rng.choice(len(_NAMES), 2, replace=False)
        name = f"{_NAMES[first]} {_NAMES[second]}"
        document, values = draw(rng, name)
        asked = [("who ?", name), *((f"which {a} ?", v) for a, v in values.items())]
        order = rng.permutation(len(asked))
        return ScpRecord(
            data_type="qa",
            questions=tuple(asked[i][0] for i in order),
            answers=tuple(asked[i][1] for i in order),
            document=document,
            origin=f"facts:{self.count}:{self.seed}, record {index}",
        )


@functools.lru_cache(maxsize=2**16)
def _about(seed: int, first: int, second: int, version: int) -> tuple[str, dict[str, str]]:
    rng = np.random.default_rng((seed, first, second, version))
    return draw(rng, f"{_NAMES[first]} {_NAMES[second]}")


class FactsQuestions(_Facts):
    """`facts:<n>[:<seed>]` for the later stages: n questions with CANDIDATES documents each.

    The documents come from VERSIONS about every possible subject, so that many questions share
    them; they depend on the seed alone.
    """

    def __getitem__(self, index: int) -> QaRecord:
        rng = np.random.default_rng((self.seed, index, len(_NAMES)))
        first, second, *others = rng.permutation(len(_NAMES)).tolist()
        gold, values = _about(self.seed, first, second, int(rng.integers(VERSIONS)))
        attribute = str(rng.choice(list(values)))
        twins = [_about(self.seed, second, first, v) for v in rng.permutation(VERSIONS)]
        twins.sort(key=lambda twin: attribute not in twin[1])
        documents = [gold, *(text for text, _ in twins[:REVERSED])]
        pairs = [(first, word) for word in others[:RELATED]]
        pairs += [(word, second) for word in others[RELATED : 2 * RELATED]]
        while len(documents) + len(pairs) < CANDIDATES:
            pairs.append(tuple(rng.choice(others, 2, replace=False).tolist()))
        documents += [_about(self.seed, *pair, int(rng.integers(VERSIONS)))[0] for pair in pairs]
        order = rng.permutation(CANDIDATES).tolist()
        return QaRecord(
            question=f"which {attribute} of {_NAMES[first]} {_NAMES[second]} ?",
            documents=tuple(documents[i] for i in order),
            answers=(values[attribute],),
            gold=(order.index(0),),
            origin=f"facts:{self.count}:{self.seed}, question {index}",
        )


def load_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of just the words that the facts and their prompts use."""
    special = ["<unk>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>"]
    text = "this is the . which who of ? Question: Answer:"
    words = [*text.split(), *ATTRIBUTES, *_NAMES]
    words += [v for values in ATTRIBUTES.values() for v in values]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*special, "\n", *words]))}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    # Words are split at spaces, which are dropped; a newline is a token of its own.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content %}{{ '<' + m.role + '>' + m.content }}{% endif %}"
        "{% if m.role == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    return tokenizer
