"""Asking a model about documents: prompts, answers and how likely they are, states of texts."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.corpus import pieces
from clara_jax.data import documents, prompts
from clara_jax.data.batches import encoder_batches
from clara_jax.data.prompts import NO_LABEL
from clara_jax.data.records import ScpRecord
from clara_jax.inference import answers as answers_lib
from clara_jax.inference import generate
from clara_jax.inference.encode import compress
from clara_jax.inference.generate import Prompt, PromptBatch
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Decoder, head_logits
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES

_STEP = 16  # answers' lengths are rounded up to multiples of it, so that few shapes occur

Documents = str | np.ndarray  # of a prompt: as text, or their memories [K, M, D]


@dataclasses.dataclass(frozen=True)
class Read:
    """A document as the generator gets it."""

    texts: tuple[str, ...]  # its pieces, each with the title as first line; one unless it is long
    memories: np.ndarray  # of them, float32 [K, M, D]


def read(model: Model, trees: Trees, texts: Sequence[str]) -> tuple[list[Read], float]:
    """Compresses documents; long ones in the pieces that a store would hold.

    Returns:
        One for each text, and the realised rate over all: tokens over memory vectors.
    """
    rows = [
        pieces.rows(model, next(documents.of_values([{"docs": [text]}]))) if text.strip() else []
        for text in texts
    ]
    parts = [tuple(documents.whole(row.title, row.text) for row in each) for each in rows]
    flat = [part for each in parts for part in each]
    compressed = compress(model, trees, flat, model.config.eval.batch)
    memories = np.split(compressed.memories, np.cumsum([len(each) for each in parts])[:-1])
    return [Read(*pair) for pair in zip(parts, memories, strict=True)], compressed.rate


def prompt(
    model: Model, question: str, given: Documents, answer: str | None = None
) -> tuple[Prompt, slice]:
    """A prompt as the model's stage writes it.

    Args:
        model: the model.
        question: the question.
        given: what stands for the documents; empty: none.
        answer: that the assistant gives; None leaves it open.

    Returns:
        The prompt, and where its answer is (at its end, empty, if it is open).
    """
    docs, vectors = answers_lib.laid_out(model, given)
    if is_scp(model):
        asked = ids = model.layout.scp_question(docs, question)
        start = len(ids)
        if answer is not None:
            record = ScpRecord("qa", (question,), (answer,), "", "")
            opened = model.tokenizer.chat(*model.layout.scp_turns(record, docs))
            ids = model.tokenizer.encode([*opened, prompts.qa_text([question], [answer])])
            start = prompts.common(asked, ids)
    else:
        ids, start = model.layout.answer_prompt(docs, question, answer)
    return Prompt(ids, vectors), slice(start, len(ids))


def is_scp(model: Model) -> bool:
    """Whether a question is asked as in pretraining, so that its answer ends with its line."""
    return STAGES[model.config.stage].records == "scp"


def answers_to(
    model: Model,
    trees: Trees,
    asked: Sequence[Prompt],
    role: str | None = "generator",
    report: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """The answer to each prompt; see `answers.answers`."""
    options = model.config.eval
    how = {"role": role, "stop": "\n" if is_scp(model) else "", "batch": options.batch}
    return answers_lib.answers(model, trees, asked, options.max_new_tokens, **how, report=report)


def answer(
    model: Model, trees: Trees, questions: Sequence[str], given: Sequence[Read]
) -> list[str]:
    """The generator's answer to each question from all pieces of its document, in their order."""
    pairs = zip(questions, given, strict=True)
    return answers_to(model, trees, [prompt(model, q, each.memories)[0] for q, each in pairs])


def nats(
    model: Model,
    trees: Trees,
    questions: Sequence[str],
    given: Sequence[Read],
    replies: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Minus the log of each reply's probability, and the number of its tokens, float64."""
    triples = zip(questions, given, replies, strict=True)
    rows = [prompt(model, q, each.memories, a) for q, each, a in triples]
    trees = generate.needed(trees, "generator")
    costs = np.zeros(len(rows))
    for index, *arrays in answer_batches(model, rows):
        log_p_B, _ = _log_probabilities(model.decoder, trees, *arrays)
        costs[index] = -generate.to_host(model, log_p_B)[: len(index)]
    return costs, np.array([place.stop - place.start for _, place in rows], float)


def answer_batches(
    model: Model, rows: Sequence[tuple[Prompt, slice]]
) -> Iterator[tuple[list[int], PromptBatch, jax.Array, jax.Array]]:
    """Batches for `log_probabilities`, on the mesh, of prompts with their answers' places.

    Yields:
        Which prompts the first rows hold, the prompts, and places and targets of the answers.
    """
    longest = max((place.stop - place.start for _, place in rows), default=0)
    length = max(_STEP, -(-longest // _STEP) * _STEP)
    asked = [each for each, _ in rows]
    for index, batch in generate.prompt_batches(asked, model.extra, model.config.eval.batch):
        places = np.zeros((len(batch.tokens_BT), length), np.int32)
        targets = np.full_like(places, NO_LABEL)
        for row, i in enumerate(index):
            where = rows[i][1]
            count = where.stop - where.start
            places[row, :count] = np.arange(where.start - 1, where.stop - 1)
            targets[row, :count] = asked[i].tokens[where]
        yield (
            index,
            generate.put(model, batch),
            generate.put(model, places),
            generate.put(model, targets),
        )


def log_probabilities(
    decoder: Decoder, trees: Trees, batch: PromptBatch, places_BA: jax.Array, targets_BA: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How likely the generator finds the answers of a batch of prompts.

    Args:
        decoder: the module.
        trees: base, memory, added and generator.
        batch: prompts with their answers.
        places_BA: int32, positions that predict an answer's tokens.
        targets_BA: int32, these tokens; NO_LABEL beyond the answer.

    Returns:
        Log-probability in nats, float32 [B], and whether every token is the likeliest, bool [B].
    """
    x_BTD = batch.embed(decoder.config, trees)
    hidden_BTD, _ = clara.run(decoder, trees, "generator", x_BTD, batch.positions())
    hidden_BAD = jnp.take_along_axis(hidden_BTD, places_BA[..., None], axis=1)
    added_head = trees["added"].get("head")
    logits_BAV = head_logits(decoder.config, trees["base"], hidden_BAD, added_head)
    counted_BA = targets_BA != NO_LABEL
    index_BA1 = jnp.maximum(targets_BA, 0)[..., None]
    log_p_BAV = jax.nn.log_softmax(logits_BAV, axis=-1)
    log_p_BA = jnp.take_along_axis(log_p_BAV, index_BA1, axis=-1)[..., 0]
    right_BA = (jnp.argmax(logits_BAV, axis=-1) == targets_BA) | ~counted_BA
    return jnp.where(counted_BA, log_p_BA, 0.0).sum(-1), right_BA.all(-1)


_log_probabilities = jax.jit(log_probabilities, static_argnames="decoder")


def text_means(
    model: Model, trees: Trees, texts: Sequence[str], role: str | None = None, enc: bool = True
) -> np.ndarray:
    """Mean last hidden state over each text's tokens of the base's vocabulary, float32 [n, D].

    A text is read as far as the compressor reads it, without memory tokens.

    Args:
        model: the model.
        trees: its weights.
        texts: any number of them.
        role: whose adapter reads them; None: the plain base.
        enc: whether the token ENC stands before a text, which the base does not know.
    """
    tail = len(model.layout.tail)
    whole = [model.layout.document_ids(text)[0] for text in texts]
    encoded = [ids[0 if enc else 1 : len(ids) - tail] for ids in whole]
    trees = generate.needed(trees, role)
    means = of_documents(
        model,
        encoded,
        lambda *arrays: _means(model.decoder, role, trees, *arrays[:3]),
        model.config.eval.batch,
    )
    return np.array(means, np.float32).reshape(-1, model.architecture.d_model)


def of_documents(
    model: Model, encoded: Sequence[list[int]], compute: Callable[..., jax.Array], batch: int
) -> list[np.ndarray]:
    """What a function gives for each document.

    Args:
        model: the model.
        encoded: ids of each document.
        compute: of tokens, positions and segments, int32 [B, T] on the mesh, and places of memory
            vectors, int32 [B, M], to an array [B, ...].
        batch: most documents at once.
    """
    out: list[np.ndarray] = [np.empty(0)] * len(encoded)
    for part in encoder_batches(model.layout, encoded, generate.rows_for(len(encoded), batch)):
        parts = part.tokens, part.positions, part.segments, part.places
        arrays = [generate.put(model, x) for x in parts]
        rows = generate.to_host(model, compute(*arrays))
        for i, row in zip(part.index, rows, strict=False):
            out[i] = row
    return out


@functools.partial(jax.jit, static_argnames=("decoder", "role"))
def _means(
    decoder: Decoder,
    role: str | None,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    x_BTD = clara.embed(decoder.config, trees, tokens_BT)
    hidden_BTD, _ = clara.run(decoder, trees, role, x_BTD, positions_BT, segments_BT)
    is_text_BT = (segments_BT > 0) & (tokens_BT < decoder.config.vocab_size)
    total_BD = jnp.where(is_text_BT[..., None], hidden_BTD.astype(jnp.float32), 0.0).sum(1)
    return total_BD / jnp.maximum(is_text_BT.sum(1), 1)[:, None]


def occurrence(text: str, flags: int = 0) -> re.Pattern[str]:
    """What finds a text, not as a part of a longer word; `flags` are of `re`."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", flags)


def place(document: str, text: str, flags: int = 0) -> float | None:
    """Where an `occurrence` of a text begins, as a share of the document's length."""
    match = occurrence(text, flags).search(document)
    return match.start() / len(document) if match else None
