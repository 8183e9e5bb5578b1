"""Model configuration: families are rows and flags here, never copied files.

Dimension letters, used in names, einsums and docstrings of the whole package:

    B batch rows      N candidate documents   K selected documents
    T tokens (query)  S tokens (key)          M memory tokens
    D model width     F mlp width             V vocabulary
    H query heads     G key/value heads       C head width
    L layers          R LoRA rank
"""

import dataclasses
import math
from typing import Any, Literal

LINEAR_NAMES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The `llama3` frequency scaling of Llama 3.1 and later."""

    factor: float = 8.0  # divides the frequencies of long wavelengths
    # wavelengths above `original_length / low_freq_factor` are fully scaled
    low_freq_factor: float = 1.0
    # wavelengths below `original_length / high_freq_factor` are left alone
    high_freq_factor: float = 4.0
    original_length: int = 8192  # context length (tokens) of the pretraining


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Divisors of the rotary frequencies that differ for short and long sequences (LongRoPE, Phi).

    A row takes the long ones if it has a position of `original_length` or more
    (models/layers.py: rotary_tables).
    """

    # divisors of rows up to `original_length`, one for each frequency
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]  # divisors of longer rows
    original_length: int  # context length (tokens) of the pretraining
    attention_factor: float  # what cosines and sines are multiplied by, in rows of any length

    @staticmethod
    def default_attention_factor(factor: float, original_length: int) -> float:
        """The published choice for a context length of `factor * original_length`."""
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))


def is_remat(remat: str) -> bool:
    """Whether this is `none`, `dots`, `full`, or names of linear layers with commas between."""
    return remat in ("none", "dots", "full") or set(remat.split(",")) <= set(LINEAR_NAMES)


_SIZES = ("vocab_size", "d_model", "d_ff", "n_heads", "n_kv_heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one decoder, and how it is computed.

    `dtype` is the dtype of activations and matmuls; norms, softmax, rotary angles and losses are
    float32 whatever it says. `param_dtype` is the dtype in which the base weights are held; with
    `int8` its matrices are (models/quantize.py), and the rest in bfloat16.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    family: str = "llama"  # Hugging Face's model_type: names in checkpoints, nothing computed
    qkv_bias: bool = False  # of the q, k and v projections (Qwen2)
    qk_norm: bool = False  # an RMSNorm of each head of q and k before they are rotated (Qwen3)
    rotary_dim: int | None = None  # so much of each head is rotated, from its start; None: all
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | LongRope | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    sliding_window: int | None = None  # a token sees itself and the window - 1 tokens before it
    context_length: int | None = None  # most tokens of a text; reported to others, not enforced
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"  # what is computed twice: see clara_jax/config.py
    attention: Literal["xla", "splash", "cudnn"] = "xla"  # models/attention.py

    def __post_init__(self) -> None:
        for name, most in (*dict.fromkeys(_SIZES, 2**24).items(), ("n_layers", 10**4)):
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"{name} {getattr(self, name)} is not from 1 to {most}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if not is_remat(self.remat):
            raise ValueError(
                f"remat {self.remat!r} is neither none, dots nor full, nor some of "
                f"{', '.join(LINEAR_NAMES)} with commas between"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings need pairs")
        if self.rotated % 2 or not 0 < self.rotated <= self.head_dim:
            raise ValueError(f"rotary_dim {self.rotary_dim} is no even part of {self.head_dim}")
        if isinstance(self.rope_scaling, LongRope):
            for name in ("short_factor", "long_factor"):
                if (count := len(getattr(self.rope_scaling, name))) != self.rotated // 2:
                    raise ValueError(f"{name} has {count} numbers, not {self.rotated // 2}")

    @property
    def rotated(self) -> int:
        """How much of each head is rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def held_dtype(self) -> str:
        """Dtype of the base's embeddings and norms, and of its matrices unless they are int8."""
        return "bfloat16" if self.param_dtype == "int8" else self.param_dtype


def _inherited(default: Any) -> Any:
    """A field that no shape of an adapter gives away: who starts from one must know it."""
    return dataclasses.field(default=default, metadata={"inherited": True})


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: y = W x + alpha / rank * B (A dropout(x)).

    `targets` is any subset of LINEAR_NAMES; the paper and the release adapt all of them.
    """

    rank: int = _inherited(16)
    alpha: float = _inherited(32.0)
    dropout: float = 0.1
    targets: tuple[str, ...] = _inherited(LINEAR_NAMES)

    def __post_init__(self) -> None:
        unknown = set(self.targets) - set(LINEAR_NAMES)
        if unknown:
            raise ValueError(f"unknown LoRA targets {sorted(unknown)}; known: {LINEAR_NAMES}")
        if not 1 <= self.rank <= 2**16 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA rank {self.rank} must be from 1 to {2**16}, dropout {self.dropout} in [0, 1)"
            )

    @property
    def scale(self) -> float:
        """What the low-rank term is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ExtraTokens:
    """Ids beyond the base vocabulary, in the release's order; the tokenizer never holds them.

    `AE` is reserved because released checkpoints have a row for it; nothing uses it.
    """

    vocab_size: int
    memory_tokens: int

    @property
    def memory(self) -> tuple[int, ...]:
        """Ids of <MEM0> … <MEM(M-1)>."""
        return tuple(range(self.vocab_size, self.vocab_size + self.memory_tokens))

    def is_memory(self, tokens: Any) -> Any:
        """Which of an array of ids are memory tokens, bool in the array's shape."""
        return (tokens >= self.memory[0]) & (tokens <= self.memory[-1])

    @property
    def enc(self) -> int:
        """Id that opens a text to be compressed."""
        return self.vocab_size + self.memory_tokens + 1

    @property
    def sep(self) -> int:
        """Id that follows each document's memory slots in a prompt."""
        return self.vocab_size + self.memory_tokens + 2


# Of Phi-4-mini; its short factors are all 1.
_PHI4_LONG_FACTORS = """
    1.0 1.118320672 1.250641126 1.398617824 1.564103225 1.74916897 1.956131817 2.187582649
    2.446418898 2.735880826 3.059592084 3.421605075 3.826451687 4.279200023 4.785517845 5.351743533
    5.984965424 6.693110555 7.485043894 8.370679318 9.36110372 10.4687158 11.70738129 13.09260651
    14.64173252 16.37415215 18.31155283 20.47818807 22.90118105 25.61086418 28.64115884 32.03 32.1
    32.13 32.23 32.6 32.61 32.64 32.66 32.7 32.71 32.93 32.97 33.28 33.49 33.5 44.16 47.77"""
_PHI4_ROPE = LongRope(
    short_factor=(1.0,) * 48,
    long_factor=tuple(map(float, _PHI4_LONG_FACTORS.split())),
    original_length=4096,
    attention_factor=LongRope.default_attention_factor(32, 4096),
)

# What the models of a family share.
_SMOLLM2 = {"rope_theta": 100_000.0, "tied_embeddings": True, "context_length": 8192}
_SMOLLM2_LARGE = {**_SMOLLM2, "rope_theta": 130_000.0}
_LLAMA3 = {"rope_theta": 500_000.0, "context_length": 8192}
_LLAMA3_1 = {**_LLAMA3, "rope_scaling": RopeScaling(), "context_length": 131072}
_QWEN = {"rope_theta": 1_000_000.0, "norm_eps": 1e-6}
_QWEN2 = {**_QWEN, "family": "qwen2", "qkv_bias": True, "context_length": 32768}
_QWEN3 = {**_QWEN, "family": "qwen3", "qk_norm": True, "context_length": 40960}
_MISTRAL = {"family": "mistral", "rope_theta": 1_000_000.0, "context_length": 32768}
_PHI3 = {"family": "phi3", "sliding_window": 2047, "context_length": 4096}
_PHI4 = {
    "family": "phi3",
    "rotary_dim": 96,
    "tied_embeddings": True,
    "sliding_window": 262144,
    "rope_scaling": _PHI4_ROPE,
    "context_length": 131072,
}
_TIED = {"tied_embeddings": True}

# Published architectures by name, for random initialisation and for compiling without weights:
# vocabulary, D, F, L, H, G, C, and the rest.
# A base checkpoint's own config always takes precedence over this table.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(512, 128, 384, 4, 4, 2, 32, **_TIED),
    "smollm2_135m": ModelConfig(49152, 576, 1536, 30, 9, 3, 64, **_SMOLLM2),
    "smollm2_360m": ModelConfig(49152, 960, 2560, 32, 15, 5, 64, **_SMOLLM2),
    "smollm2_1_7b": ModelConfig(49152, 2048, 8192, 24, 32, 32, 64, **_SMOLLM2_LARGE),
    "llama2_7b": ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, context_length=4096),
    "llama2_13b": ModelConfig(32000, 5120, 13824, 40, 40, 40, 128, context_length=4096),
    "llama2_70b": ModelConfig(32000, 8192, 28672, 80, 64, 8, 128, context_length=4096),
    "llama3_8b": ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, **_LLAMA3),
    "llama3_1_8b": ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, **_LLAMA3_1),
    "mistral_7b": ModelConfig(32000, 4096, 14336, 32, 32, 8, 128, **_MISTRAL),
    "qwen2_5_0_5b": ModelConfig(151936, 896, 4864, 24, 14, 2, 64, **_QWEN2, **_TIED),
    "qwen2_5_7b": ModelConfig(152064, 3584, 18944, 28, 28, 4, 128, **_QWEN2),
    "qwen3_0_6b": ModelConfig(151936, 1024, 3072, 28, 16, 8, 128, **_QWEN3, **_TIED),
    "qwen3_4b": ModelConfig(151936, 2560, 9728, 36, 32, 8, 128, **_QWEN3, **_TIED),
    "qwen3_8b": ModelConfig(151936, 4096, 12288, 36, 32, 8, 128, **_QWEN3),
    "phi3_mini": ModelConfig(32064, 3072, 8192, 32, 32, 32, 96, **_PHI3),  # the one of 4k tokens
    "phi4_mini": ModelConfig(200064, 3072, 8192, 32, 24, 8, 128, **_PHI4),
}
