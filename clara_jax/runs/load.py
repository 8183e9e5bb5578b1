"""From a folder to a model that is ready for use."""

import os
from collections.abc import Sequence

from clara_jax import files, sharding
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.interop import clara_release
from clara_jax.runs import release
from clara_jax.runs import setup as setup_lib
from clara_jax.runs import weights as weights_lib
from clara_jax.runs.setup import Loaded


def load_setup(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    param_dtype: str | None = None,
    parts: Sequence[str] = (),
) -> Loaded:
    """Loads a trained model and its parts; see `api.load`.

    Args:
        path: of the model.
        base: of the base model.
        param_dtype: of its weights.
        parts: the only ones of the base's that are wanted (`weights.load_base`).
    """
    for name, value in (("path", path), ("base", base or "")):
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"load: {name} must be a path, not {value!r}")
    base = None if base is None else os.fspath(base)
    if clara_release.is_release(path):
        return _from_release(path, base, param_dtype, parts)
    if base_lib.is_model(path):
        raise UserError(
            f"{path}: a plain Hugging Face model, such as --format=merged writes; load what it was "
            "exported from"
        )
    if not (files.path(path) / "config.json").exists():
        raise UserError(f"{path}: neither a workdir nor a CLaRa release: no config.json there")
    return setup_lib.restore(os.fspath(path), parts=parts, base=base, param_dtype=param_dtype)


def _from_release(
    path: str | os.PathLike[str], base: str | None, param_dtype: str | None, parts: Sequence[str]
) -> Loaded:
    imported = release.read(path, base, param_dtype)
    config = imported.config
    mesh = sharding.make_mesh(config.mesh)
    architecture = weights_lib.model_config(config, sharding.layout(mesh).platform)
    model = setup_lib.assemble(config, mesh, architecture, imported.tokenizer)
    base = weights_lib.load_base(config, architecture, mesh, parts=parts)
    return Loaded(model, {**weights_lib.put(mesh, imported.release.trees), "base": base})
