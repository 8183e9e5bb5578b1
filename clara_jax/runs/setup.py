"""From a config to what every mode needs: tokenizer, decoder and the trees of weights."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.data.prompts import TextLayout
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.interop import native
from clara_jax.models.clara import MemoryLayout, Trees
from clara_jax.models.config import ExtraTokens, ModelConfig
from clara_jax.models.decoder import Decoder, abstract_params
from clara_jax.runs import weights
from clara_jax.runs.checkpoint import load_trees
from clara_jax.runs.lineage import Run, lineage
from clara_jax.stages import ADAPTERS, STAGES


@dataclasses.dataclass(frozen=True)
class Model:
    """All of a model but its weights, which functions take beside it as `trees` (`models.clara`).

    Nothing in it is an array, so that functions under `jax.jit` may read it.
    """

    config: Config  # the run's config
    mesh: Mesh  # the devices that arrays are sharded over
    decoder: Decoder  # the module; apply it through `models.clara`
    tokenizer: Tokenizer  # text to ids of the base vocabulary
    extra: ExtraTokens  # ids beyond it
    step: int = 0  # training steps that the trees have seen
    # the base itself was trained to compress and to read, without adapters
    base_trained: bool = False

    @property
    def architecture(self) -> ModelConfig:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def layout(self) -> TextLayout:
        """How texts become token ids."""
        config = self.config
        return TextLayout(
            self.tokenizer,
            self.extra,
            config.prompts,
            config.data.document_length,
            config.seed,
            self.memory.pools,
            config.vectors,
            config.vectors_at(config.eval.rate),
        )

    @property
    def memory(self) -> MemoryLayout:
        """Where the memory vectors of a text come from."""
        config = self.config
        return MemoryLayout(
            config.memory_tokens, config.memory.kind, config.memory.sees, config.spread
        )

    def at_rate(self, rate: int) -> "Model":
        """The same, whose prompts hold memories at this rate; 0: at the finest.

        Raises:
            UserError: its memories cannot be put together to that rate.
        """
        config = config_lib.with_options(self.config, {"eval.rate": rate})
        return dataclasses.replace(self, config=config_lib.freeze(dataclasses.asdict(config)))


class Loaded(NamedTuple):
    """A model with its weights, on the mesh: `model, trees = restore(workdir)`."""

    model: Model
    trees: Trees


def create(
    config: Config, mesh: Mesh | None = None, runs: Sequence[Run] = (), parts: Sequence[str] = ()
) -> Loaded:
    """Loads the base, or draws it at random, and makes fresh adapters and memory embeddings.

    Args:
        config: the run's config; its `init_from` is not looked at.
        mesh: that the arrays are sharded over; that of `config.mesh` by default.
        runs: whose trees will be put in: there are adapters for these as well.
        parts: of the base, as `load_base` takes them.

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
    architecture = weights.model_config(config, sharding.layout(mesh).platform)
    tokenizer = load_tokenizer(name, date=config.prompts.date)
    if tokenizer.size > architecture.vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.size} tokens, the model only "
            f"{architecture.vocab_size}"
        )
    known = {run.workdir: run.config.model.base_hash for run in runs}
    known["this run"] = config.model.base_hash
    if any("base" in run.trees for run in runs):  # these read the file for its shapes alone
        known = {}
    base_hash = weights.base_hash(config, architecture, known)
    config = config_lib.with_options(config, {"model.base_hash": base_hash})
    # What no run trains is as the first of them drew it.
    seed = runs[-1].config.seed if runs else config.seed
    base = weights.load_base(config, architecture, mesh, seed, parts)
    own = () if config.train.full else STAGES[config.stage].trained
    names = {*own, *(name for run in runs for name in run.trees)}
    adapters = [name for name in ADAPTERS if name in names]
    trees = {"base": base, **weights.fresh_trees(config, architecture, base, mesh, adapters, seed)}
    return Loaded(assemble(config, mesh, architecture, tokenizer), trees)


def assemble(config: Config, mesh: Mesh, architecture: ModelConfig, tokenizer: Any) -> Model:
    """A model of these parts; without a tokenizer it is good for compiling alone."""
    decoder = Decoder(architecture, config.lora, sharding.layout(mesh))
    extra = ExtraTokens(architecture.vocab_size, config.memory_tokens)
    return Model(config, mesh, decoder, tokenizer, extra)


def start(config: Config, workdir: str = "") -> Loaded:
    """The model as this run's training begins: `create`, and the trees of `config.init_from`.

    The generator starts afresh instead if this run trains it and `config.generator_init` says so.

    Args:
        config: of the run.
        workdir: of the run, which knows from which steps it started if it was begun before.

    Raises:
        UserError: something that it starts from is missing or does not fit.
    """
    runs = lineage(config, workdir)
    if STAGES[config.stage].ranks and not any(
        {"compressor", "base"} & set(run.trees) for run in runs
    ):
        raise UserError(
            f"config.stage={config.stage} needs a trained compressor: set config.init_from to the "
            "workdir of an scp or instruct run"
        )
    fresh = config.generator_init == "fresh" and "generator" in config.trained
    model, trees = create(config, runs=runs)
    model, trees = with_runs(model, trees, runs, skip=("generator",) if fresh else ())
    return Loaded(dataclasses.replace(model, step=0), trees)


def abstract(config: Config, mesh: Mesh) -> Loaded:
    """A model with shapes and shardings in place of weights, and no tokenizer: for compiling.

    It has the adapters that the stage trains and, if the base is not trained, the compressor.

    Raises:
        UserError: a dimension does not divide by the mesh.
    """
    architecture = weights.model_config(config, sharding.layout(mesh).platform)
    adapters = (
        () if config.train.full else {*STAGES[config.stage].trained, "compressor"} & {*ADAPTERS}
    )
    base = abstract_params(architecture)
    fresh = jax.eval_shape(
        lambda base: weights.fresh(config, architecture, base, sorted(adapters), 0), base
    )
    trees = {
        name: sharding.abstract(mesh, name, tree) for name, tree in {"base": base, **fresh}.items()
    }
    return Loaded(assemble(config, mesh, architecture, None), trees)


def with_runs(
    model: Model, trees: Trees, runs: Sequence[Run], skip: tuple[str, ...] = ()
) -> Loaded:
    """Puts in the trees that runs trained, each from the first of them that trained it.

    A reasoner that none of them trained becomes a copy of the compressor (paper), unless
    `config.reasoner_init` says random.

    Args:
        model: all but the weights.
        trees: weights, of which those that a run trained are replaced.
        runs: the nearest first.
        skip: trees that are not read.

    Returns:
        The model as it is after the steps of the first run, and its weights.

    Raises:
        UserError: a run has no checkpoint, or its trees do not fit this model.
    """
    trees, taken = dict(trees), set(skip)
    for run in runs:
        if "base" in run.trees and model.config.model.param_dtype == "int8":
            raise UserError(
                f"{run.workdir} trained the base itself, which config.model.param_dtype=int8 "
                "cannot hold; set float32 or bfloat16"
            )
        names = [n for n in run.trees if n in trees and n not in taken]
        if {"compressor", "base"} & taken:  # a reasoner from before does not fit the new memories
            names = [name for name in names if name != "reasoner"]
        taken |= set(names)
        if names:
            step, loaded = _load(run, {name: trees[name] for name in names}, model)
            if run is runs[0]:
                model = dataclasses.replace(model, step=step)
            logging.info("weights: %s of %s, step %d", ", ".join(names), run.workdir, step)
            trees |= loaded
    copied = "reasoner" in trees and "reasoner" not in taken and "compressor" in trees
    if copied and model.config.reasoner_init == "copy":
        # A copy of its own, since the step gives the memory of what it trains away.
        trees["reasoner"] = jax.tree.map(jnp.copy, trees["compressor"])
    base_trained = model.base_trained or any("base" in run.trees for run in runs)
    return Loaded(dataclasses.replace(model, base_trained=base_trained), trees)


def _load(run: Run, expected: Trees, model: Model) -> tuple[int, Trees]:
    """Step and trees of a run, with the names, shapes and shardings of `expected`."""
    if run.is_native:
        trees = native.read(run.workdir, expected, model.architecture, model.config.lora)
        return native.step(run.workdir), weights.put(model.mesh, trees)
    return load_trees(run.workdir, expected, run.step)


def restore(
    workdir: str, mesh: Mesh | None = None, parts: Sequence[str] = (), **options: Any
) -> Loaded:
    """The newest checkpoint of a run with everything it needs, ready for evaluation or inference.

    Args:
        workdir: of the run.
        mesh: devices; by default as in the run, or all in `fsdp` where that does not fit these.
        parts: of the base, as `load_base` takes them; all of a base that was trained itself.
        **options: those of `config.model` that are not as in the run: `base`, where the base model
            is now, `dtype`, `param_dtype` or `attention`. None: as in the run.

    Raises:
        UserError: no such run, no checkpoint, or a base that does not fit.
    """
    config = config_lib.load(os.path.join(workdir, "config.json"))
    own_base = config.model.base == native.OWN_BASE
    if own_base:
        options["base"] = options.get("base") or os.path.join(workdir, native.BASE)
    if config.model.tokenizer == native.OWN_TOKENIZER:
        options["tokenizer"] = os.path.join(workdir, native.TOKENIZER)
    given = {f"model.{name}": value for name, value in options.items() if value is not None}
    config = config_lib.with_options(config, given)
    config = config_lib.freeze(dataclasses.asdict(config))  # what was given is checked as well
    if mesh is None:
        try:
            mesh = sharding.make_mesh(config.mesh)
        except UserError:
            mesh = sharding.make_mesh(config_lib.Mesh())
    run = Run(workdir, config)
    runs = [run, *lineage(config, workdir)]
    if any("base" in run.trees for run in runs):
        parts = ()
    model, trees = with_runs(*create(config, mesh, runs, parts), runs)
    trained = model.base_trained or own_base
    return Loaded(dataclasses.replace(model, base_trained=trained), trees)
