"""From a config to what every mode needs: tokenizer, decoder and the trees of weights."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.config import PRESETS, ExtraTokens, ModelConfig
from clara_jax.models.decoder import Decoder, init_params
from clara_jax.models.lora import init_adapter
from clara_jax.training.checkpoint import load_trees

# What each stage trains; everything else is frozen, gets no gradient and no optimizer state.
# With config.train.full the base itself takes the place of the adapters.
TRAINED: dict[str, tuple[str, ...]] = {
    "scp": ("compressor", "generator", "memory"),
}
ADAPTERS = ("compressor", "reasoner", "generator")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model and its parts.

    Attributes:
        config: the run's config.
        mesh: where the arrays lie.
        decoder: the module; apply it through `models.clara`.
        tokenizer: text to ids of the base vocabulary.
        extra: ids beyond it.
        trees: all weights (`models.clara`), on the mesh.
        step: training steps that the trees have seen.
    """

    config: Config
    mesh: Mesh
    decoder: Decoder
    tokenizer: Tokenizer
    extra: ExtraTokens
    trees: Trees
    step: int = 0

    @property
    def model(self) -> ModelConfig:
        """The decoder's configuration."""
        return self.decoder.config


def trained_names(config: Config) -> tuple[str, ...]:
    """Names of the trees that this run trains."""
    names = TRAINED[config.stage]
    if not config.train.full:
        return names
    return ("base", *(name for name in names if name not in ADAPTERS))


def model_config(config: Config) -> ModelConfig:
    """The architecture: the base checkpoint's own, or the preset's.

    Raises:
        UserError: neither is given, or the preset is unknown.
    """
    how = {k: getattr(config.model, k) for k in ("dtype", "param_dtype", "remat")}
    if config.model.base:
        return dataclasses.replace(base_lib.read_config(config.model.base), **how)
    if config.model.preset not in PRESETS:
        raise UserError(
            f"config.model.preset={config.model.preset!r} is unknown; known: {', '.join(PRESETS)}"
        )
    if config.model.vocab_size:
        how["vocab_size"] = config.model.vocab_size
    return dataclasses.replace(PRESETS[config.model.preset], **how)


def create(config: Config, mesh: Mesh | None = None) -> Setup:
    """Loads the base, or draws it at random, and makes fresh adapters and memory embeddings.

    Args:
        config: the run's config; its `init_from` is not looked at.
        mesh: where the arrays lie; that of `config.mesh` by default.

    Raises:
        UserError: base, tokenizer or mesh cannot be had or do not fit.
    """
    mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
    name = config.model.tokenizer or config.model.base
    if not name:
        raise UserError(
            "set config.model.base to a model (directory, hub id or .gguf file), or for random "
            "weights config.model.tokenizer: no tokenizer is known"
        )
    model = model_config(config)
    tokenizer = load_tokenizer(name)
    if tokenizer.size > model.vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.size} tokens, the model only {model.vocab_size}"
        )
    decoder = Decoder(model, config.lora)
    base = load_base(config, model, mesh)
    trees = {"base": base, **fresh_trees(config, model, base, mesh)}
    extra = ExtraTokens(model.vocab_size, config.memory_tokens)
    return Setup(config, mesh, decoder, tokenizer, extra, trees)


def start(config: Config) -> Setup:
    """The model as this run's training begins: `create`, and the trees of `config.init_from`."""
    setup = create(config)
    return with_earlier(setup, config.init_from) if config.init_from else setup


def load_base(config: Config, model: ModelConfig, mesh: Mesh) -> Any:
    """The base weights, read or drawn straight into their sharding."""
    if config.model.base:
        return base_lib.load_params(
            config.model.base, model, lambda path, shape: sharding.base_sharding(mesh, path, shape)
        )
    rng = jax.random.key(config.seed)
    shardings = sharding.base_shardings(mesh, jax.eval_shape(lambda: init_params(model, rng)))
    return jax.jit(lambda rng: init_params(model, rng), out_shardings=shardings)(rng)


def fresh_trees(config: Config, model: ModelConfig, base: Any, mesh: Mesh) -> Trees:
    """Zero-effect adapters and new memory embeddings, replicated on the mesh."""
    names = [name for name in trained_names(config) if name in ADAPTERS]

    @jax.jit
    def make(base: Any, rng: jax.Array) -> Trees:
        rngs = jax.random.split(rng, len(ADAPTERS) + 1)
        memory, added = clara.init_memory(
            base, config.memory_tokens, rngs[-1], config.memory.init, config.memory.init_noise
        )
        adapters = {
            name: init_adapter(model, config.lora, rngs[ADAPTERS.index(name)]) for name in names
        }
        return jax.tree.map(jnp.asarray, {**adapters, "memory": memory, "added": added})

    out = make(base, jax.random.key(config.seed + 1))
    return jax.device_put(out, sharding.replicated(mesh))


def with_earlier(setup: Setup, workdir: str, skip: tuple[str, ...] = ()) -> Setup:
    """Puts in the trees that an earlier run trained, and those that it had from runs before it.

    Args:
        setup: the model.
        workdir: of the earlier run.
        skip: trees that are not read.

    Raises:
        UserError: the run has no checkpoint, or its trees do not fit this model.
    """
    earlier = config_lib.load(os.path.join(workdir, "config.json"))
    names = [n for n in trained_names(earlier) if n in setup.trees and n not in skip]
    if earlier.init_from:
        setup = with_earlier(setup, earlier.init_from, (*skip, *names))
    if not names:
        return setup
    step, trees = load_trees(workdir, {name: setup.trees[name] for name in names})
    logging.info("weights: %s of %s, step %d", ", ".join(names), workdir, step)
    return dataclasses.replace(setup, trees={**setup.trees, **trees}, step=step)


def restore(workdir: str, base: str | None = None, mesh: Mesh | None = None) -> Setup:
    """The newest checkpoint of a run with everything it needs, ready for evaluation or inference.

    Args:
        workdir: of the run.
        base: where the base model is now, if not where the run found it.
        mesh: devices; by default as in the run, or all in `fsdp` where that does not fit these.

    Raises:
        UserError: no such run, no checkpoint, or a base that does not fit.
    """
    config = config_lib.load(os.path.join(workdir, "config.json"))
    if base is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, base=base))
    if mesh is None:
        try:
            mesh = sharding.make_mesh(config.mesh)
        except UserError:
            mesh = sharding.make_mesh(config_lib.Mesh())
    return with_earlier(create(config, mesh), workdir)
