"""From records and texts to token ids and labels: the layouts of the method.

Compressor input: <ENC><bos> text <eos> <MEM0> ... <MEM(M-1)>, the part before the memory tokens cut
on the right to `document_length + 3`. Prompts: a chat template whose user turn holds, for each
document, M memory slots and one separator, with nothing between them.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

import numpy as np

from clara_jax.config import Prompts
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Parts, Tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens

NO_LABEL = -100


class NoLabelError(UserError):
    """A prompt fills its row, so that nothing is left to learn from."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One document with its prompt and answer, before packing; every array is int32 [T].

    Attributes:
        enc_tokens: the compressor's input, memory tokens at its end; empty for plain text.
        dec_tokens: the generator's input, memory ids at its slots.
        dec_targets: the token that each position must predict, NO_LABEL where there is no loss.
        document_cut: the document was longer than the limit.
        answer_cut: the answer was longer than the row.
    """

    enc_tokens: np.ndarray
    dec_tokens: np.ndarray
    dec_targets: np.ndarray
    document_cut: bool
    answer_cut: bool


def document_ids(
    tokenizer: Tokenizer, extra: ExtraTokens, document: str, document_length: int
) -> tuple[list[int], bool]:
    """The compressor's input for one text, a document or a question.

    Args:
        tokenizer: of the base model.
        extra: ids beyond the vocabulary.
        document: the text.
        document_length: most tokens of text that are kept.

    Returns:
        At most `document_length + 3 + M` ids, and whether text was cut. A text that is cut loses
        its eos too (as in the release, whose weights have seen it so).
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = tokenizer.encode([extra.enc, *bos, document, *eos])
    limit = document_length + FRAME
    return ids[:limit] + list(extra.memory), len(ids) > limit


def slots(extra: ExtraTokens, documents: int = 1) -> list[int]:
    """What stands for `documents` compressed documents in a prompt."""
    return [*extra.memory, extra.sep] * documents


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


def scp_turns(
    record: ScpRecord, prompts: Prompts, docs: Parts, seed: int, index: int
) -> tuple[str, list[str | int]]:
    """System text and user turn of an SCP record.

    Args:
        record: the record.
        prompts: texts.
        docs: what stands for the document: `slots(...)`, its text, or nothing.
        seed: of the choice among the paraphrase instructions.
        index: position of the record in its source, for the same choice.
    """
    users = {
        "qa": (prompts.qa_system, (prompts.qa_user,)),
        "paraphrase": (prompts.paraphrase_system, prompts.paraphrase_users),
        "reconstruction": (prompts.paraphrase_system, (prompts.reconstruct_user,)),
    }
    system, choices = users[record.data_type]
    user = random.Random(f"{seed} {index}").choice(choices)
    return system, fill(user, docs=docs)


def dialogue(
    tokenizer: Tokenizer, system: str, user: Parts, assistant: str
) -> tuple[list[int], int]:
    """Ids of a whole exchange, and where the assistant's turn starts among them.

    The turn is everything that the open prompt does not hold: answer, end token and what the
    template puts after it.
    """
    prompt = tokenizer.encode(tokenizer.chat(system, user))
    whole = tokenizer.encode(tokenizer.chat(system, user, assistant))
    return whole, common(prompt, whole)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def scp_example(
    record: ScpRecord,
    tokenizer: Tokenizer,
    extra: ExtraTokens,
    prompts: Prompts,
    *,
    document_length: int,
    decoder_row: int,
    seed: int = 0,
    index: int = 0,
) -> Example:
    """Ids and labels of one SCP record.

    Args:
        record: the record. What a reconstruction must give is cut to what the compressor sees.
        tokenizer: of the base model.
        extra: ids beyond the vocabulary.
        prompts: texts.
        document_length: most tokens of the document's text.
        decoder_row: most tokens of prompt and answer; a longer answer is cut on the right.
        seed: of the choice of a paraphrase instruction.
        index: position of the record in its source, for the same choice.

    Raises:
        NoLabelError: the prompt alone fills the row, so that no label is left.
    """
    if record.compress:
        enc, document_cut = document_ids(tokenizer, extra, record.document, document_length)
        docs = slots(extra)
    else:
        text = tokenizer.head(record.document, document_length)
        enc, document_cut, docs = [], text != record.document, [text]
    system, user = scp_turns(record, prompts, docs, seed, index)
    if record.data_type == "qa":
        answer = qa_text(record.questions, record.answers)
    else:
        answer = record.answers[0]
    if record.data_type == "reconstruction":
        answer = tokenizer.head(answer, document_length)
    whole, start = dialogue(tokenizer, system, user, answer)
    if start >= decoder_row:
        raise NoLabelError(
            f"{record.origin}: the prompt has {start} tokens and leaves no label in a row of "
            f"{decoder_row}; set config.data.decoder_row to {start + 1} or more"
        )
    tokens = np.asarray(whole[:decoder_row], np.int32)
    targets = np.full_like(tokens, NO_LABEL)
    targets[start - 1 : -1] = tokens[start:]
    return Example(
        np.asarray(enc, np.int32), tokens, targets, document_cut, len(whole) > decoder_row
    )


def scp_question(
    tokenizer: Tokenizer, prompts: Prompts, docs: Parts, question: str
) -> list[int]:  # fmt: skip
    """Prompt that asks an SCP model one question; its answer ends at the next newline.

    The assistant's turn is opened with the question, for SCP prompts hold none.

    Args:
        tokenizer: of the base model.
        prompts: texts.
        docs: what stands for the document: `slots(...)`, its text, or nothing.
        question: the question.
    """
    opened = tokenizer.chat(prompts.qa_system, fill(prompts.qa_user, docs=docs))
    return tokenizer.encode([*opened, f"Question: {question}\nAnswer:"])


def scp_prompt(
    tokenizer: Tokenizer,
    prompts: Prompts,
    record: ScpRecord,
    docs: Parts,
    seed: int = 0,
    index: int = 0,
) -> list[int]:
    """Open prompt of an SCP record: what precedes the labels in training (see `scp_turns`)."""
    return tokenizer.encode(tokenizer.chat(*scp_turns(record, prompts, docs, seed, index)))


def answer_prompt(
    tokenizer: Tokenizer, prompts: Prompts, docs: Parts, question: str, answer: str | None = None
) -> tuple[list[int], int]:
    """Prompt of the later stages: documents and a question in the user turn.

    Args:
        tokenizer: of the base model.
        prompts: texts.
        docs: `slots(extra, k)`, texts, or nothing.
        question: the question.
        answer: the assistant's turn; None leaves it open.

    Returns:
        Ids, and where the assistant's turn starts among them (their number if it is open).
    """
    user = fill(prompts.answer_user, docs=docs, question=question)
    if answer is None:
        ids = tokenizer.encode(tokenizer.chat(prompts.answer_system, user))
        return ids, len(ids)
    return dialogue(tokenizer, prompts.answer_system, user, answer)


FRAME = 3  # ENC, bos and eos around a document's text
