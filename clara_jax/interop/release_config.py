"""`config.json` of checkpoints in the layout of the PyTorch release, and of PISCO's, both ways."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from clara_jax.errors import UserError
from clara_jax.interop.adapters import MOST_RANK

CONFIG = "config.json"

# Our name of each training stage, and the adapters that it leaves behind.
STAGES = {
    "stage1": ("scp", ("compressor", "generator")),
    "stage1_2": ("instruct", ("compressor", "generator")),
    "stage2": ("e2e", ("compressor", "reasoner", "generator")),
    "stage2_pretrain_retrieval": ("contrastive", ("compressor", "reasoner")),
}

# Whose checkpoints these are, by model_type, with what their config.json leaves out. PISCO's class
# is called COCOM; it was trained on teachers' answers from five documents, our stage instruct.
_KINDS: dict[str, dict[str, Any]] = {
    "CLaRa": {"generation_top_k": 1},
    "COCOM": {"generation_top_k": 5, "training_stage": "stage1_2"},
}

# What the release's config class holds, at the values that are supported.
_TEMPLATE = json.loads(pathlib.Path(__file__).with_name("release_config.json").read_text("utf-8"))

# Those that change the computation. Both classes write all of them. `compr_model_name` would be a
# compressor of another architecture, as OSCAR's.
_ONLY = (
    "lora",
    "different_mem_tokens",
    "sep",
    "compr_model_name",
    "kbtc_training",
    "training_form",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The part of a checkpoint's config.json that matters here."""

    stage: str  # the last stage it was trained in, by our name
    adapters: tuple[str, ...]  # names of those that a checkpoint of this stage must have
    document_length: int  # longest document in tokens
    rate: int  # compression rate
    top_k: int  # documents in a prompt
    rank: int  # of its adapters; their alpha is 2 rank, their dropout 0.1
    base: str  # what it calls its base model, often a path of its authors' machine

    @property
    def memory_tokens(self) -> int:
        """M, memory vectors of one document."""
        return self.document_length // self.rate


def read_settings(directory: str | os.PathLike[str]) -> Settings:
    """Reads a release's config.json.

    Raises:
        UserError: it is missing, incomplete, or asks for what is not supported.
    """
    path = pathlib.Path(directory) / CONFIG
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file")  # a pipe would never be read
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = data["model_type"]
        if kind not in _KINDS:
            raise UserError(
                f"{path}: model_type {kind!r} is not supported; supported: {', '.join(_KINDS)}"
            )
        data = {**_KINDS[kind], **data}
        for key in _ONLY:
            if data[key] != (value := _TEMPLATE[key]):
                raise UserError(f"{path}: {key}={data[key]!r} is not supported, only {value!r}")
        stage = data["training_stage"]
        if stage not in STAGES:
            raise UserError(
                f"{path}: training_stage {stage!r} is not supported; supported: {', '.join(STAGES)}"
            )
        length, rate = _positive(data, "doc_max_length", path), _positive(data, "compr_rate", path)
        if length < rate:
            raise UserError(f"{path}: doc_max_length={length}, compr_rate={rate} leave no memory")
        return Settings(
            stage=STAGES[stage][0],
            adapters=STAGES[stage][1],
            document_length=length,
            rate=rate,
            top_k=_positive(data, "generation_top_k", path),
            rank=_positive(data, "lora_r", path, MOST_RANK),
            base=str(data.get("decoder_model_name") or ""),
        )
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a checkpoint of CLaRa or PISCO?") from e
    except KeyError as e:
        raise UserError(f"{path}: {e} is missing; is this a checkpoint of CLaRa or PISCO?") from e
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a CLaRa config ({e})") from e


def read_chat_template(directory: str | os.PathLike[str]) -> str | None:
    """The chat template that a checkpoint has with it, as published ones do, or None.

    Its adapters were trained with it; that of the base may have changed since.

    Raises:
        UserError: a file of it cannot be read.
    """
    directory = pathlib.Path(directory)
    path = directory / "chat_template.jinja"
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8") or None
        if (path := directory / "tokenizer_config.json").is_file():
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, list):  # several by name, as transformers allows
                template = {t["name"]: t["template"] for t in template}.get("default")
            return template if isinstance(template, str) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    return None


def theirs(stage: str) -> str:
    """The release's name of one of our stages."""
    return next(name for name, (ours, _) in STAGES.items() if ours == stage)


def to_json(settings: Settings) -> dict[str, Any]:
    """What the release's `config.json` says of a checkpoint; it names the base as `settings` do."""
    own = {
        "training_stage": theirs(settings.stage),
        "doc_max_length": settings.document_length,
        "compr_rate": settings.rate,
        "generation_top_k": settings.top_k,
        "lora_r": settings.rank,
        "lora_r_compressor": settings.rank,
        "decoder_model_name": settings.base,
        "compr_base_model_name": settings.base,
    }
    return dict(sorted({**_TEMPLATE, **own}.items()))


def _positive(data: dict[str, Any], key: str, path: pathlib.Path, most: int = 2**31 - 1) -> int:
    value = data[key]
    if type(value) is not int or not 0 < value <= most:
        raise UserError(f"{path}: {key}={value!r} is not a whole number from 1 to {most}")
    return value
