"""Adapters as checkpoints of torch models hold them: two matrices for each linear layer.

Such a checkpoint names them after the base's tensors, `….q_proj.lora_A.weight` [R, in] and
`….q_proj.lora_B.weight` [out, R]. Where the base has one tensor for several of our linear layers
(a fused projection), these have one A in common and each its rows of B.
"""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from clara_jax.errors import UserError
from clara_jax.interop import names
from clara_jax.interop.names import Part
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.lora import Adapter

MOST_RANK = 2**14  # beyond it an adapter would be larger than what it adapts

_A, _B = "lora_A.weight", "lora_B.weight"


def parts(config: ModelConfig) -> Mapping[str, Part]:
    """Where each linear layer is, by its path ("layers/attention/q")."""
    return {
        row.path.removesuffix("/kernel"): names.part(row, config, "hf")
        for row in names.TABLE
        if row.stacked and row.transposed
    }


def modules(config: ModelConfig) -> dict[str, list[str]]:
    """Names of the torch modules that hold each linear layer, by our name ("q"), one a layer."""
    return {
        path.rpartition("/")[2]: [_module(part, i) for i in range(config.n_layers)]
        for path, part in parts(config).items()
    }


def to_tree(
    tensors: Mapping[str, np.ndarray],
    where: str,
    lora: LoraConfig,
    config: ModelConfig,
    *,
    prefix: str = "",
) -> Adapter:
    """Makes an adapter of tensors.

    The tensors are A [R, in] and B [out, R] of every module of the targets, and no others; their
    names begin with `prefix`. `where` is their file, for error messages.

    Returns:
        The `lora` tree in float32: a [L, R, in], b [L, R, out] for each target.

    Raises:
        UserError: a tensor is missing, unknown, mis-shaped, or not of finite numbers.
    """
    shapes = {row.path: leaf.shape for row, leaf in names.parameters(config).items()}
    tree, used = {}, set()

    def take(name: str, shape: tuple[int, int]) -> np.ndarray:
        used.add(prefix + name)
        return _checked(tensors, prefix + name, shape, where)

    for path, part in parts(config).items():
        if path.rpartition("/")[2] not in lora.targets:
            continue
        n_layers, n_in, n_out = shapes[f"{path}/kernel"]
        a = tree[f"{path}/a"] = np.empty((n_layers, lora.rank, n_in), np.float32)
        b = tree[f"{path}/b"] = np.empty((n_layers, lora.rank, n_out), np.float32)
        for i in range(n_layers):
            module = _module(part, i)
            a[i] = take(f"{module}.{_A}", (lora.rank, n_in))
            b[i] = take(f"{module}.{_B}", (part.shape[0], lora.rank))[part.start : part.stop].T
    unknown = sorted(set(tensors) - used)
    if unknown:
        raise UserError(
            f"{where}: unknown tensor {unknown[0]} ({len(unknown)} in all); the base has no such "
            "layer, or it is none of the adapter's targets"
        )
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def to_tensors(adapter: Adapter, config: ModelConfig) -> dict[str, np.ndarray]:
    """Makes tensors of an adapter, the reverse of `to_tree`; all have the same rank.

    Linear layers that share a module there, but have an A each here, get all of these one below the
    other, and a B that is zero but for their own block. The rank is then several times the
    adapter's, for all modules (padded with zeros), and the caller has to keep the scale: alpha /
    rank.

    Returns:
        A [R, in] and B [out, R] by name, in the adapter's dtype.
    """
    leaves = flax.traverse_util.flatten_dict(adapter, sep="/")
    fused: dict[str, list[tuple[Part, np.ndarray, np.ndarray]]] = {}
    for path, part in parts(config).items():
        if f"{path}/a" in leaves:
            a, b = np.asarray(leaves[f"{path}/a"]), np.asarray(leaves[f"{path}/b"])
            fused.setdefault(part.pattern, []).append((part, a, b))
    joined = [(members[0][0], *_join(members)) for members in fused.values()]
    rank = max(a.shape[1] for _, a, _ in joined)
    tensors = {}
    for part, a, b in joined:
        a, b = widen((a, b), rank)
        for i in range(len(a)):
            tensors[f"{_module(part, i)}.{_A}"] = a[i]
            tensors[f"{_module(part, i)}.{_B}"] = np.ascontiguousarray(b[i].T)
    return tensors


def rank_of(tensors: Mapping[str, np.ndarray]) -> int:
    """The rank that all tensors of `to_tensors` have."""
    return next(tensor.shape[0] for name, tensor in tensors.items() if name.endswith(_A))


def widen(adapter: Any, rank: int) -> Any:
    """The same adapter at a larger rank, the rest of A and B zero: a [L, rank, in]."""
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, rank - x.shape[1]), (0, 0))), adapter)


def _join(members: list[tuple[Part, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """A [L, R, in] and B [L, R, out] of a module, from those of the linear layers in it."""
    part, first, b = members[0]
    n_layers, rank, _ = first.shape
    shared = all(np.array_equal(a, first) for _, a, _ in members)
    copies = 1 if shared else len(members)
    joined_b = np.zeros((n_layers, copies * rank, part.shape[0]), b.dtype)
    for i, (part, _, b) in enumerate(members):
        block = 0 if shared else i * rank
        joined_b[:, block : block + rank, part.start : part.stop] = b
    return first if shared else np.concatenate([a for _, a, _ in members], axis=1), joined_b


def _module(part: Part, layer: int) -> str:
    return part.pattern.removesuffix(".weight").format(layer=layer)


def _checked(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], where: str
) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{where}: tensor {name} is missing")
    tensor = tensors[name]
    if tensor.shape != shape:
        raise UserError(
            f"{where}: tensor {name} has shape {list(tensor.shape)}, but this base and the "
            f"adapter's rank ask for {list(shape)}; is it the right base?"
        )
    if not np.isfinite(tensor).all():
        raise UserError(f"{where}: tensor {name} holds numbers that are infinite or none")
    return tensor
