"""What memories depend on, as hashes: who made a store, or a folder of memories, can be compared.

Every number of the base is looked at, on the device that holds it: two sums over each array of
words that mix a number with its place. That reads memory once and no file a second time, and gives
the same on every mesh, for sums of integers do not depend on their order. Numbers are rounded to
bfloat16 first, so that a base which is held in float32 or in bfloat16 is the same one; in int8 it
is another. Adapters and memory embeddings are hashed as they are. What memories do not depend on is
left out: the reasoner, the generator, the base's head; and the embeddings of the few other added
tokens, which follow from the base or come with the adapter.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clara_jax import sharding
from clara_jax.models.clara import Trees
from clara_jax.models.config import ModelConfig
from clara_jax.runs.setup import Model

_SEEDS = (0x9E3779B1, 0x85EBCA77)  # of the two sums
_HOW = ("family", "context_length", "dtype", "param_dtype", "remat", "attention")


def fingerprint(model: Model, trees: Trees) -> dict[str, str]:
    """Hashes of `base`, `compressor`, `tokenizer` and `layout`; every process must call it.

    `compressor` is its adapter with the memory embeddings or the pooling's map, `layout` the
    options of the config that say how a document is laid out, and the base's architecture where no
    array shows it.
    """
    base = {name: tree for name, tree in trees["base"].items() if name != "head"}
    own = {name: trees.get(name) for name in ("compressor", "memory")}
    own |= {name: tree for name, tree in trees.items() if name == "pool"}
    base_sums, own_sums = jax.device_get(_summer(model.mesh)(base, own))
    return {
        "base": _hash(_told(base_sums)),
        "compressor": _hash(_told(own_sums)),
        "tokenizer": model.tokenizer.digest(),
        "layout": _hash(_layout(model, own["compressor"] is not None)),
    }


def model_hash(model: Model, trees: Trees) -> str:
    """One hash of all that answers depend on; every process must call it.

    These are all weights, the tokenizer, the layout and the prompts: what tells a run from another
    that was trained in its place to the same step. Rounded are those that may be drawn or computed
    again, on another mesh a little differently.
    """
    drawn = {name: tree for name, tree in trees.items() if name in ("base", "added")}
    own = {name: tree for name, tree in trees.items() if name not in drawn}
    sums = [_told(each) for each in jax.device_get(_summer(model.mesh)(drawn, own))]
    prompts = dataclasses.asdict(model.config.prompts)
    return _hash([sums, model.tokenizer.digest(), _layout(model, True), prompts])


def _layout(model: Model, adapted: bool) -> list[Any]:
    """How a document is laid out for adapters, or for a base that has none."""
    config = model.config
    return [
        config.data.document_length,
        config.rate,
        config.memory.positions,
        *(() if model.memory.is_papers else (config.memory.kind, config.memory.sees)),
        config.lora.scale if adapted else 0,
        _architecture(model.architecture),
    ]


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """What differs from the defaults, so that an option which is new changes no hash."""
    fields = [field for field in dataclasses.fields(model) if field.name not in _HOW]
    values = {field.name: (getattr(model, field.name), field.default) for field in fields}
    return {name: repr(value) for name, (value, default) in values.items() if value != default}


@functools.cache  # compiled once, not at every document that a server adds
def _summer(mesh: Mesh) -> Callable[[Any, Any], Any]:
    return jax.jit(
        lambda base, own: (_sums(base, rounded=True), _sums(own, rounded=False)),
        out_shardings=sharding.replicated(mesh),
    )


def _sums(tree: Any, rounded: bool) -> Any:
    return jax.tree.map(functools.partial(_sum, rounded=rounded), tree)


def _sum(x: jax.Array, rounded: bool) -> jax.Array:
    """Two words that any change of a number, or of its place, changes."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.bfloat16 if rounded else jnp.float32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    words = (_mixed(_mixed(place + jnp.uint32(seed)) ^ bits) for seed in _SEEDS)
    return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])


def _mixed(word: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit of the input reaches every bit of the output."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _told(sums: Any) -> dict[str, list[int]]:
    flat = flax.traverse_util.flatten_dict(sums, sep="/")
    return {name: np.asarray(s).tolist() for name, s in sorted(flat.items()) if s is not None}


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
