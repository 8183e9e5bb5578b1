"""From a folder to a model that is ready for use."""

import os

import jax

from clara_jax import files, sharding
from clara_jax.config import Config, Data, Model, Select
from clara_jax.data.tokenizer import load_tokenizer
from clara_jax.errors import UserError
from clara_jax.interop import clara_release
from clara_jax.models.config import ExtraTokens
from clara_jax.models.decoder import Decoder
from clara_jax.training import setup as setup_lib
from clara_jax.training.setup import Setup


def load_setup(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    param_dtype: str | None = None,
) -> Setup:
    """Loads a trained model and its parts; see `engine.load`."""
    for name, value in (("path", path), ("base", base or "")):
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"load: {name} must be a path, not {value!r}")
    if clara_release.is_release(path):
        if base is None:
            wanted = clara_release.read_settings(path).base
            raise UserError(
                f"{path}: holds no base model; give base=…, or --base=… on the command line "
                f"(it was {wanted!r})"
            )
        return _from_release(
            path, Model(base=os.fspath(base), param_dtype=param_dtype or "float32")
        )
    if not (files.path(path) / "config.json").exists():
        raise UserError(f"{path}: neither a workdir nor a CLaRa release: no config.json there")
    base = None if base is None else os.fspath(base)
    return setup_lib.restore(os.fspath(path), base=base, param_dtype=param_dtype)


def _from_release(path: str | os.PathLike[str], how: Model) -> Setup:
    settings = clara_release.read_settings(path)
    config = Config(
        stage=settings.stage,
        model=how,
        lora=settings.lora,
        data=Data(document_length=settings.document_length, rate=settings.rate),
        select=Select(k=settings.top_k),
    )
    mesh = sharding.make_mesh(config.mesh)
    model = setup_lib.model_config(config, sharding.layout(mesh).platform)
    release = clara_release.read(path, model)
    trained = {**release.adapters, "memory": release.memory, "added": release.added}
    trees = jax.device_put(trained, sharding.replicated(mesh))
    trees["base"] = setup_lib.load_base(config, model, mesh)
    return Setup(
        config=config,
        mesh=mesh,
        decoder=Decoder(model, config.lora, sharding.layout(mesh)),
        tokenizer=load_tokenizer(how.base),
        extra=ExtraTokens(model.vocab_size, settings.memory_tokens),
        trees=trees,
    )
