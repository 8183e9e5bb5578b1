"""Memories of whole documents, what is read from them, and how sure the generator is of it.

Beside them the plain base's mean states, to compare with.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.corpus import pieces
from clara_jax.data import documents, prompts
from clara_jax.data.batches import encoder_batches
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Parts
from clara_jax.inference import answers, generate
from clara_jax.inference.encode import compress
from clara_jax.inference.generate import Prompt, PromptBatch
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Decoder, head_logits
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES

_STEP = 16  # answers' lengths are rounded up to multiples of it, so that few shapes occur


@dataclasses.dataclass(frozen=True)
class Read:
    """A document as the generator gets it.

    Attributes:
        texts: its pieces, each with the title as first line; one unless it is long.
        memories: of them, float32 [K, M, D].
    """

    texts: tuple[str, ...]
    memories: np.ndarray


def read(model: Model, trees: Trees, texts: Sequence[str]) -> tuple[list[Read], float]:
    """Compresses documents; long ones in the pieces that a store would hold.

    Returns:
        One for each text, and the realised rate over all: tokens over memory vectors.
    """
    rows = [
        pieces.rows(model, next(documents.of_values([{"docs": [text]}]))) if text.strip() else []
        for text in texts
    ]
    parts = [tuple(documents.whole(row.title, row.text) for row in found) for found in rows]
    flat = [part for found in parts for part in found]
    compressed = compress(model, trees, flat, model.config.eval.batch)
    ends = np.cumsum([len(found) for found in parts])[:-1]
    memories = np.split(compressed.memories, ends)
    return [Read(*pair) for pair in zip(parts, memories, strict=True)], compressed.rate


def answer(
    model: Model, trees: Trees, questions: Sequence[str], given: Sequence[Read]
) -> list[str]:
    """The generator's answer to each question from all pieces of its document, in their order."""
    asked = [_prompt(model, q, r.memories)[0] for q, r in zip(questions, given, strict=True)]
    stop = "\n" if STAGES[model.config.stage].records == "scp" else ""
    options = model.config.eval
    return answers.answers(
        model, trees, asked, options.max_new_tokens, stop=stop, batch=options.batch
    )


def nats(
    model: Model, trees: Trees, questions: Sequence[str], given: Sequence[Read], told: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Minus the log of each told answer's probability, and the number of its tokens, float64."""
    rows = [
        _prompt(model, q, r.memories, a) for q, r, a in zip(questions, given, told, strict=True)
    ]
    trees = generate.needed(trees, "generator")
    costs = np.zeros(len(rows))
    tokens = np.array([len(prompt.tokens) - start for prompt, start in rows], float)
    longest = max((len(prompt.tokens) - start for prompt, start in rows), default=0)
    length = max(_STEP, -(-longest // _STEP) * _STEP)
    batch = model.config.eval.batch
    for index, arrays in generate.prompt_batches([p for p, _ in rows], model.extra, batch):
        places, targets = np.zeros((2, len(arrays.tokens_BT), length), np.int32)
        targets -= 1
        for row, i in enumerate(index):
            prompt, start = rows[i]
            ids = np.asarray(prompt.tokens[start:], np.int32)
            places[row, : len(ids)] = np.arange(start - 1, start - 1 + len(ids))
            targets[row, : len(ids)] = ids
        on_mesh = [generate.put(model, x) for x in (arrays, places, targets)]
        found_B = generate.to_host(model, _nats(model.decoder, trees, *on_mesh))
        costs[index] = found_B[: len(index)]
    return costs, tokens


def base_means(model: Model, trees: Trees, texts: Sequence[str]) -> np.ndarray:
    """Mean last hidden state of the plain base over each text's tokens, float32 [n, D].

    A text is read as far as the compressor reads it, without memory tokens.
    """
    memory = len(model.extra.memory)
    ids = [
        model.layout.document_ids(text)[0][1:-memory] for text in texts
    ]  # without the tokens that the base does not know
    trees = generate.needed(trees, None)
    means = np.zeros((len(ids), model.architecture.d_model), np.float32)
    rows = generate.rows_for(len(ids), model.config.eval.batch)
    for batch in encoder_batches(ids, rows):
        arrays = [generate.put(model, x) for x in (batch.tokens, batch.positions, batch.segments)]
        found = generate.to_host(model, _means(model.decoder, trees, *arrays))
        means[batch.index] = found[: len(batch.index)]
    return means


def _prompt(
    model: Model, question: str, memories_KMD: np.ndarray, told: str | None = None
) -> tuple[Prompt, int]:
    """The prompt of the model's stage, and where the told answer begins in it."""
    docs, vectors = model.layout.slots(len(memories_KMD)), np.concatenate(memories_KMD)
    made, place = prompt(model, question, docs, vectors, told)
    return made, place.start


@functools.partial(jax.jit, static_argnames="decoder")
def _nats(
    decoder: Decoder, trees: Trees, batch: PromptBatch, places_BA: jax.Array, targets_BA: jax.Array
) -> jax.Array:
    x_BTD = batch.embed(decoder.config, trees)
    hidden_BTD, _ = clara.run(decoder, trees, "generator", x_BTD, batch.positions())
    hidden_BAD = jnp.take_along_axis(hidden_BTD, places_BA[..., None], axis=1)
    added_head = trees["added"].get("head")
    logits_BAV = head_logits(decoder.config, trees["base"], hidden_BAD, added_head)
    log_p_BAV = jax.nn.log_softmax(logits_BAV, axis=-1)
    index_BA1 = jnp.maximum(targets_BA, 0)[..., None]
    log_p_BA = jnp.take_along_axis(log_p_BAV, index_BA1, axis=-1)[..., 0]
    return -jnp.where(targets_BA >= 0, log_p_BA, 0.0).sum(-1)


@functools.partial(jax.jit, static_argnames="decoder")
def _means(
    decoder: Decoder,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    x_BTD = clara.embed(decoder.config, trees, tokens_BT)
    hidden_BTD, _ = clara.run(decoder, trees, None, x_BTD, positions_BT, segments_BT)
    read_BT1 = (segments_BT > 0)[..., None].astype(jnp.float32)
    total_BD = (hidden_BTD.astype(jnp.float32) * read_BT1).sum(1)
    return total_BD / jnp.maximum(read_BT1.sum(1), 1.0)


def place(document: str, answer: str) -> float | None:
    """Where a whole-word occurrence of the answer begins, as a share of the document's length."""
    found = occurrence(answer).search(document)
    return found.start() / len(document) if found else None


def occurrence(text: str) -> re.Pattern[str]:
    """What finds a text, not as a part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def prompt(
    model: Model, question: str, docs: Parts, vectors: np.ndarray | None, answer: str | None = None
) -> tuple[Prompt, slice]:
    """A prompt as the model's stage writes it.

    Args:
        model: the model.
        question: the question.
        docs: what stands for the document: `layout.slots()` or its text.
        vectors: [S, D] for the slots; None: there are none.
        answer: that the assistant gives; None leaves it open.

    Returns:
        The prompt, and where the answer lies in it (at its end, empty, if it is open).
    """
    tokenizer, layout = model.tokenizer, model.layout
    if STAGES[model.config.stage].records != "scp":
        ids, start = layout.answer_prompt(docs, question, answer)
        return Prompt(ids, vectors), slice(start, len(ids))
    asked = layout.scp_question(docs, question)
    if answer is None:
        return Prompt(asked, vectors), slice(len(asked), len(asked))
    record = ScpRecord("qa", (question,), (answer,), "", "")
    opened = tokenizer.chat(*layout.scp_turns(record, docs))
    ids = tokenizer.encode([*opened, prompts.qa_text([question], [answer])])
    return Prompt(ids, vectors), slice(prompts.common(asked, ids), len(ids))
