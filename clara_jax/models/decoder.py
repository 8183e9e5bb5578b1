"""One decoder for all families: scanned layers, optional recomputation, optional KV cache."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from clara_jax.models.config import LINEAR_NAMES, LoraConfig, ModelConfig
from clara_jax.models.layers import EMPTY, MLP, Attention, RMSNorm, over_last, rotary_tables
from clara_jax.models.layout import Layout
from clara_jax.models.quantize import quantize_params


def _kept(remat: str) -> tuple[str, ...]:
    """Names of the values that the backward pass finds, beside the inputs of layers.

    Of a linear layer this is the sum of base and adapter, not the two products it is made of.
    """
    named = {"full": (), "dots": (*LINEAR_NAMES, "dropout_mask")}
    return named[remat] if remat in named else tuple(remat.split(","))


class Cache(flax.struct.PyTreeNode):
    """Keys and values of the tokens so far, all layers in one array that is updated in place."""

    k: jax.Array  # [L, B, G, S, C] keys after rotation, in the order in which attention reads them
    v: jax.Array  # [L, B, G, S, C] values
    positions_BS: jax.Array  # int32 position of the token in each slot, EMPTY where there is none
    # int32 scalar, slots used so far, the same for all rows; shorter rows have EMPTY slots inside
    length: jax.Array

    @classmethod
    def create(cls, config: ModelConfig, batch: int, slots: int) -> "Cache":
        """An empty cache for `batch` rows of at most `slots` tokens, in the activations' dtype."""
        shape = (config.n_layers, batch, config.n_kv_heads, slots, config.head_dim)
        dtype = jnp.dtype(config.dtype)
        return cls(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            positions_BS=jnp.full((batch, slots), EMPTY, jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        """Most tokens of a row."""
        return self.positions_BS.shape[1]

    def grow(self, slots: int) -> "Cache":
        """The same with `slots` more slots."""
        at_end = ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0))
        return self.replace(
            k=jnp.pad(self.k, at_end),
            v=jnp.pad(self.v, at_end),
            positions_BS=jnp.pad(self.positions_BS, ((0, 0), (0, slots)), constant_values=EMPTY),
        )

    def extend(self, positions_BT: jax.Array) -> "Cache":
        """Enters the positions of T new tokens; `write` then fills their slots layer by layer."""
        positions_BS = jax.lax.dynamic_update_slice(
            self.positions_BS, positions_BT.astype(jnp.int32), (0, self.length)
        )
        return self.replace(positions_BS=positions_BS, length=self.length + positions_BT.shape[1])

    def write(self, layer: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array) -> "Cache":
        """Writes the newest T tokens of one layer."""
        start = (layer, 0, 0, self.length - k_BTGC.shape[1], 0)
        return self.replace(
            k=jax.lax.dynamic_update_slice(self.k, k_BTGC.swapaxes(1, 2)[None], start),
            v=jax.lax.dynamic_update_slice(self.v, v_BTGC.swapaxes(1, 2)[None], start),
        )

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, G, C] of one layer."""
        return (
            jax.lax.dynamic_index_in_dim(self.k, layer, keepdims=False).swapaxes(1, 2),
            jax.lax.dynamic_index_in_dim(self.v, layer, keepdims=False).swapaxes(1, 2),
        )


class Layer(nn.Module):
    """One transformer layer, as the body of a scan: the carry is (x_BTD, cache)."""

    config: ModelConfig
    lora: LoraConfig
    layout: Layout
    in_order: bool = True  # no token sees what follows it

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        layer: jax.Array,
        cos: jax.Array,
        sin: jax.Array,
        mask_BTS: jax.Array,
        segments_BT: jax.Array,
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        """Applies attention and MLP, each after a norm and with a residual connection."""
        c = self.config
        x_BTD, cache = carry
        y_BTD = RMSNorm(c.norm_eps, c.held_dtype, name="attention_norm")(x_BTD)
        y_BTD, cache = Attention(c, self.lora, self.layout, self.in_order, name="attention")(
            y_BTD, cos, sin, mask_BTS, segments_BT, cache, layer
        )
        x_BTD = x_BTD + y_BTD
        y_BTD = RMSNorm(c.norm_eps, c.held_dtype, name="mlp_norm")(x_BTD)
        x_BTD = x_BTD + MLP(c, self.lora, self.layout, name="mlp")(y_BTD)
        return (self.layout.constrain(x_BTD, "batch", None, None), cache), None


def row_mask(
    config: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    both_BT: jax.Array | None = None,
    keys_BS: jax.Array | None = None,
) -> jax.Array:
    """Which keys each token sees, bool [B, T, S].

    Args:
        config: its window is used.
        positions_BT: int32, of the tokens.
        segments_BT: as of `Decoder`.
        both_BT: as of `Decoder`.
        keys_BS: int32, positions of the keys in a cache; None: the tokens themselves.
    """
    if keys_BS is None:
        keys_BS, order_T = positions_BT, jnp.arange(positions_BT.shape[1])
        mask_BTS = (order_T[:, None] >= order_T[None])[None]
        if both_BT is not None:
            mask_BTS |= both_BT[:, :, None] & both_BT[:, None]
    else:
        mask_BTS = positions_BT[:, :, None] >= keys_BS[:, None]
    mask_BTS &= (keys_BS != EMPTY)[:, None]
    if segments_BT is not None:
        mask_BTS &= segments_BT[:, :, None] == segments_BT[:, None, :]
    if config.sliding_window is not None:
        distance_BTS = positions_BT[:, :, None] - keys_BS[:, None, :]
        mask_BTS &= distance_BTS < config.sliding_window
        if both_BT is not None:
            mask_BTS &= -distance_BTS < config.sliding_window
    return mask_BTS


class Decoder(nn.Module):
    """Embeddings in, hidden states after the final norm out; the head is `head_logits`.

    The base weights are the `params` collection, one adapter is the `lora` collection:

        hidden_BTD, _ = decoder.apply({"params": base, "lora": adapter}, x_BTD, positions_BT, ...)

    Without a `lora` collection it is the plain base model and costs no more than that. A `dropout`
    generator switches the adapter's dropout on.
    """

    config: ModelConfig
    lora: LoraConfig = LoraConfig()
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        both_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the layers.

        Args:
            x_BTD: input embeddings in the activations' dtype.
            positions_BT: int32, position of each token in its own sequence, for rotary embeddings
                and the window. Who sees whom depends on the order in the row, or with a cache on
                the positions, which must grow along a row; its slots may be in any order.
            segments_BT: int32, packed sequences of a row: tokens see only their own segment, and 0
                is padding. None: every row is one sequence. Not used with a cache.
            cache: keys and values of the tokens before these; EMPTY positions mark padding. One
                with T slots must be empty: it is filled, and these tokens attend to themselves.
                With LongRope no row may cross its length between calls (layers.py: crosses).
            both_BT: bool, tokens that see each other both ways, within their segment and window.
                None: nobody sees what follows. Not used with a cache.

        Returns:
            Hidden states [B, T, D] after the final norm, and the cache with these tokens added.
        """
        c = self.config
        self._head_params()
        if cache is not None:
            cache = cache.extend(positions_BT)
        keys_BS = None if cache is None else cache.positions_BS
        segments = segments_BT
        if segments is None:  # the padding of prompts is a segment of its own
            own_BS = positions_BT if keys_BS is None else keys_BS
            segments = (own_BS != EMPTY).astype(jnp.int32)
        mask_BTS = row_mask(c, positions_BT, segments_BT, both_BT, keys_BS)
        cos, sin = rotary_tables(c, positions_BT)

        layer = Layer
        if c.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*_kept(c.remat))
            layer = nn.remat(Layer, policy=policy, prevent_cse=False)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * 4),
            length=c.n_layers,
        )(c, self.lora, self.layout, both_BT is None, name="layers")
        x_BTD = self.layout.constrain(x_BTD, "batch", None, None)
        (x_BTD, cache), _ = layers(
            (x_BTD, cache), jnp.arange(c.n_layers), cos, sin, mask_BTS, segments
        )
        return RMSNorm(c.norm_eps, c.held_dtype, name="norm")(x_BTD), cache

    def _head_params(self) -> None:
        """Declares embedding and head, which pure functions below use."""
        c = self.config
        dtype = jnp.dtype(c.held_dtype)
        _Leaf("embedding", (c.vocab_size, c.d_model), c.d_model, dtype, name="embed")()
        if not c.tied_embeddings:
            _Leaf("kernel", (c.d_model, c.vocab_size), c.d_model, dtype, name="head")()


class _Leaf(nn.Module):
    """A parameter in a scope of its own; `width` scales its initial values."""

    leaf: str
    shape: tuple[int, ...]
    width: int
    dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(self.width**-0.5)
        return self.param(self.leaf, init, self.shape, self.dtype)


def init_params(config: ModelConfig, rng: jax.Array) -> Any:
    """Random base weights, the tree `{"embed", "layers", "norm"[, "head"]}`."""
    x_BTD = jnp.zeros((1, 1, config.d_model), jnp.dtype(config.dtype))
    int8 = config.param_dtype == "int8"
    dtype = "float32" if int8 else config.param_dtype  # int8 is what float32 would be, rounded
    whole = dataclasses.replace(config, attention="xla", param_dtype=dtype)
    params = Decoder(whole).init(rng, x_BTD, jnp.zeros((1, 1), jnp.int32))["params"]
    return quantize_params(params) if int8 else params


@functools.cache  # tracing it takes long, and all that make weights or adapters ask
def abstract_params(config: ModelConfig) -> Any:
    """Shapes and dtypes of the base weights, without computing them; one tree for all callers."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def embed(config: ModelConfig, params: Any, tokens: jax.Array) -> jax.Array:
    """Input embeddings [..., D] of base tokens [...], in the activations' dtype."""
    return params["embed"]["embedding"][tokens].astype(jnp.dtype(config.dtype))


def head_logits(
    config: ModelConfig, params: Any, hidden: jax.Array, added_head: jax.Array | None = None
) -> jax.Array:
    """Logits [..., V] in float32 of hidden states [..., D].

    `added_head` [D, X] are columns for tokens beyond the base vocabulary, which only checkpoints of
    the release have; they make it [..., V + X].
    """
    scale_V = None
    if config.tied_embeddings:
        kernel, contract = params["embed"]["embedding"], 1
    else:
        kernel, contract = params["head"]["kernel"], 0
        scale_V = params["head"].get("scale")

    def score(kernel: jax.Array, contract: int) -> jax.Array:
        kernel = kernel.astype(hidden.dtype)
        if hidden.ndim == 2 and contract == 1:
            # Decoding reads the whole table for a few rows. In this order XLA on CPUs needs two
            # thirds of the time; without the barrier it would turn product and transpose round.
            axes = (((1,), (1,)), ((), ()))
            logits = jax.lax.dot_general(kernel, hidden, axes, preferred_element_type=jnp.float32)
            return jax.lax.optimization_barrier(logits).T
        axes = (((hidden.ndim - 1,), (contract,)), ((), ()))
        return jax.lax.dot_general(hidden, kernel, axes, preferred_element_type=jnp.float32)

    logits = score(kernel, contract)
    if scale_V is not None:
        logits *= over_last(scale_V, logits)
    if added_head is None:
        return logits
    return jnp.concatenate([logits, score(added_head, 0)], axis=-1)
