"""From records and texts to token ids and labels: the layouts of the method.

Compressor input: <ENC><bos> text <eos> <MEM0> ... <MEM(M-1)>, the part before the memory tokens cut
on the right to `document_length + 3`; with pooling there are no memory tokens. Prompts: a chat
template whose user turn holds, for each document, M memory slots and one separator, with nothing
between them.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.config import Prompts
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Parts, Tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens

NO_LABEL = -100
FRAME = 3  # ENC, bos and eos around a document's text


class NoLabelError(UserError):
    """A prompt fills its row, so that nothing is left to learn from."""


class Turns(NamedTuple):
    """A prompt and its answer at every rate, one after the other; every array is int32 [T]."""

    tokens: np.ndarray  # the generator's input, memory ids at its slots
    # the token that each position must predict, NO_LABEL where there is no loss
    targets: np.ndarray
    positions: np.ndarray  # from 0 in each of them
    parts: np.ndarray  # which of them, from 0
    slots: np.ndarray  # which of the documents' vectors at all rates (`every_rate`), or -1
    cut: bool  # an answer was longer than the row


@dataclasses.dataclass(frozen=True)
class Example:
    """One document with its prompt and answer, before packing."""

    enc_tokens: np.ndarray  # the compressor's input, int32 [T]; empty for plain text
    turns: Turns
    document_cut: bool  # the document was longer than the limit


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """How texts are laid out as token ids."""

    tokenizer: Tokenizer  # of the base model
    extra: ExtraTokens  # ids beyond the vocabulary
    prompts: Prompts  # texts of the prompts
    document_length: int  # most tokens of a document's text
    seed: int = 0  # of the choice among the paraphrase instructions
    pools: bool = False  # memories are pooled from the text's states: no memory tokens are read
    # memory vectors of a document in a prompt at each rate of training; empty: all, at one
    counts: tuple[int, ...] = ()
    asked: int = 0  # the same in a prompt that is asked; 0: all

    @property
    def vectors(self) -> tuple[int, ...]:
        """Memory vectors of a document in a prompt at each rate of training."""
        return self.counts or (self.extra.memory_tokens,)

    @property
    def tail(self) -> tuple[int, ...]:
        """What ends the compressor's input: the memory tokens, unless it pools."""
        return () if self.pools else self.extra.memory

    @property
    def longest(self) -> int:
        """Most tokens of the compressor's input."""
        return self.document_length + FRAME + len(self.tail)

    def places(self, length: int) -> np.ndarray:
        """Where in an input of that many tokens its memory vectors are, int32 [M].

        The memory tokens; with pooling a token of each window (`clara.pooled`), or in a text of
        fewer tokens than M the nearest one.
        """
        M = self.extra.memory_tokens
        j = np.arange(M, dtype=np.int32)
        if not self.pools:
            return j + length - M
        return -(-j * length // M) if length >= M else (2 * j + 1) * length // (2 * M)

    def document_ids(self, document: str, limit: int | None = None) -> tuple[list[int], bool]:
        """The compressor's input for one text, a document or a question.

        Args:
            document: the text.
            limit: most tokens of text that are kept; None: `document_length`.

        Returns:
            At most `limit + 3` ids and the `tail`, and whether text was cut. A text that is cut
            loses its eos too (as in the release, whose weights have seen it so).
        """
        bos, eos = (
            [] if token is None else [token]
            for token in (self.tokenizer.bos_id, self.tokenizer.eos_id)
        )
        most = (self.document_length if limit is None else limit) + FRAME
        text = self.tokenizer.shortened(document, most)
        ids = self.tokenizer.encode([self.extra.enc, *bos, text, *eos])
        return ids[:most] + list(self.tail), len(ids) > most

    def head(self, document: str) -> str:
        """The part of a text that the compressor reads."""
        return self.tokenizer.head(document, self.document_length)

    def slots(self, documents: int = 1, count: int = 0) -> list[int]:
        """What stands for compressed documents in a prompt.

        Args:
            documents: their number.
            count: vectors of each; 0: as many as where a question is asked.
        """
        count = count or self.asked or self.extra.memory_tokens
        return [*self.extra.memory[:count], self.extra.sep] * documents

    def scp_turns(
        self, record: ScpRecord, docs: Parts, index: int = 0
    ) -> tuple[str, list[str | int]]:
        """System text and user turn of an SCP record.

        Args:
            record: the record.
            docs: what stands for the document: `slots()`, its text, or nothing.
            index: position of the record in its source, for the choice of an instruction.
        """
        prompts = self.prompts
        users = {
            "qa": (prompts.qa_system, (prompts.qa_user,)),
            "paraphrase": (prompts.paraphrase_system, prompts.paraphrase_users),
            "reconstruction": (prompts.paraphrase_system, (prompts.reconstruct_user,)),
            "continuation": (prompts.paraphrase_system, (prompts.continue_user,)),
        }
        system, choices = users[record.data_type]
        user = random.Random(f"{self.seed} {index}").choice(choices)
        return system, fill(user, docs=docs)

    def scp_example(self, record: ScpRecord, decoder_row: int, index: int = 0) -> Example:
        """Ids and labels of one SCP record.

        Args:
            record: the record. What a reconstruction must give is cut to what the compressor sees.
            decoder_row: most tokens of prompt and answer; a longer answer is cut on the right.
            index: position of the record in its source.

        Raises:
            NoLabelError: the prompt alone fills the row, so that no label is left.
        """
        if record.compress:
            enc, document_cut = self.document_ids(record.document)
            given = self.at_rates()
        else:
            text = self.head(record.document)
            enc, document_cut, given = [], text != record.document, [[text]]
        if record.data_type == "qa":
            answer = qa_text(record.questions, record.answers)
        else:
            answer = record.answers[0]
        if record.data_type == "reconstruction":
            answer = self.head(answer)

        dialogues = [
            dialogue(self.tokenizer, *self.scp_turns(record, docs, index), answer) for docs in given
        ]
        turns = self.turns(dialogues, decoder_row, record.origin)
        return Example(np.asarray(enc, np.int32), turns, document_cut)

    def at_rates(self, documents: int = 1) -> list[list[int]]:
        """What stands for compressed documents in a prompt, at each rate of training."""
        return [self.slots(documents, count) for count in self.vectors]

    def turns(
        self, dialogues: Sequence[tuple[list[int], int]], decoder_row: int, origin: str
    ) -> Turns:
        """Exchanges at every rate as they stand in a row.

        Args:
            dialogues: ids of each, and where the answer starts; the documents are as in `at_rates`.
            decoder_row: most tokens of all; a longer answer is cut on the right.
            origin: of the record, for the error.

        Raises:
            NoLabelError: a prompt alone fills its part of the row, so that no label is left.
        """
        counts = self.vectors
        most, first, rows = decoder_row // len(dialogues), 0, []
        for part, (ids, start) in enumerate(dialogues):
            if start >= most:
                raise NoLabelError(f"{origin}: {no_room(start, decoder_row, len(dialogues))}")
            tokens = np.asarray(ids[:most], np.int32)
            is_slot = self.extra.is_memory(tokens)
            document, vector = np.divmod(np.arange(is_slot.sum()), counts[part])
            slots = np.full_like(tokens, -1)
            slots[is_slot] = document * sum(counts) + first + vector
            first += counts[part]
            order = np.arange(len(tokens), dtype=np.int32)
            rows.append((tokens, labels(tokens, start), order, np.full_like(tokens, part), slots))
        cut = any(len(ids) > most for ids, _ in dialogues)
        return Turns(*map(np.concatenate, zip(*rows, strict=True)), cut=cut)

    def scp_question(self, docs: Parts, question: str) -> list[int]:
        """Prompt that asks an SCP model one question; its answer ends at the next newline.

        The assistant's turn is opened with the question, for SCP prompts hold none.

        Args:
            docs: what stands for the document: `slots()`, its text, or nothing.
            question: the question.
        """
        opened = self.tokenizer.chat(self.prompts.qa_system, fill(self.prompts.qa_user, docs=docs))
        return self.tokenizer.encode([*opened, f"Question: {question}\nAnswer:"])

    def scp_prompt(self, record: ScpRecord, docs: Parts, index: int = 0) -> list[int]:
        """Open prompt of an SCP record: what precedes the labels in training (see `scp_turns`)."""
        return self.tokenizer.encode(self.tokenizer.chat(*self.scp_turns(record, docs, index)))

    def answer_prompt(
        self, docs: Parts, question: str, answer: str | None = None
    ) -> tuple[list[int], int]:
        """Prompt of the later stages: documents and a question in the user turn.

        Args:
            docs: `slots(k)`, texts, or nothing.
            question: the question.
            answer: the assistant's turn; None leaves it open.

        Returns:
            Ids, and where the assistant's turn starts among them (their number if it is open).
        """
        user = fill(self.prompts.answer_user, docs=docs, question=question)
        system = self.prompts.answer_system
        if answer is None:
            ids = self.tokenizer.encode(self.tokenizer.chat(system, user))
            return ids, len(ids)
        return dialogue(self.tokenizer, system, user, answer)


def labels(tokens: np.ndarray, start: int, stop: int | None = None) -> np.ndarray:
    """The token that each position must predict, int32 [T]: those from `start` to `stop` alone.

    Args:
        tokens: int32 [T].
        start: of the tokens that are learnt; above 0.
        stop: their end; None: that of the tokens.
    """
    stop = len(tokens) if stop is None else stop
    targets = np.full_like(tokens, NO_LABEL)
    targets[start - 1 : stop - 1] = tokens[start:stop]
    return targets


def no_room(start: int, decoder_row: int, rates: int = 1) -> str:
    """What to say where a prompt of `start` tokens fills its part of a row."""
    row = f"a row of {decoder_row}" + (f", which {rates} rates share" if rates > 1 else "")
    return (
        f"the prompt has {start} tokens and leaves no label in {row}; set "
        f"config.data.decoder_row to {(start + 1) * rates} or more"
    )


def fill(template: str, **values: Parts) -> list[str | int]:
    """Puts parts at the `{name}`s of a template; braces inside the values mean nothing."""
    parts: list[str | int] = []
    for i, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        value = values[piece] if i % 2 else piece
        parts.extend([value] if isinstance(value, str) else value)
    return parts


def qa_text(questions: Sequence[str], answers: Sequence[str]) -> str:
    """Question and answer pairs as the assistant writes them in SCP."""
    return "\n".join(
        f"Question: {question}\nAnswer: {answer}"
        for question, answer in zip(questions, answers, strict=True)
    )


def dialogue(
    tokenizer: Tokenizer, system: str, user: Parts, assistant: str
) -> tuple[list[int], int]:
    """Ids of a whole exchange, and where the assistant's turn starts among them.

    The turn is everything that the open prompt does not hold: answer, end token and what the
    template puts after it.
    """
    opened, closed = tokenizer.chat(system, user), tokenizer.chat(system, user, assistant)
    prompt, whole = tokenizer.encode(opened), tokenizer.encode(closed)
    start = common(prompt, whole)
    if start < len(prompt) and (rest := _after(opened, closed)) is not None:
        # A token would span both: apart, so that what is asked is the start of what was trained.
        return prompt + tokenizer.encode(rest), len(prompt)
    return whole, start


def _after(opened: list[str | int], closed: list[str | int]) -> list[str | int] | None:
    """What follows in a closed exchange on the open one; None where that is not its start."""
    *before, last = opened
    if closed[: len(before)] != before or len(closed) == len(before):
        return None
    following, *after = closed[len(before) :]
    if following == last:
        return after
    if isinstance(last, str) and isinstance(following, str) and following.startswith(last):
        return [following[len(last) :], *after]
    return None


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
