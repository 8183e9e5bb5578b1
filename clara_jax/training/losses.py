"""Cross-entropy over the labelled tokens, and the alignment of memories with their documents.

Each loss comes as a sum and a count, so that micro-batches and shards add up to the mean over the
whole batch exactly.
"""

import jax
import jax.numpy as jnp

from clara_jax.models.clara import Trees
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import head_logits

IGNORE = -100  # target of a token that carries no loss, as in PyTorch and in the data


def token_losses(
    config: ModelConfig, trees: Trees, hidden: jax.Array, targets: jax.Array
) -> jax.Array:
    """Cross-entropy [...] in float32 of targets [...] given hidden [..., D]; 0 where ignored."""
    logits = head_logits(config, trees["base"], hidden, trees["added"].get("head"))
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(targets == IGNORE, 0.0, losses)


def cross_entropy_sum(
    config: ModelConfig, trees: Trees, hidden_BTD: jax.Array, targets_BT: jax.Array, chunks: int = 1
) -> jax.Array:
    """Sum of the cross-entropy over all labelled tokens, a float32 scalar.

    With `chunks` > 1, labelled tokens are moved to the front of their row and the logits computed a
    block of T / chunks columns at a time, again in the backward pass; blocks without any label are
    skipped. So the memory of full logits is never needed, nor the time for prompts and padding.
    """
    if chunks == 1:
        return token_losses(config, trees, hidden_BTD, targets_BT).sum()
    B, T = targets_BT.shape
    width = -(-T // chunks)
    order_BT = jnp.argsort(targets_BT == IGNORE, axis=1, stable=True)
    order_BT = jnp.pad(order_BT, ((0, 0), (0, width * chunks - T)))
    real_T = jnp.arange(width * chunks)[None] < T
    targets = jnp.where(real_T, jnp.take_along_axis(targets_BT, order_BT, axis=1), IGNORE)
    blocks = (
        order_BT.reshape(B, chunks, width).swapaxes(0, 1),
        targets.reshape(B, chunks, width).swapaxes(0, 1),
    )

    @jax.checkpoint
    def block_loss(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple:
        order, block_targets = block

        def compute(hidden_BTD: jax.Array) -> jax.Array:
            hidden = jnp.take_along_axis(hidden_BTD, order[..., None], axis=1)
            return token_losses(config, trees, hidden, block_targets).sum()

        any_label = (block_targets != IGNORE).any()
        return total + jax.lax.cond(any_label, compute, lambda _: jnp.zeros(()), hidden_BTD), None

    return jax.lax.scan(block_loss, jnp.zeros(()), blocks)[0]


def alignment_sum(
    hidden_BTD: jax.Array,
    segments_BT: jax.Array,
    is_memory_BT: jax.Array,
    max_segments: int,
    into: str = "both",
) -> jax.Array:
    """Sum over documents of the squared distance between a document and its memory.

    For each document the mean over its token states (ENC, bos and eos included) is compared with
    the mean over its memory vectors: mean over D of the squared difference.

    Args:
        hidden_BTD: the compressor's hidden states after the final norm.
        segments_BT: documents of a row, 1, 2, ...; 0 is padding.
        is_memory_BT: true at memory tokens.
        max_segments: most documents in a row.
        into: `both`, the gradient flows into memories and text states, as in the release; the least
            of this loss is then that all states are alike, and a compressor from which nothing is
            read yet may go there. `memory`: the text states are a fixed aim.
    """
    hidden = hidden_BTD.astype(jnp.float32)
    segment = segments_BT[..., None] == jnp.arange(1, max_segments + 1)[None, None]

    def segment_mean(select_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        member_BTS = (segment & select_BT[..., None]).astype(jnp.float32)
        count_BS = member_BTS.sum(1)
        weight = member_BTS / jnp.maximum(count_BS, 1)[:, None]
        precision = jax.lax.Precision.HIGHEST
        return jnp.einsum("bts,btd->bsd", weight, hidden, precision=precision), count_BS

    memory_BSD, memory_count_BS = segment_mean(is_memory_BT)
    text_BSD, _ = segment_mean(~is_memory_BT)
    if into == "memory":
        text_BSD = jax.lax.stop_gradient(text_BSD)
    distance_BS = jnp.square(memory_BSD - text_BSD).mean(-1)
    return jnp.where(memory_count_BS > 0, distance_BS, 0.0).sum()


def info_nce_sum(logits_BN: jax.Array, gold_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
    """Sum over questions of -log of the softmax mass on their gold documents; 0 without any.

    Args:
        logits_BN: scores over the temperature.
        gold_BN: true at gold documents.
        mask_BN: true at candidates.
    """
    gold_BN &= mask_BN
    known_B = gold_BN.any(1)
    # Questions without gold documents count all candidates as gold: their loss and gradient are 0.
    gold_BN = jnp.where(known_B[:, None], gold_BN, mask_BN)
    low = jnp.finfo(jnp.float32).min
    whole_B, on_gold_B = (
        jax.nn.logsumexp(jnp.where(keep, logits_BN, low), axis=1) for keep in (mask_BN, gold_BN)
    )
    return jnp.where(known_B, whole_B - on_gold_B, 0.0).sum()


def kl_sum(logits_BN: jax.Array, teacher_BN: jax.Array, mask_BN: jax.Array) -> jax.Array:
    """Sum over questions of KL(teacher | softmax of the logits); 0 where the teacher is all zero.

    Args:
        logits_BN: scores over the temperature.
        teacher_BN: a distribution over the candidates.
        mask_BN: true at candidates.
    """
    low = jnp.finfo(jnp.float32).min / 2
    log_p_BN = jax.nn.log_softmax(jnp.where(mask_BN, logits_BN, low), axis=1)
    log_teacher_BN = jnp.log(jnp.where(teacher_BN > 0, teacher_BN, 1.0))
    return jnp.where(teacher_BN > 0, teacher_BN * (log_teacher_BN - log_p_BN), 0.0).sum()
