"""The architecture and the weights that a run begins with: the base, and fresh adapters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from clara_jax import sharding
from clara_jax.config import Config, Memory
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.interop import weights
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.config import PRESETS, LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params, init_params
from clara_jax.models.lora import init_adapter
from clara_jax.progress import doing
from clara_jax.stages import ADAPTERS


def model_config(config: Config, platform: str = "cpu") -> ModelConfig:
    """The architecture: the base checkpoint's own, or the preset's; and how it is computed.

    Args:
        config: of the run.
        platform: of the devices; it decides on the attention where the config says `auto`.

    Raises:
        UserError: no architecture is given, or the devices or the positions of memory tokens do not
            allow the attention.
    """
    model = _architecture(config)
    attention: Any = config.model.attention  # checked with the config
    # The kernel counts a window's tokens by their order in the row, which `spread` departs from.
    window = model.sliding_window
    longest = config.data.document_length + config.memory_tokens
    ordered = not config.spread or window is None or window >= longest
    if attention == "auto":
        attention = "splash" if platform == "tpu" and ordered else "xla"
    if attention == "splash" and not ordered:
        raise UserError(
            "config.model.attention=splash cannot spread positions over documents longer than the "
            f"model's window of {window} tokens; set auto"
        )
    if attention == "cudnn" and platform != "gpu":
        raise UserError(
            f"config.model.attention=cudnn needs a GPU, these devices are of a {platform}; set auto"
        )
    return dataclasses.replace(model, attention=attention)


def _architecture(config: Config) -> ModelConfig:
    how = {k: getattr(config.model, k) for k in ("dtype", "param_dtype", "remat")}
    if config.model.base:
        return dataclasses.replace(base_lib.read_config(config.model.base), **how)
    if config.model.vocab_size:
        how["vocab_size"] = config.model.vocab_size
    return dataclasses.replace(PRESETS[config.model.preset], **how)


def base_hash(config: Config, model: ModelConfig, known: Mapping[str, str]) -> str:
    """Tells the base from others of its shapes; empty for random weights.

    Args:
        config: of the run.
        model: the architecture.
        known: the hashes, by workdir, of the bases that runs were trained on, empty where unknown.

    Raises:
        UserError: this is another base.
    """
    base = config.model.base
    if not base:
        return ""
    now = weights.fingerprint(base_lib.open_tensors(base, model, verify=False), model)
    for workdir, then in known.items():
        if then in ("", now):
            continue
        problem = f"{base}: another base (hash {now}) than that of {workdir} (hash {then})"
        if then.rpartition(":")[0] == now.rpartition(":")[0]:
            raise UserError(f"{problem}, though its shapes are the same; give that one")
        logging.warning("%s, or the same in other numbers", problem)
    return now


def load_base(
    config: Config, model: ModelConfig, mesh: Mesh, seed: int = 0, parts: Sequence[str] = ()
) -> Any:
    """The base weights, read or, by the seed, drawn straight into their sharding.

    Args:
        config: of the run.
        model: the architecture.
        mesh: that they are sharded over.
        seed: of the draw.
        parts: the only ones wanted, such as `embed` and `head`; all if none is named.
    """
    sharding.check_memory(abstract_params(model), f"the model {config.model.base or 'drawn'}")
    with doing(f"reading {config.model.base}" if config.model.base else "drawing weights"):
        if config.model.base:
            return base_lib.load_params(
                config.model.base,
                model,
                lambda path, shape: sharding.array_sharding(mesh, f"base/{path}", shape),
                parts,
            )
        return _drawer(model, mesh, tuple(parts))(jax.random.key(seed))


@functools.cache  # compiled once, not for every model of one shape
def _drawer(model: ModelConfig, mesh: Mesh, parts: tuple[str, ...]) -> Callable[[jax.Array], Any]:
    def draw(rng: jax.Array) -> Any:
        params = init_params(model, rng)
        return {name: tree for name, tree in params.items() if not parts or name in parts}

    shardings = sharding.shardings(mesh, "base", jax.eval_shape(draw, jax.random.key(0)))
    return jax.jit(draw, out_shardings=shardings)


def fresh_trees(
    config: Config, model: ModelConfig, base: Any, mesh: Mesh, adapters: Sequence[str], seed: int
) -> Trees:
    """Zero-effect adapters of these names and new memory embeddings, on the mesh."""
    return put(mesh, fresh(config, model, base, adapters, seed))


def fresh(
    config: Config, model: ModelConfig, base: Any, adapters: Sequence[str], seed: int
) -> Trees:
    """What `fresh_trees` makes, before it is placed on the mesh; arguments as there."""
    lora, memory, seeds = config.lora, config.memory, (config.seed, seed)
    return _fresh(base["embed"], model, lora, memory, config.memory_tokens, tuple(adapters), seeds)


@functools.partial(jax.jit, static_argnums=range(1, 7))  # of the rest of a config nothing depends
def _fresh(
    embed: Any,
    model: ModelConfig,
    lora: LoraConfig,
    memory: Memory,
    memory_tokens: int,
    adapters: tuple[str, ...],
    seeds: tuple[int, int],
) -> Trees:
    rngs, others = (jax.random.split(jax.random.key(seed + 1), len(ADAPTERS) + 1) for seed in seeds)
    vectors, added = clara.init_memory(
        {"embed": embed}, memory_tokens, others[-1], memory.init, memory.init_noise
    )
    trees = {"memory": vectors, "added": added}
    if memory.kind == "pool":
        trees["pool"] = jnp.eye(model.d_model)
    if adapters:  # all in one draw, which is less to compile
        own = rngs[np.array([ADAPTERS.index(name) for name in adapters])]
        drawn = jax.vmap(functools.partial(init_adapter, model, lora))(own)
        for i, name in enumerate(adapters):
            trees[name] = jax.tree.map(lambda x, i=i: x[i], drawn)
    return trees


def put(mesh: Mesh, trees: Trees) -> Trees:
    """Trees of host arrays, adapters and memory embeddings, on the mesh."""
    return {
        name: jax.device_put(tree, sharding.shardings(mesh, name, tree))
        for name, tree in trees.items()
    }
