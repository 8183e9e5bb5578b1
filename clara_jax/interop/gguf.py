"""Base models and tokenizers in llama.cpp's GGUF files, through the package `gguf`, without torch.

Quantised weights are expanded to `param_dtype` as they are read; only the rows that a device shard
needs are touched, so no second copy of the model exists at any time.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers

from clara_jax.errors import UserError
from clara_jax.models.config import ModelConfig, RopeScaling
from clara_jax.models.layers import rope_frequencies

# llama.cpp also stores Mistral and SmolLM2 under this name.
_ARCHITECTURE = "llama"

# Divisors of the rotary frequencies, which stand for the llama3 scaling.
_ROPE_FACTORS = "rope_freqs.weight"

_DIGITS = pre_tokenizers.Digits(individual_digits=True)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    """Splits as GPT-4 and its heirs do, with so many digits together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


# What splits a text before it is a text of bytes, by the name that llama.cpp gives it; `True` also
# has GPT-2's split.
_PRE_TOKENIZERS: dict[str, tuple[pre_tokenizers.PreTokenizer | None, bool]] = {
    "smollm": (_DIGITS, True),
    "llama-bpe": (_split(r"\p{N}{1,3}"), False),
    "qwen2": (_split(r"\p{N}"), False),
    "gpt-2": (None, True),
}
_WAY_OUT = "set config.model.tokenizer to a directory with its tokenizer.json"
_BLANK = "▁"  # stands for one in SentencePiece's tokens

_MOST_ITEMS = 2**22  # of an array: more than any vocabulary has
_DAMAGED = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
)

_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Reads the architecture from a GGUF file's metadata.

    Raises:
        UserError: not a GGUF file, or an architecture that the decoder does not implement.
    """
    metadata, tensors = _open(path)
    architecture = metadata("general.architecture")
    if architecture != _ARCHITECTURE:
        raise UserError(
            f"{path}: architecture {architecture!r} is not supported; supported: {_ARCHITECTURE}"
        )

    def get(key: str, default: Any = None) -> Any:
        return metadata(f"{_ARCHITECTURE}.{key}", default)

    try:
        d_model, n_heads = get("embedding_length"), get("attention.head_count")
        head_dim = get("attention.key_length", d_model // n_heads)
        theta = get("rope.freq_base", 10_000.0)
        if get("rope.dimension_count", head_dim) != head_dim:
            raise UserError(
                f"{path}: rotary embedding of only a part of each head is not supported"
            )
        if get("rope.scaling.type", "none") != "none":
            raise UserError(f"{path}: rope scaling {get('rope.scaling.type')!r} is not supported")
        return ModelConfig(
            vocab_size=int(tensors["token_embd.weight"].shape[-1]),
            d_model=d_model,
            d_ff=get("feed_forward_length"),
            n_layers=get("block_count"),
            n_heads=n_heads,
            n_kv_heads=get("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=_rope_scaling(path, tensors.get(_ROPE_FACTORS), head_dim, theta),
            norm_eps=get("attention.layer_norm_rms_epsilon", 1e-5),
            tied_embeddings="output.weight" not in tensors,
            sliding_window=get("attention.sliding_window"),
            context_length=get("context_length"),
        )
    except KeyError as e:
        raise UserError(f"{path}: tensor {e} is missing") from e
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{path}: incomplete or inconsistent metadata ({e})") from e


def load_tokenizer(path: str | os.PathLike[str]) -> transformers.PreTrainedTokenizerFast:
    """Builds the tokenizer from a GGUF file's metadata; it adds no special tokens to a text.

    Raises:
        UserError: a kind of tokenizer that is not supported, or incomplete metadata.
    """
    metadata, _ = _open(path)
    model, pre = metadata("tokenizer.ggml.model"), metadata("tokenizer.ggml.pre")
    if model not in ("gpt2", "llama"):
        raise UserError(
            f"{path}: tokenizer model {model!r} is not supported, only gpt2 and llama; {_WAY_OUT}"
        )
    if model == "gpt2" and pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"{path}: pre-tokenizer {pre!r} is not supported, only "
            f"{', '.join(_PRE_TOKENIZERS)}; {_WAY_OUT}"
        )
    tokens, merges = metadata("tokenizer.ggml.tokens"), metadata("tokenizer.ggml.merges")
    types, scores = metadata("tokenizer.ggml.token_type"), metadata("tokenizer.ggml.scores")
    needed = merges if model == "gpt2" else scores and len(scores) == len(tokens or ())
    if not tokens or not needed or not types or len(types) != len(tokens):
        raise UserError(f"{path}: tokens, token types, merges or scores of it are missing")
    roles = {role: metadata(key) for role, key in _ROLES.items() if metadata(key) is not None}
    try:
        if model == "gpt2":
            tokenizer = _byte_level(tokens, merges, *_PRE_TOKENIZERS[pre])
        else:
            has_blank = metadata("tokenizer.ggml.add_space_prefix", True)
            tokenizer = _sentence_piece(tokens, scores, roles.get("unk_token"), has_blank)
        roles = {role: tokens[i] for role, i in roles.items()}
    except Exception as e:  # the library raises no narrower class
        raise UserError(f"{path}: inconsistent tokenizer metadata ({e})") from e
    for token, kind in zip(tokens, types, strict=True):
        if kind == gguf.TokenType.CONTROL:
            tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False)])
        elif kind == gguf.TokenType.USER_DEFINED:
            tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=metadata(f"{_ARCHITECTURE}.context_length"),
        **roles,
    )


def _byte_level(
    tokens: list[str],
    merges: list[str],
    split: pre_tokenizers.PreTokenizer | None,
    use_regex: bool,
) -> tokenizers.Tokenizer:
    """A tokenizer of GPT-2's kind."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, whatever its merges.
    whole = not use_regex
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole)
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*filter(None, [split]), level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(
    tokens: list[str], scores: list[float], unknown: int | None, has_blank: bool
) -> tokenizers.Tokenizer:
    """A tokenizer of SentencePiece's kind (Llama 2, Mistral), whose merges follow from its scores.

    Args:
        tokens: all of them.
        scores: of the tokens: the best possible pair is joined first.
        unknown: id of the unknown token.
        has_blank: whether a blank is put before a text.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [
        (-score, ids[left], ids[right], left, right)
        for token, score in zip(tokens, scores, strict=True)
        for left, right in ((token[:i], token[i:]) for i in range(1, len(token)))
        if left in ids and right in ids
    ]
    model = tokenizers.models.BPE(
        vocab=ids,
        merges=[pair[3:] for pair in sorted(pairs)],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    blanks = normalizers.Replace(" ", _BLANK)
    before = [normalizers.Prepend(_BLANK)] if has_blank else []
    tokenizer.normalizer = normalizers.Sequence([*before, blanks])
    parts = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * has_blank)
    return tokenizer


class Tensors:
    """The tensors of a GGUF file (`weights.Checkpoint`)."""

    format = "gguf"
    is_bfloat16 = False  # llama.cpp's types are expanded to float32

    def __init__(self, path: str | os.PathLike[str], config: ModelConfig) -> None:
        self.where = str(path)
        _, self._tensors = _open(path)
        self._tensors.pop(_ROPE_FACTORS, None)  # read_config has them
        # GGUF lists the innermost axis first.
        self.shapes = {n: tuple(map(int, t.shape[::-1])) for n, t in self._tensors.items()}
        self._head_dim = config.head_dim
        kinds = {tensor.tensor_type.name for tensor in self._tensors.values()}
        self.kind = " ".join(sorted(kinds - {"F32", "F64", "BF16"}))

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Expands tensor[index] to float32."""
        tensor, rows = self._tensors[name], index[0]
        data = tensor.data
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            rows = _rotary_rows(data.shape[0], self._head_dim)[rows]
        try:
            values = gguf.quants.dequantize(data[rows], tensor.tensor_type)
        except NotImplementedError as e:
            raise UserError(
                f"{self.where}: tensor {name} has type {tensor.tensor_type.name}, which the "
                "package gguf cannot expand"
            ) from e
        return values[(slice(None), *index[1:])]


def _rotary_rows(n_rows: int, head_dim: int) -> np.ndarray:
    """Places of the rows of q or k: llama.cpp rotates neighbouring pairs, we (c, c + C/2)."""
    return np.arange(n_rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _rope_scaling(
    path: str | os.PathLike[str], factors: Any, head_dim: int, theta: float
) -> RopeScaling | None:
    """The llama3 scaling whose divisors the file holds in place of its settings."""
    if factors is None:
        return None
    scaling = RopeScaling(factor=float(np.max(factors.data)))
    plain, scaled = rope_frequencies(head_dim, theta), rope_frequencies(head_dim, theta, scaling)
    if factors.data.shape != plain.shape or not np.allclose(
        plain / scaled, factors.data, rtol=1e-4
    ):
        raise UserError(f"{path}: {_ROPE_FACTORS} is not the scaling of Llama 3.1 and later")
    return scaling


class _Reader(gguf.GGUFReader):
    """A reader that refuses arrays which cannot be in the file, and would be read without end."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            length = int(self._get(orig_offs + 4, np.uint64)[0])
            if length > min(_MOST_ITEMS, len(self.data) - orig_offs):
                raise ValueError(f"an array of {length} items")
        return super()._get_field_parts(orig_offs, raw_type)


@functools.lru_cache(maxsize=1)
def _reader(path: str, modified: int) -> gguf.GGUFReader:
    """Parses a file; kept, for that takes seconds and config, weights and tokenizer all need it."""
    del modified  # only tells a new file of the same name from the old one
    return _Reader(path)


def _open(path: str | os.PathLike[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Gives a look-up of metadata by key (with a default) and the tensors by name."""
    try:
        reader = _reader(str(path), os.stat(path).st_mtime_ns)
    except OSError as e:
        raise UserError(f"{path}: cannot be opened ({e.strerror})") from e
    except _DAMAGED as e:
        raise UserError(f"{path}: not a readable GGUF file ({e})") from e

    def metadata(key: str, default: Any = None) -> Any:
        field = reader.fields.get(key)
        if field is None:
            return default
        try:
            value = field.contents()
        except ValueError as e:  # such as bytes that are not UTF-8
            raise UserError(f"{path}: the metadata {key} is not readable ({e})") from e
        # Shortest decimal of a float32, so that 1e-5 reads as 1e-5.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    return metadata, {tensor.name: tensor for tensor in reader.tensors}
