"""The programs that `--mode=compile` compiles: those of training and inference, on shapes alone.

Rows that the config leaves to the data (`encoder_row`, `decoder_row` of 0) have the lengths below:
each holds one example, and two stand for a packed row, so that configs/scp.py has the paper's 128.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.corpus.search import nearest
from clara_jax.data import batches
from clara_jax.inference import encode, generate
from clara_jax.inference.decoding import DecodingState
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Cache, abstract_params
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES
from clara_jax.training.optim import make_optimizer
from clara_jax.training.step import abstract_optimizer, compile_step, make_step

EXAMPLES = 2  # of a packed row
DECODER = 512  # tokens of prompt and answer
QUERY = 64  # tokens of a question with its memory tokens
NEW_TOKENS = 64  # most tokens of an answer
DOCUMENTS = 2_000_000  # to search among
_IDS = ("tokens", "positions", "segments")


@dataclasses.dataclass(frozen=True)
class Program:
    """One program to compile."""

    function: Any  # jitted
    arguments: tuple[Any, ...]  # shapes with shardings
    # arguments by what they are, for the table of memory: base, adapters, optimizer, …
    kinds: dict[str, Any]
    flops: float  # of the model, without anything that is computed twice
    rows: int  # of its batch


def train(model: Model, trees: Trees) -> Program:
    """The train step of the config's stage."""
    config = model.config
    batch = batch_shapes(model)
    optimizer = make_optimizer(config)
    trained = {name: trees[name] for name in config.trained}
    read = _frozen(config, batch)
    frozen = {k: v for k, v in trees.items() if k not in trained and k in read}
    state = (trained, abstract_optimizer(model, optimizer, trained))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    function = compile_step(model, make_step(model, optimizer), state)
    kinds = _kinds({**frozen, **trained}) | {"optimizer": state[1], "batch": batch}
    rows = batch["qry_tokens" if "qry_tokens" in batch else "dec_tokens"].shape[0]
    return Program(function, (state, frozen, batch, step), kinds, train_flops(model, batch), rows)


def prefill(model: Model, trees: Trees) -> Program:
    """Reading `eval.batch` prompts with `select.k` compressed documents, and their first tokens."""
    trees, stop_V, prompts, _ = inference_shapes(model, trees)

    @jax.jit
    def function(trees: Any, prompts: Any, stop_V: Any) -> Any:
        return generate.prefill(
            model.decoder, trees, prompts, stop_V, None, "generator", NEW_TOKENS
        )

    B, T = prompts.tokens_BT.shape
    kinds = _kinds(trees) | {"batch": prompts}
    return Program(function, (trees, prompts, stop_V), kinds, forward_flops(model, trees, B * T), B)


def decode(model: Model, trees: Trees) -> Program:
    """One token for each of the rows that `prefill` has read; the cache is updated in place."""
    trees, stop_V, _, state = inference_shapes(model, trees)

    @functools.partial(jax.jit, donate_argnums=1)
    def function(trees: Any, state: Any, stop_V: Any) -> Any:
        return generate.advance(model.decoder, trees, state, stop_V, "generator")

    B = len(state.done_B)
    kinds = _kinds(trees) | {"cache": state.rows.cache}
    return Program(function, (trees, state, stop_V), kinds, forward_flops(model, trees, B), B)


def compress(model: Model, trees: Trees) -> Program:
    """Memories of `eval.batch` documents of the longest length."""
    config = model.config
    trees = generate.needed(trees, "compressor")
    shape = (config.eval.batch, config.data.encoder_row or _document(config))
    shapes = {f"enc_{name}": (shape, "int32") for name in _IDS}
    ids = _abstract(model, shapes | {"doc_places": ((shape[0], config.memory_tokens), "int32")})

    @jax.jit
    def function(trees: Any, *ids: jax.Array) -> jax.Array:
        return encode.encode_rows(model.decoder, "compressor", model.memory, trees, *ids)

    arguments = (trees, *(ids[f"enc_{name}"] for name in _IDS), ids["doc_places"])
    flops = forward_flops(model, trees, shape[0] * shape[1], head=False)
    # No logits are computed: XLA leaves the head out of the arguments.
    base = {name: tree for name, tree in trees["base"].items() if name != "head"}
    kinds = _kinds({**trees, "base": base}) | {"batch": ids}
    return Program(function, arguments, kinds, flops, shape[0])


def search(model: Model, trees: Trees) -> Program:
    """Candidates of `eval.batch` questions by their keys, among DOCUMENTS documents."""
    config, mesh = model.config, model.mesh
    M, D, K = config.memory_tokens, model.architecture.d_model, config.search.key
    score, B = config.select.score, config.eval.batch
    X = D if score == "mean" else M * D
    rows = nearest.capacity(DOCUMENTS, mesh.size)
    over, everywhere = nearest.keys_sharding(mesh), sharding.replicated(mesh)
    queries = jax.ShapeDtypeStruct((B, M, D), jnp.float32, sharding=everywhere)
    components = jax.ShapeDtypeStruct((X, min(K, X)), jnp.float32, sharding=everywhere)
    shape = (rows, min(K, X))
    keys = jax.ShapeDtypeStruct(shape, nearest.dtype(mesh), sharding=over)
    added = jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=over)
    function = nearest.program(mesh, score, config.search.candidates)
    kinds = {"base": {}, "keys": (keys, added), "basis": components, "batch": queries}
    flops = 2.0 * B * shape[1] * (rows + X)
    return Program(function, (queries, components, keys, added), kinds, flops, B)


PROGRAMS: dict[str, Callable[[Model, Trees], Program]] = {
    "train": train,
    "prefill": prefill,
    "decode": decode,
    "compress": compress,
    "search": search,
}


def batch_shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the config's stage as shapes."""
    config, data, stage = model.config, model.config.data, STAGES[model.config.stage]
    encoder, rows = data.encoder_row or _document(config), config.train.batch_rows
    if stage.records == "scp" and data.pack and not data.encoder_row and not data.decoder_row:
        rows *= EXAMPLES
    in_a_row = max(encoder // _document(config), 1)  # documents
    sizes = {
        "B": rows,
        "S": data.row_examples,
        "N": config.places,
        "M": config.memory_tokens,
        "D": model.architecture.d_model,
        "G": -(-config.places // in_a_row),
        "enc": encoder,
        "qry": QUERY,
        "dec": data.decoder_row or DECODER * len(config.vectors or (1,)),
    }
    memories = model.architecture.dtype if data.memories and stage.ranks else ""
    return _abstract(model, batches.shapes(stage, sizes, memories))


def parameters(model: Model) -> int:
    """Weights of the base, embeddings included, scales of int8 not."""
    leaves = jax.tree.leaves_with_path(abstract_params(model.architecture))
    int8 = model.architecture.param_dtype == "int8"
    return sum(
        int(np.prod(x.shape))
        for path, x in leaves
        if not (int8 and path[-1].key == "scale" and "norm" not in path[-2].key)
    )


def train_flops(model: Model, batch: dict[str, Any]) -> float:
    """FLOPs of a step: 2 a parameter and token forward, 2 backward to the activations.

    The frozen base needs no gradient of its weights; what is trained counts nothing beside it. With
    `train.full` it does: 2 more. Documents that the frozen compressor reads are forward only.
    """
    config = model.config
    trained = 6 if config.train.full else 4
    total = 0.0
    for side in ("enc", "qry", "dec"):
        if f"{side}_tokens" in batch:
            constant = side == "enc" and STAGES[config.stage].ranks
            tokens = int(np.prod(batch[f"{side}_tokens"].shape))
            total += (2 if constant else trained) * parameters(model) * tokens
    return total


def forward_flops(model: Model, trees: Trees, tokens: int, head: bool = True) -> float:
    """FLOPs of a number of tokens forward; without the head where no logits are computed."""
    base = trees["base"]
    unused = 0 if head or "head" not in base else int(np.prod(base["head"]["kernel"].shape))
    return 2.0 * (parameters(model) - unused) * tokens


def _document(config: Config) -> int:
    tail = 0 if config.pools else config.memory_tokens
    return config.data.document_length + tail


def _abstract(
    model: Model, shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> dict[str, jax.ShapeDtypeStruct]:
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return sharding.abstract(model.mesh, "batch", batch)


def _frozen(config: Config, batch: dict[str, Any]) -> set[str]:
    """Trees that the step reads."""
    read = {"base", "memory", "pool", "added", *config.trained}
    return read | {"compressor"} if "enc_tokens" in batch else read


def _kinds(trees: clara.Trees) -> dict[str, Any]:
    rest = {k: v for k, v in trees.items() if k != "base"}
    return {"base": trees["base"], "adapters": rest}


def inference_shapes(model: Model, trees: Trees) -> tuple[Any, Any, Any, Any]:
    """Trees, stop tokens, prompts and, after these are read, the state of decoding."""
    config, architecture = model.config, model.architecture
    trees = generate.needed(trees, "generator")
    B, T, K, M = config.eval.batch, DECODER - NEW_TOKENS, config.select.k, config.memory_tokens
    T = config.data.decoder_row or T
    array: Any = jax.ShapeDtypeStruct  # stands for an array
    prompts = generate.PromptBatch(
        tokens_BT=array((B, T), jnp.int32),
        lengths_B=array((B,), jnp.int32),
        slots_BT=array((B, T), jnp.int32),
        vectors_BSD=array((B, K * M, architecture.d_model), jnp.float32),
    )
    prompts = sharding.abstract(model.mesh, "prompts", prompts)
    cache = jax.eval_shape(lambda: Cache.create(architecture, B, T + NEW_TOKENS - 1))
    everywhere = sharding.replicated(model.mesh)
    rows = sharding.batch_sharding(model.mesh)
    numbers_B = array((B,), jnp.int32, sharding=rows)
    state = generate.Unfinished(
        step=array((), jnp.int32, sharding=everywhere),
        tokens_BN=array((B, NEW_TOKENS), jnp.int32, sharding=rows),
        done_B=array((B,), jnp.bool_, sharding=rows),
        rows=DecodingState(
            numbers_B, numbers_B, None, sharding.abstract(model.mesh, "cache", cache)
        ),
    )
    stop_V = array((architecture.vocab_size,), jnp.bool_, sharding=everywhere)
    return trees, stop_V, prompts, state
