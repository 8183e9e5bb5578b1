"""Names of the base weights in checkpoints: one table for every format and both directions."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax

from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import abstract_params


@dataclasses.dataclass(frozen=True)
class Row:
    """One base parameter: our path, and its name in each format.

    Checkpoints hold linear layers as [out, in], one tensor a layer; we hold [in, out], layers
    stacked in front.
    """

    path: str
    hf: str
    gguf: str

    @property
    def stacked(self) -> bool:
        """Whether the checkpoint has one tensor for each layer."""
        return "{layer}" in self.hf

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint's last two axes are ours swapped."""
        return self.path.endswith("/kernel")


# Parameters of a layer: our path, its module in transformers, its tensor in llama.cpp.
_LAYER = (
    ("attention_norm/scale", "input_layernorm", "attn_norm"),
    ("attention/q/kernel", "self_attn.q_proj", "attn_q"),
    ("attention/k/kernel", "self_attn.k_proj", "attn_k"),
    ("attention/v/kernel", "self_attn.v_proj", "attn_v"),
    ("attention/o/kernel", "self_attn.o_proj", "attn_output"),
    ("mlp_norm/scale", "post_attention_layernorm", "ffn_norm"),
    ("mlp/gate/kernel", "mlp.gate_proj", "ffn_gate"),
    ("mlp/up/kernel", "mlp.up_proj", "ffn_up"),
    ("mlp/down/kernel", "mlp.down_proj", "ffn_down"),
    ("attention/q/bias", "self_attn.q_proj", "attn_q"),
    ("attention/k/bias", "self_attn.k_proj", "attn_k"),
    ("attention/v/bias", "self_attn.v_proj", "attn_v"),
    ("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm"),
    ("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm"),
)


def _layer_row(path: str, hf: str, gguf: str) -> Row:
    kind = "bias" if path.endswith("/bias") else "weight"
    return Row(
        f"layers/{path}", f"model.layers.{{layer}}.{hf}.{kind}", f"blk.{{layer}}.{gguf}.{kind}"
    )


TABLE = (
    Row("embed/embedding", "model.embed_tokens.weight", "token_embd.weight"),
    *itertools.starmap(_layer_row, _LAYER),
    Row("norm/scale", "model.norm.weight", "output_norm.weight"),
    Row("head/kernel", "lm_head.weight", "output.weight"),
)

# Tensors that hold several parameters, one below the other in this order, by format and family.
_FUSED = {
    ("hf", "phi3"): {
        "model.layers.{layer}.self_attn.qkv_proj.weight": tuple(
            f"layers/attention/{name}/kernel" for name in "qkv"
        ),
        "model.layers.{layer}.mlp.gate_up_proj.weight": (
            "layers/mlp/gate/kernel",
            "layers/mlp/up/kernel",
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Where a checkpoint has a parameter: rows [start:stop] of a tensor, or of one a layer."""

    pattern: str  # the tensor's name, with `{layer}` where there is one a layer
    start: int  # first row; of a linear layer [out, in] rows are outputs
    stop: int  # row after the last
    shape: tuple[int, ...]  # of the whole tensor

    def names(self, n_layers: int) -> list[str]:
        """Names of the tensors: one, or one a layer."""
        if "{layer}" not in self.pattern:
            return [self.pattern]
        return [self.pattern.format(layer=i) for i in range(n_layers)]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    name: str  # its name
    shape: tuple[int, ...]  # [out, in] for linear layers
    parts: tuple[tuple[Row, Part], ...]  # the parameters in it, one below the other
    layer: int | None  # which layer's; None: the parameters have no layers


@functools.lru_cache(maxsize=8)
def parameters(config: ModelConfig) -> dict[Row, jax.ShapeDtypeStruct]:
    """The base's parameters in TABLE's order, as they are held before any becomes int8."""
    held = dataclasses.replace(config, param_dtype=config.held_dtype)
    params: dict[str, Any] = flax.traverse_util.flatten_dict(abstract_params(held), sep="/")
    return {row: params[row.path] for row in TABLE if row.path in params}


def part(row: Row, config: ModelConfig, format: str = "hf") -> Part:
    """Which rows of which tensor a parameter is in checkpoints of this model.

    The config's family decides which parameters share a tensor; `format` is a column of TABLE. For
    adapters as well: a LoRA pair beside a tensor that holds several parameters is, for each of
    them, all of A and rows [start:stop] of B [out, rank].
    """
    shapes = _shapes(config)
    n_rows, *rest = shapes[row.path]
    for pattern, paths in _FUSED.get((format, config.family), {}).items():
        if row.path in paths:
            sizes = [shapes[path][0] for path in paths]
            start = sum(sizes[: paths.index(row.path)])
            return Part(pattern, start, start + n_rows, (sum(sizes), *rest))
    return Part(getattr(row, format), 0, n_rows, (n_rows, *rest))


def tensors(config: ModelConfig, format: str = "hf") -> Iterator[Tensor]:
    """All tensors of a checkpoint: what has no layers where TABLE has it, and layer after layer."""
    groups: dict[str, list[tuple[Row, Part]]] = {}
    for row in parameters(config):
        where = part(row, config, format)
        groups.setdefault(where.pattern, []).append((row, where))
    for stacked, members in itertools.groupby(groups.values(), lambda group: group[0][0].stacked):
        together = list(members)
        for layer in range(config.n_layers) if stacked else [None]:
            for group in together:
                where = group[0][1]
                yield Tensor(where.pattern.format(layer=layer), where.shape, tuple(group), layer)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter in a checkpoint, of one layer, by its path."""
    ours = {row: leaf.shape[row.stacked :] for row, leaf in parameters(config).items()}
    return {row.path: shape[::-1] if row.transposed else shape for row, shape in ours.items()}
