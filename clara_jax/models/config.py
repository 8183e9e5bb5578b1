"""Model configuration: families are rows and flags here, never copied files.

Dimension letters, used in names, einsums and docstrings of the whole package:

    B batch rows      N candidate documents   K selected documents
    T tokens (query)  S tokens (key)          M memory tokens
    D model width     F mlp width             V vocabulary
    H query heads     G key/value heads       C head width
    L layers          R LoRA rank
"""

import dataclasses
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
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    sliding_window: int | None = None  # a token sees itself and the window - 1 tokens before it
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

    @property
    def held_dtype(self) -> str:
        """Dtype of the base's embeddings and norms, and of its matrices unless they are int8."""
        return "bfloat16" if self.param_dtype == "int8" else self.param_dtype


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: y = W x + alpha / rank * B (A dropout(x)).

    `targets` is any subset of LINEAR_NAMES; the paper and the release adapt all of them.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = LINEAR_NAMES

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


# Published architectures by name, for random initialisation and for compiling without weights.
# A base checkpoint's own config always takes precedence over this table.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        vocab_size=512, d_model=128, d_ff=384, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32,
        tied_embeddings=True,
    ),
    "smollm2_135m": ModelConfig(
        vocab_size=49152, d_model=576, d_ff=1536, n_layers=30, n_heads=9, n_kv_heads=3,
        head_dim=64, rope_theta=100_000.0, tied_embeddings=True,
    ),
    "llama2_7b": ModelConfig(
        vocab_size=32000, d_model=4096, d_ff=11008, n_layers=32, n_heads=32, n_kv_heads=32,
        head_dim=128,
    ),
    "llama2_70b": ModelConfig(
        vocab_size=32000, d_model=8192, d_ff=28672, n_layers=80, n_heads=64, n_kv_heads=8,
        head_dim=128,
    ),
    "llama3_8b": ModelConfig(
        vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, rope_theta=500_000.0,
    ),
    "llama3_1_8b": ModelConfig(
        vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, rope_theta=500_000.0, rope_scaling=RopeScaling(),
    ),
    "mistral_7b": ModelConfig(
        vocab_size=32000, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, rope_theta=1_000_000.0,
    ),
}  # fmt: skip
