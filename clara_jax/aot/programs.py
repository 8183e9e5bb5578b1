"""The programs that `--mode=compile` compiles: those of training and inference, on shapes alone.

Rows that the config leaves to the data (`encoder_row`, `decoder_row` of 0) have the lengths below:
each holds one example, and two stand for a packed row, so that configs/scp.py has the paper's 128.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.corpus.search import nearest
from clara_jax.inference import encode, generate
from clara_jax.models import clara
from clara_jax.models.decoder import Cache, abstract_params
from clara_jax.runs.setup import Setup
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
    """One program to compile.

    Attributes:
        function: jitted.
        arguments: shapes with shardings.
        kinds: arguments by what they are, for the table of memory: base, adapters, optimizer, ….
        flops: of the model, without anything that is computed twice.
        rows: of its batch.
    """

    function: Any
    arguments: tuple[Any, ...]
    kinds: dict[str, Any]
    flops: float
    rows: int


def train(setup: Setup) -> Program:
    """The train step of the config's stage."""
    config = setup.config
    batch = batch_shapes(setup)
    optimizer = make_optimizer(config)
    trained = {name: setup.trees[name] for name in config.trained}
    read = _frozen(config, batch)
    frozen = {k: v for k, v in setup.trees.items() if k not in trained and k in read}
    state = (trained, abstract_optimizer(setup, optimizer, trained))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    function = compile_step(setup, make_step(setup, optimizer), state)
    kinds = _kinds({**frozen, **trained}) | {"optimizer": state[1], "batch": batch}
    rows = batch["qry_tokens" if "qry_tokens" in batch else "dec_tokens"].shape[0]
    return Program(function, (state, frozen, batch, step), kinds, train_flops(setup, batch), rows)


def prefill(setup: Setup) -> Program:
    """Reading `eval.batch` prompts with `select.k` compressed documents, and their first tokens."""
    trees, stop_V, prompts, _ = inference_shapes(setup)

    @jax.jit
    def function(trees: Any, prompts: Any, stop_V: Any) -> Any:
        return generate.prefill(
            setup.decoder, trees, prompts, stop_V, None, "generator", NEW_TOKENS
        )

    B, T = prompts.tokens_BT.shape
    kinds = _kinds(trees) | {"batch": prompts}
    return Program(function, (trees, prompts, stop_V), kinds, forward_flops(setup, B * T), B)


def decode(setup: Setup) -> Program:
    """One token for each of the rows that `prefill` has read; the cache is updated in place."""
    trees, stop_V, _, state = inference_shapes(setup)

    @functools.partial(jax.jit, donate_argnums=1)
    def function(trees: Any, state: Any, stop_V: Any) -> Any:
        return generate.advance(setup.decoder, trees, state, stop_V, None, "generator")

    B = len(state.done_B)
    kinds = _kinds(trees) | {"cache": state.cache}
    return Program(function, (trees, state, stop_V), kinds, forward_flops(setup, B), B)


def compress(setup: Setup) -> Program:
    """Memories of `eval.batch` documents of the longest length."""
    config = setup.config
    trees = generate.needed(setup.trees, "compressor")
    shape = (config.eval.batch, config.data.encoder_row or _document(config))
    ids = _batch(setup, {f"enc_{name}": shape for name in _IDS})
    spread = config.memory.positions == "spread"

    @jax.jit
    def function(trees: Any, *ids: jax.Array) -> jax.Array:
        return encode.encode_rows(setup.decoder, "compressor", spread, trees, *ids)

    arguments = (trees, *(ids[f"enc_{name}"] for name in _IDS))
    flops = forward_flops(setup, shape[0] * shape[1], head=False)
    # No logits are computed: XLA leaves the head out of the arguments.
    base = {name: tree for name, tree in trees["base"].items() if name != "head"}
    kinds = _kinds({**trees, "base": base}) | {"batch": ids}
    return Program(function, arguments, kinds, flops, shape[0])


def search(setup: Setup) -> Program:
    """Candidates of `eval.batch` questions by their keys, among DOCUMENTS documents."""
    config, mesh = setup.config, setup.mesh
    M, D, K = config.memory_tokens, setup.model.d_model, config.search.key
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


PROGRAMS: dict[str, Callable[[Setup], Program]] = {
    "train": train,
    "prefill": prefill,
    "decode": decode,
    "compress": compress,
    "search": search,
}


def batch_shapes(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the config's stage as shapes (data/scp_rows.py, data/question_rows.py)."""
    config, data = setup.config, setup.config.data
    encoder, decoder = data.encoder_row or _document(config), data.decoder_row or DECODER
    B, N, M = config.train.batch_rows, config.places, config.memory_tokens
    dec = {f"dec_{name}": decoder for name in (*_IDS, "targets", "slots")}
    if config.stage == "scp":
        if data.pack and not data.encoder_row and not data.decoder_row:
            B *= EXAMPLES
        lengths = {f"enc_{name}": encoder for name in _IDS} | dec
        return _batch(setup, {name: (B, length) for name, length in lengths.items()})
    shapes: dict[str, tuple[int, ...]] = {name: (B, N) for name in ("doc_valid", "doc_gold")}
    if config.stage != "contrastive":
        shapes |= {name: (B, length) for name, length in dec.items()}
    if config.stage != "instruct":
        shapes |= {f"qry_{name}": (B, QUERY) for name in _IDS}
    dtypes = {"doc_teacher": jnp.float32}
    shapes["doc_teacher"] = (B, N)
    if data.memories and config.stage != "instruct":
        dtypes["memories"] = jnp.dtype(setup.model.dtype)
        shapes["memories"] = (B, N, M, setup.model.d_model)
    else:
        rows = -(-N // max(encoder // _document(config), 1))
        shapes |= {f"enc_{name}": (B, rows, encoder) for name in _IDS} | {"doc_first": (B, N)}
    return _batch(setup, shapes, dtypes)


def parameters(setup: Setup) -> int:
    """Weights of the base, embeddings included, scales of int8 not."""
    leaves = jax.tree.leaves_with_path(abstract_params(setup.model))
    int8 = setup.model.param_dtype == "int8"
    return sum(
        int(np.prod(x.shape))
        for path, x in leaves
        if not (int8 and path[-1].key == "scale" and "norm" not in path[-2].key)
    )


def train_flops(setup: Setup, batch: dict[str, Any]) -> float:
    """FLOPs of a step: 2 a parameter and token forward, 2 backward to the activations.

    The frozen base needs no gradient of its weights; what is trained counts nothing beside it. With
    `train.full` it does: 2 more. Documents that the frozen compressor reads are forward only.
    """
    config = setup.config
    trained = 6 if config.train.full else 4
    total = 0.0
    for side in ("enc", "qry", "dec"):
        if f"{side}_tokens" in batch:
            constant = side == "enc" and config.stage in ("e2e", "contrastive")
            tokens = int(np.prod(batch[f"{side}_tokens"].shape))
            total += (2 if constant else trained) * parameters(setup) * tokens
    return total


def forward_flops(setup: Setup, tokens: int, head: bool = True) -> float:
    """FLOPs of `tokens` forward; without the head where no logits are computed."""
    base = setup.trees["base"]
    unused = 0 if head or "head" not in base else int(np.prod(base["head"]["kernel"].shape))
    return 2.0 * (parameters(setup) - unused) * tokens


def _document(config: Config) -> int:
    return config.data.document_length + config.memory_tokens


def _batch(
    setup: Setup, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, Any] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    dtypes = dtypes or {}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtypes.get(name, jnp.int32))
        for name, shape in shapes.items()
    }
    return sharding.abstract(setup.mesh, "batch", batch)


def _frozen(config: Config, batch: dict[str, Any]) -> set[str]:
    """Trees that the step reads."""
    read = {"base", "memory", "added", *config.trained}
    return read | {"compressor"} if "enc_tokens" in batch else read


def _kinds(trees: clara.Trees) -> dict[str, Any]:
    rest = {k: v for k, v in trees.items() if k != "base"}
    return {"base": trees["base"], "adapters": rest}


def inference_shapes(setup: Setup) -> tuple[Any, Any, Any, Any]:
    """Trees, stop tokens, prompts and, after these are read, the state of decoding."""
    config, model = setup.config, setup.model
    trees = generate.needed(setup.trees, "generator")
    B, T, K, M = config.eval.batch, DECODER - NEW_TOKENS, config.select.k, config.memory_tokens
    T = config.data.decoder_row or T
    prompts = generate.PromptBatch(
        tokens_BT=jax.ShapeDtypeStruct((B, T), jnp.int32),
        lengths_B=jax.ShapeDtypeStruct((B,), jnp.int32),
        slots_BT=jax.ShapeDtypeStruct((B, T), jnp.int32),
        vectors_BSD=jax.ShapeDtypeStruct((B, K * M, model.d_model), jnp.float32),
    )
    prompts = sharding.abstract(setup.mesh, "prompts", prompts)
    cache = jax.eval_shape(lambda: Cache.create(model, B, T + NEW_TOKENS - 1))
    everywhere = sharding.replicated(setup.mesh)
    rows = sharding.batch_sharding(setup.mesh)
    state = generate.State(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
        tokens_BN=jax.ShapeDtypeStruct((B, NEW_TOKENS), jnp.int32, sharding=rows),
        positions_B=jax.ShapeDtypeStruct((B,), jnp.int32, sharding=rows),
        done_B=jax.ShapeDtypeStruct((B,), jnp.bool_, sharding=rows),
        cache=sharding.abstract(setup.mesh, "cache", cache),
    )
    stop_V = jax.ShapeDtypeStruct((model.vocab_size,), jnp.bool_, sharding=everywhere)
    return trees, stop_V, prompts, state
