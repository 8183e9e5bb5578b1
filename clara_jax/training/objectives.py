"""What each stage minimises, as sums over a batch that micro-batches and shards add up to.

An objective gives sums by name. Each is divided by a count of the whole batch (`stages.PER`);
`weights` says which of these means make up the loss, and the rest is only logged.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from clara_jax.config import Config
from clara_jax.config_checks import get
from clara_jax.models import clara, scores, topk
from clara_jax.models.clara import Batch, Trees
from clara_jax.runs.setup import Model
from clara_jax.stages import RECALL_AT, STAGES
from clara_jax.training.losses import IGNORE, alignment_sum, cross_entropy_sum, info_nce_sum, kl_sum

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Draw:
    """What each step draws or sets; None and zero without training."""

    rng: jax.Array | None = None  # generator of dropout and of selection noise; None: neither
    tau: float | jax.Array = 0.02  # temperature of the relaxed selection
    # zeros added to the selection's weights, whose gradient is then known
    probe_BKN: jax.Array | None = None
    others: bool = False  # also the loss with memories of other documents: are they read at all?


class Measured(NamedTuple):
    """Sums by name, and the scores [B, N] of the candidates where any were ranked."""

    sums: Sums
    scores_BN: jax.Array | None = None


Objective = Callable[[Model, Trees, Batch, Draw], Measured]


def scp(model: Model, trees: Trees, batch: Batch, draw: Draw) -> Measured:
    """SCP (paper, section 3.1): cross-entropy of the turn, and alignment of the memories."""
    return _answered(model, trees, batch, draw, model.config.data.row_examples)


def instruct(model: Model, trees: Trees, batch: Batch, draw: Draw) -> Measured:
    """Instruction tuning (section 3.2): all documents of a question, in the order given."""
    return _answered(model, trees, batch, draw, batch["doc_valid"].shape[1])


def _answered(model: Model, trees: Trees, batch: Batch, draw: Draw, most: int) -> Measured:
    """Losses where the row's documents are compressed and read; `most` are in a row of texts."""
    rng_enc, rng_dec = _split(draw.rng, 2)
    memories_BSMD, hidden, tokens, segments = _compressed(model, trees, batch, rng_enc)
    read = {"ce_loss": memories_BSMD}
    if draw.others:
        flat = memories_BSMD.reshape(-1, *memories_BSMD.shape[2:])
        read["ce_loss_others"] = jnp.roll(flat, 1, axis=0).reshape(memories_BSMD.shape)
    sums = {}
    for name, vectors_BSMD in read.items():
        answer_BTD = _read(model, trees, batch, vectors_BSMD, rng_dec)
        sums[name] = _cross_entropy(model, trees, answer_BTD, batch)
    if not model.memory.pools:  # the means are the same there
        sums["mse_loss"] = _alignment(model, hidden, tokens, segments, most)
    return Measured(sums)


def _read(
    model: Model, trees: Trees, batch: Batch, memories_BSMD: jax.Array, rng: jax.Array | None
) -> jax.Array:
    """The generator's states over prompts that hold a row's memories at every rate."""
    vectors = clara.every_rate(memories_BSMD, model.layout.vectors)
    vectors_BSD = vectors.reshape(len(vectors), -1, vectors.shape[-1])
    return clara.generate_hidden(model.decoder, trees, batch, vectors_BSD, rng)


def e2e(model: Model, trees: Trees, batch: Batch, draw: Draw) -> Measured:
    """Joint training (section 3.3): the reasoner chooses, the generator answers.

    The answer's cross-entropy trains both, through the differentiable top-k. The compressor has no
    part in it: no gradient, and no dropout, which the release leaves on.
    """
    select = model.config.select
    rng_query, rng_noise, rng_dec = _split(draw.rng, 3)
    memories_BNMD = candidates(model, trees, batch)
    scores_BN = _scores(model, trees, batch, memories_BNMD, rng_query)
    mask_BN = batch["doc_valid"] > 0
    with jax.named_scope("select"):
        tau = temperature(model.config, draw.tau, scores_BN, mask_BN)
        options = {"mask_BN": mask_BN, "rng": rng_noise, "compat": select.compat}
        weights_BKN, indices_BK = topk.select(scores_BN, select.k, select.method, tau, **options)
        if draw.probe_BKN is not None:
            weights_BKN += draw.probe_BKN
        chosen_BKMD = topk.mix(weights_BKN, indices_BK, memories_BNMD)
    answer_BTD = _read(model, trees, batch, chosen_BKMD, rng_dec)
    ce = _cross_entropy(model, trees, answer_BTD, batch)
    return Measured({"ce_loss": ce, **_ranking(model.config, scores_BN, batch)}, scores_BN)


def contrastive(model: Model, trees: Trees, batch: Batch, draw: Draw) -> Measured:
    """The supervised reranker (the paper's Sup- baseline): InfoNCE over the gold documents.

    All other candidates are the negatives. Where records carry a teacher's scores, also the KL
    divergence from these.
    """
    memories_BNMD = candidates(model, trees, batch)
    scores_BN = _scores(model, trees, batch, memories_BNMD, draw.rng)
    tau = model.config.select.contrastive_temperature
    kl = kl_sum(scores_BN / tau, batch["doc_teacher"], batch["doc_valid"] > 0)
    return Measured({**_ranking(model.config, scores_BN, batch), "teacher_loss": kl}, scores_BN)


OBJECTIVES: dict[str, Objective] = {
    "scp": scp,
    "instruct": instruct,
    "e2e": e2e,
    "contrastive": contrastive,
}


def weights(config: Config) -> dict[str, float]:
    """Weight of each mean in the loss of the stage."""
    losses = dict(STAGES[config.stage].losses)
    if config.pools:
        losses.pop("mse_loss", None)
    return {
        name: get(config, weight) if isinstance(weight, str) else weight
        for name, weight in losses.items()
    }


def counts(model: Model, batch: Batch) -> Sums:
    """What the sums are divided by, by the names in `stages.PER`."""
    counted = {}
    if "dec_targets" in batch:
        counted["labels"] = (batch["dec_targets"] != IGNORE).sum()
    if "doc_valid" in batch:
        counted["documents"] = (batch["doc_valid"] > 0).sum()
    if "doc_gold" in batch:
        counted["questions"] = (batch["doc_valid"].sum(1) > 0).sum()
        counted["with_gold"] = batch["doc_gold"].any(1).sum()
        counted["with_teacher"] = batch["doc_teacher"].any(1).sum()
    return counted


def candidates(model: Model, trees: Trees, batch: Batch) -> jax.Array:
    """Memories [B, N, M, D] of the candidates, a constant: read from the batch, or made of it."""
    if "memories" in batch:
        return batch["memories"]
    return jax.lax.stop_gradient(_compressed(model, trees, batch, None)[0])


def temperature(
    config: Config, tau: float | jax.Array, scores_BN: jax.Array, mask_BN: jax.Array
) -> jax.Array:
    """Temperature of the selection: tau, or tau times the spread of the batch's scores."""
    if not config.select.relative:
        return jnp.asarray(tau, jnp.float32)
    spread_B = spread(jax.lax.stop_gradient(scores_BN), mask_BN)
    several_B = mask_BN.sum(1) > 1
    mean = jnp.sum(spread_B * several_B) / jnp.maximum(several_B.sum(), 1)
    return tau * jnp.maximum(mean, 1e-6)


def spread(scores_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
    """Standard deviation [B] of each question's scores."""
    count_B1 = jnp.maximum(mask_BN.sum(1, keepdims=True), 1)
    mean_B1 = jnp.where(mask_BN, scores_BN, 0.0).sum(1, keepdims=True) / count_B1
    square_BN = jnp.where(mask_BN, jnp.square(scores_BN - mean_B1), 0.0)
    return jnp.sqrt(square_BN.sum(1) / count_B1[:, 0])


def slot_gradients(
    config: Config, scores_BN: jax.Array, g_BKN: jax.Array, mask_BN: jax.Array, draw: Draw
) -> Sums:
    """How the loss reaches the scores: each slot's part of the gradient, and the relaxation itself.

    Args:
        config: its `select` is used.
        scores_BN: of the candidates.
        g_BKN: gradient of the loss with respect to the selection's weights.
        mask_BN: true at candidates.
        draw: as in the step.

    Returns:
        `slot_gradient/1` ...: sums over questions and candidates of the absolute gradient that
        reaches the scores through each slot; `entropy`: in nats, of the first slot's weights.
    """
    select, K = config.select, config.select.k
    tau = temperature(config, draw.tau, scores_BN, mask_BN)
    rng_noise = _split(draw.rng, 3)[1]

    def soft(scores_BN: jax.Array) -> jax.Array:
        return topk.select(
            scores_BN, K, select.method, tau, mask_BN=mask_BN, rng=rng_noise, compat=select.compat
        )[0]

    _, pull = jax.vjp(soft, scores_BN)
    through_KBN = jax.vmap(lambda slot: pull(g_BKN * slot[None, :, None])[0])(jnp.eye(K))
    gradients = {f"slot_gradient/{j + 1}": jnp.abs(through_KBN[j]).sum() for j in range(K)}
    logits_BN = jnp.where(mask_BN, scores_BN / tau, -1e30)
    log_p_BN = jax.nn.log_softmax(logits_BN)
    entropy_B = -jnp.sum(jnp.exp(log_p_BN) * jnp.where(mask_BN, log_p_BN, 0.0), axis=1)
    return gradients | {"entropy": jnp.where(mask_BN.any(1), entropy_B, 0.0).sum()}


def _split(rng: jax.Array | None, parts: int) -> list[jax.Array | None]:
    return [None] * parts if rng is None else list(jax.random.split(rng, parts))


def _side(batch: Batch, side: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    return batch[f"{side}_tokens"], batch[f"{side}_positions"], batch[f"{side}_segments"]


def _encoded(
    model: Model, trees: Trees, side: tuple[jax.Array, ...], role: str, rng: jax.Array | None
) -> jax.Array:
    tokens, positions, segments = side
    return clara.encode(model.decoder, trees, tokens, positions, segments, model.memory, role, rng)


def _compressed(
    model: Model, trees: Trees, batch: Batch, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Memories [B, N, M, D]; hidden states [B * G, T, D], tokens and segments of the documents."""
    B, T = len(batch["enc_tokens"]), batch["enc_tokens"].shape[-1]
    tokens, positions, segments = (x.reshape(-1, T) for x in _side(batch, "enc"))
    hidden = _encoded(model, trees, (tokens, positions, segments), "compressor", rng)
    states = hidden.reshape(B, -1, hidden.shape[-1])
    memories_BNMD = clara.memories(trees, states, batch["doc_places"])
    valid = batch["doc_valid"][..., None, None] > 0
    return jnp.where(valid, memories_BNMD, 0), hidden, tokens, segments


def _scores(
    model: Model, trees: Trees, batch: Batch, memories_BNMD: jax.Array, rng: jax.Array | None
) -> jax.Array:
    """Scores [B, N] of the candidates by the query reasoner."""
    hidden_BTD = _encoded(model, trees, _side(batch, "qry"), "reasoner", rng)
    query_BMD = clara.memories(trees, hidden_BTD, batch["qry_places"][:, None])[:, 0]
    with jax.named_scope("score"):
        return scores.score(query_BMD, memories_BNMD, model.config.select.score)


def _ranking(config: Config, scores_BN: jax.Array, batch: Batch) -> Sums:
    """InfoNCE, and how high the gold documents rank."""
    mask_BN, gold_BN = batch["doc_valid"] > 0, batch["doc_gold"] > 0
    tau = config.select.contrastive_temperature
    fixed_BN = jnp.where(mask_BN, jax.lax.stop_gradient(scores_BN), -jnp.inf)
    order_BN = jnp.argsort(-fixed_BN, axis=1)
    ranked_BN = jnp.take_along_axis(gold_BN, order_BN, axis=1).astype(jnp.float32)
    total_B = jnp.maximum(ranked_BN.sum(1), 1)
    first_B = jnp.argmax(ranked_BN, axis=1) + 1
    return {
        "contrastive_loss": info_nce_sum(scores_BN / tau, gold_BN, mask_BN),
        **{f"recall@{k}": (ranked_BN[:, :k].sum(1) / total_B).sum() for k in RECALL_AT},
        "mrr": (ranked_BN.max(1) / first_B).sum(),
        "spread": spread(jax.lax.stop_gradient(scores_BN), mask_BN).sum(),
    }


def _cross_entropy(model: Model, trees: Trees, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
    chunks = model.config.train.loss_chunks
    with jax.named_scope("loss"):
        return cross_entropy_sum(
            model.architecture, trees, hidden_BTD, batch["dec_targets"], chunks
        )


def _alignment(
    model: Model, hidden_BTD: jax.Array, tokens_BT: jax.Array, segments_BT: jax.Array, most: int
) -> jax.Array:
    is_memory_BT = model.extra.is_memory(tokens_BT)
    into = model.config.train.mse_into
    with jax.named_scope("alignment"):
        return alignment_sum(hidden_BTD, segments_BT, is_memory_BT, most, into=into)
