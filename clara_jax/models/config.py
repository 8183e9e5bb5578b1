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
    """The `llama3` frequency scaling of Llama 3.1 and later.

    Attributes:
        factor: divides the frequencies of long wavelengths.
        low_freq_factor: wavelengths above `original_length / low_freq_factor` are fully scaled.
        high_freq_factor: wavelengths below `original_length / high_freq_factor` are left alone.
        original_length: context length (tokens) of the pretraining.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Divisors of the rotary frequencies that differ for short and long sequences (LongRoPE, Phi).

    A row takes the long ones if it has a position of `original_length` or more
    (models/layers.py: rotary_tables).

    Attributes:
        short_factor: divisors of rows up to `original_length`, one for each frequency.
        long_factor: divisors of longer rows.
        original_length: context length (tokens) of the pretraining.
        attention_factor: what cosines and sines are multiplied by, in rows of any length.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float

    @staticmethod
    def default_attention_factor(factor: float, original_length: int) -> float:
        """The published choice for a context length of `factor * original_length`."""
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))


def is_remat(remat: str) -> bool:
    """Whether this is `none`, `dots`, `full`, or names of linear layers with commas between."""
    return remat in ("none", "dots", "full") or set(remat.split(",")) <= set(LINEAR_NAMES)


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
    context_length: int | None = None  # most tokens of a text; only told to others, not enforced
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"  # what is computed twice: see clara_jax/config.py
    attention: Literal["xla", "splash", "cudnn"] = "xla"  # models/attention.py

    def __post_init__(self) -> None:
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
                if (found := len(getattr(self.rope_scaling, name))) != self.rotated // 2:
                    raise ValueError(f"{name} has {found} numbers, not {self.rotated // 2}")

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
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA rank {self.rank} must be >= 1, dropout {self.dropout} in [0, 1)"
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
_PHI4_LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip

# Published architectures by name, for random initialisation and for compiling without weights.
# A base checkpoint's own config always takes precedence over this table.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        vocab_size=512, d_model=128, d_ff=384, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32,
        tied_embeddings=True,
    ),
    "smollm2_135m": ModelConfig(
        vocab_size=49152, d_model=576, d_ff=1536, n_layers=30, n_heads=9, n_kv_heads=3,
        head_dim=64, rope_theta=100_000.0, tied_embeddings=True, context_length=8192,
    ),
    "smollm2_360m": ModelConfig(
        vocab_size=49152, d_model=960, d_ff=2560, n_layers=32, n_heads=15, n_kv_heads=5,
        head_dim=64, rope_theta=100_000.0, tied_embeddings=True, context_length=8192,
    ),
    "smollm2_1_7b": ModelConfig(
        vocab_size=49152, d_model=2048, d_ff=8192, n_layers=24, n_heads=32, n_kv_heads=32,
        head_dim=64, rope_theta=130_000.0, tied_embeddings=True, context_length=8192,
    ),
    "llama2_7b": ModelConfig(
        vocab_size=32000, d_model=4096, d_ff=11008, n_layers=32, n_heads=32, n_kv_heads=32,
        head_dim=128, context_length=4096,
    ),
    "llama2_13b": ModelConfig(
        vocab_size=32000, d_model=5120, d_ff=13824, n_layers=40, n_heads=40, n_kv_heads=40,
        head_dim=128, context_length=4096,
    ),
    "llama2_70b": ModelConfig(
        vocab_size=32000, d_model=8192, d_ff=28672, n_layers=80, n_heads=64, n_kv_heads=8,
        head_dim=128, context_length=4096,
    ),
    "llama3_8b": ModelConfig(
        vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, rope_theta=500_000.0, context_length=8192,
    ),
    "llama3_1_8b": ModelConfig(
        vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, rope_theta=500_000.0, rope_scaling=RopeScaling(), context_length=131072,
    ),
    "mistral_7b": ModelConfig(
        family="mistral", vocab_size=32000, d_model=4096, d_ff=14336, n_layers=32, n_heads=32,
        n_kv_heads=8, head_dim=128, rope_theta=1_000_000.0, context_length=32768,
    ),
    "qwen2_5_0_5b": ModelConfig(
        family="qwen2", qkv_bias=True, vocab_size=151936, d_model=896, d_ff=4864, n_layers=24,
        n_heads=14, n_kv_heads=2, head_dim=64, rope_theta=1_000_000.0, norm_eps=1e-6,
        tied_embeddings=True, context_length=32768,
    ),
    "qwen2_5_7b": ModelConfig(
        family="qwen2", qkv_bias=True, vocab_size=152064, d_model=3584, d_ff=18944, n_layers=28,
        n_heads=28, n_kv_heads=4, head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6,
        context_length=32768,
    ),
    "qwen3_0_6b": ModelConfig(
        family="qwen3", qk_norm=True, vocab_size=151936, d_model=1024, d_ff=3072, n_layers=28,
        n_heads=16, n_kv_heads=8, head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6,
        tied_embeddings=True, context_length=40960,
    ),
    "qwen3_4b": ModelConfig(
        family="qwen3", qk_norm=True, vocab_size=151936, d_model=2560, d_ff=9728, n_layers=36,
        n_heads=32, n_kv_heads=8, head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6,
        tied_embeddings=True, context_length=40960,
    ),
    "qwen3_8b": ModelConfig(
        family="qwen3", qk_norm=True, vocab_size=151936, d_model=4096, d_ff=12288, n_layers=36,
        n_heads=32, n_kv_heads=8, head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6,
        context_length=40960,
    ),
    "phi3_mini": ModelConfig(  # the one of 4k tokens
        family="phi3", vocab_size=32064, d_model=3072, d_ff=8192, n_layers=32, n_heads=32,
        n_kv_heads=32, head_dim=96, sliding_window=2047, context_length=4096,
    ),
    "phi4_mini": ModelConfig(
        family="phi3", vocab_size=200064, d_model=3072, d_ff=8192, n_layers=32, n_heads=24,
        n_kv_heads=8, head_dim=128, rotary_dim=96, tied_embeddings=True, sliding_window=262144,
        rope_scaling=LongRope(
            (1.0,) * 48, _PHI4_LONG_FACTOR, 4096, LongRope.default_attention_factor(32, 4096)
        ),
        context_length=131072,
    ),
}  # fmt: skip
