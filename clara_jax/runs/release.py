"""A checkpoint of the PyTorch release, read for a base."""

import dataclasses
import os

from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Model, Select
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.interop import clara_release, release_config
from clara_jax.interop.clara_release import Release
from clara_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint with all that is needed to use it on its base.

    Attributes:
        config: as of a run that made it.
        model: the base's architecture.
        tokenizer: the base's.
        release: the checkpoint's trees.
    """

    config: Config
    model: ModelConfig
    tokenizer: Tokenizer
    release: Release


def read(directory: str | os.PathLike[str], base: str | None, dtype: str | None = None) -> Imported:
    """Reads a checkpoint for a base.

    Args:
        directory: of the checkpoint.
        base: directory, hub id or .gguf file of the base model.
        dtype: of activations and weights; by default the base's own, float32 or bfloat16.

    Raises:
        UserError: there is no base, or the checkpoint is broken or not of this base.
    """
    settings = release_config.read_settings(directory)
    if not base:
        like = " or ".join(clara_release.looks_like(directory))
        raise UserError(
            f"{directory}: holds no base model; give its directory, hub id or .gguf file as "
            f"base=…, or --base=… on the command line; config.json calls it {settings.base!r}"
            + (f", and it has the shapes of {like}" if like else "")
        )
    model = base_lib.read_config(base)
    weights = base_lib.open_tensors(base, model)
    template = release_config.read_chat_template(directory)
    tokenizer = load_tokenizer(base, template, where=directory if template else None)
    try:
        release = clara_release.read(directory, model, weights, tokenizer.size)
    except UserError as e:
        like = " or ".join(clara_release.looks_like(directory))
        raise UserError(f"{e} (the checkpoint has the shapes of {like})" if like else e) from e
    dtype = dtype or ("bfloat16" if weights.is_bfloat16 else "float32")
    config = Config(
        stage=settings.stage,
        model=Model(
            base=os.fspath(base),
            tokenizer=os.fspath(directory) if template else "",  # the base's with that template
            dtype=dtype,
            param_dtype=dtype,
        ),
        lora=release.lora,
        data=Data(document_length=settings.document_length, rate=settings.rate),
        select=Select(k=settings.top_k),
    )
    return Imported(config_lib.freeze(dataclasses.asdict(config)), model, tokenizer, release)
