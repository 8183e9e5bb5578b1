"""Where memory tokens look: their attention over the document, averaged over heads and layers.

The decoder keeps no attention weights, and its kernels never have them. Here its own layers are run
once more one by one, queries and keys are caught on the way, and the weights are made of these.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.errors import UserError
from clara_jax.evaluation.asking import of_documents
from clara_jax.evaluation.inside.data import Given
from clara_jax.inference import generate
from clara_jax.models import clara
from clara_jax.models.clara import MemoryLayout, Trees
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import Decoder, Layer, row_mask
from clara_jax.models.layers import RMSNorm, rotary_tables, rotate
from clara_jax.plotting import FONT, heat_map, pyplot, shortened, slot_labels
from clara_jax.runs.setup import Model
from clara_jax.text.markdown import table

_PARTS = 20  # of a document at most, where documents differ in length
_LINE = 52  # tokens of the example beside each other
_LINES = 5
_DIFFERS = "□"


def layer_weights(
    config: ModelConfig,
    q_BTI: jax.Array,
    k_BTI: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    mask_BTS: jax.Array,
) -> jax.Array:
    """Attention weights float32 [B, H, T, S] of queries and keys before the rotation."""
    B, T, _ = q_BTI.shape
    q = rotate(q_BTI.reshape(B, T, config.n_heads, config.head_dim), *rotary)
    k = rotate(k_BTI.reshape(B, T, config.n_kv_heads, config.head_dim), *rotary)
    k = jnp.repeat(k, config.n_heads // config.n_kv_heads, axis=2)
    scores = jnp.einsum("bthc,bshc->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None], scores * config.head_dim**-0.5, -1e30)
    return jax.nn.softmax(scores, axis=-1)


@functools.partial(jax.jit, static_argnames=("decoder", "role", "layout"))
def weights(
    decoder: Decoder,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    places_BM: jax.Array,
    layout: MemoryLayout,
    *,
    role: str = "compressor",
) -> tuple[jax.Array, jax.Array]:
    """Attention of the tokens that memory vectors come from, in rows of one document each.

    Args:
        decoder: the module.
        trees: base, memory, added, and the adapter of `role`.
        tokens_BT: int32, documents as the compressor reads them.
        positions_BT: int32.
        segments_BT: int32, 0 at the padding.
        places_BM: int32, where the memory vectors are.
        layout: as of `clara.encode`.
        role: whose adapter reads.

    Returns:
        Weights float32 [B, M, T], means over layers and heads, with pooling over the tokens of a
        window too; and the hidden states [B, T, D] that the layers came to, which are those of
        `clara.encode` before it pools.
    """
    config = decoder.config
    both_BT = clara.both_ways(config, layout, tokens_BT, segments_BT)
    if layout.spread:
        positions_BT = clara.spread_positions(config, trees, tokens_BT, positions_BT)
    x_BTD = clara.embed(config, trees, tokens_BT)
    mask_BTS = row_mask(config, positions_BT, segments_BT, both_BT)
    rotary = rotary_tables(config, positions_BT)
    module = Layer(config, decoder.lora, decoder.layout, both_BT is None)
    caught = ("q_norm", "k_norm") if config.qk_norm else ("q", "k")
    adapter = (trees.get(role) or {}).get("layers")

    def layer(x_BTD: jax.Array, parts: tuple) -> tuple[jax.Array, jax.Array]:
        params, lora, number = parts
        variables = {"params": params, **({} if lora is None else {"lora": lora})}
        inputs = ((x_BTD, None), number, *rotary, mask_BTS, segments_BT)
        catch = {"capture_intermediates": lambda part, _: part.name in caught}
        out: Any = module.apply(variables, *inputs, **catch, mutable=["intermediates"])
        ((x_BTD, _), _), kept = out
        q, k = (kept["intermediates"]["attention"][name]["__call__"][0] for name in caught)
        q, k = (y.reshape(*tokens_BT.shape, -1) for y in (q, k))
        seen_BHTS = layer_weights(config, q, k, rotary, mask_BTS)
        seen_BTS = seen_BHTS.mean(1)
        if layout.pools:
            seen_BTS = clara.pooled(seen_BTS, positions_BT, segments_BT, layout)
        return x_BTD, jnp.take_along_axis(seen_BTS, places_BM[..., None], axis=1)

    parts = trees["base"]["layers"], adapter, jnp.arange(config.n_layers)
    x_BTD, seen_LBMS = jax.lax.scan(layer, x_BTD, parts)
    norm = RMSNorm(config.norm_eps, config.held_dtype)
    last_BTD: Any = norm.apply({"params": trees["base"]["norm"]}, x_BTD)
    return seen_LBMS.mean(0), last_BTD


def measure(model: Model, trees: Trees, given: Given) -> dict[str, Any]:
    """Attention of every slot to the tokens of documents, [slots, tokens].

    What falls on the frame (ENC, bos, eos), on which much of it rests, and on other memory tokens
    is told apart; the rest is that on the document's own tokens. Documents without any are left
    out.

    Raises:
        UserError: no document has a token.
    """
    tail = len(model.layout.tail)
    front = 1 + (model.tokenizer.bos_id is not None)
    encoded = [model.layout.document_ids(text)[0] for text in given.documents]
    encoded = [ids for ids in encoded if _end(model, ids, tail) > front]
    if not encoded:
        raise UserError("attention: no document has a token; give others")
    trees = generate.needed(trees, "compressor")
    seen = of_documents(
        model,
        encoded,
        lambda *arrays: weights(model.decoder, trees, *arrays, model.memory)[0],
        min(model.config.eval.batch, 8),
    )
    seen = [row[:, : len(ids)] for row, ids in zip(seen, encoded, strict=True)]
    texts = [slice(front, _end(model, ids, tail)) for ids in encoded]
    own = [row[:, place] for row, place in zip(seen, texts, strict=True)]
    memories = np.mean([row[:, row.shape[1] - tail :].sum(1) for row in seen], 0)
    on_text = np.mean([row.sum(1) for row in own], 0)
    lengths = {row.shape[1] for row in own}
    if len(lengths) == 1:
        tokens = np.array([ids[place] for ids, place in zip(encoded, texts, strict=True)])
        same = (tokens == tokens[:1]).all(0) & (len(tokens) > 1)
        labels = [_word(model, t) if s else _DIFFERS for t, s in zip(tokens[0], same, strict=True)]
        average = np.mean(own, 0)
    else:
        parts = min(_PARTS, *lengths)
        labels = [f"{100 * i // parts} %" for i in range(parts)]
        average = np.mean([_in_parts(row, parts) for row in own], 0)
    example = min(range(len(own)), key=lambda i: abs(own[i].shape[1] - 1.5 * _LINE))
    return {
        "documents": len(encoded),
        "slots": model.extra.memory_tokens,
        "share": {
            "document": on_text.tolist(),
            "memory tokens": memories.tolist(),
            "ENC, bos, eos": (1 - on_text - memories).tolist(),
        },
        "average": {"labels": labels, "weights": average.tolist()},
        "example": {
            "labels": [_word(model, t) for t in encoded[example][texts[example]]],
            "weights": own[example].tolist(),
        },
    }


def _end(model: Model, ids: list[int], M: int) -> int:
    """Where the text ends: before the memory tokens, and before eos unless that was cut."""
    return len(ids) - M - (ids[-M - 1] == model.tokenizer.eos_id)


def _word(model: Model, token: int) -> str:
    return shortened(model.tokenizer.decode([int(token)]), 12) or "␣"


def _in_parts(row_MT: np.ndarray, parts: int) -> np.ndarray:
    """Sums over equal parts of the document, [M, parts]."""
    edges = np.linspace(0, row_MT.shape[1], parts + 1).round().astype(int)
    return np.add.reduceat(row_MT, edges[:-1], axis=1)


def draw(result: dict[str, Any]) -> Any:
    """The average above, one document with its words below."""
    seen = np.array(result["example"]["weights"])
    lines = min(-(-seen.shape[1] // _LINE), _LINES)
    high = max(0.9, 0.2 * result["slots"])
    figure, axes = pyplot().subplots(
        1 + lines, 1, figsize=(13, 1.2 + (1 + lines) * (high + 1.0)), layout="constrained"
    )
    names, average = slot_labels(result["slots"]), result["average"]
    is_in_parts = "%" in average["labels"][0]
    of = (
        ", in equal parts of their length"
        if is_in_parts
        else f" ({_DIFFERS} where their words differ)"
    )
    title = f"average over {result['documents']} documents{of}"
    values = np.array(average["weights"])
    image = heat_map(axes[0], values, names, average["labels"], title=title, numbers="")
    most = float(seen.max())
    for n, ax in enumerate(axes[1:]):
        part = seen[:, n * _LINE : (n + 1) * _LINE]
        padded = np.full((len(seen), min(_LINE, seen.shape[1])), np.nan)
        padded[:, : part.shape[1]] = part
        labels = result["example"]["labels"][n * _LINE : (n + 1) * _LINE]
        labels += [""] * (padded.shape[1] - len(labels))
        image = heat_map(
            ax, padded, names, labels, title="one document" if not n else "", most=most, numbers=""
        )
    bar = figure.colorbar(image, ax=axes[1:], fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=FONT)
    figure.suptitle(
        "Attention of memory tokens over the document, mean over layers and heads", fontsize=12
    )
    return figure


def text(result: dict[str, Any]) -> list[str]:
    """Where the attention of each slot falls, as lines of Markdown."""
    by_slot = zip(*result["share"].values(), strict=True)
    rows = [
        [f"slot {slot}", *(f"{share:.3f}" for share in shares)]
        for slot, shares in enumerate(by_slot)
    ]
    return [table(["", *result["share"]], rows)]
