"""CLaRa in JAX: documents compressed into memory vectors, and answers read from them."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from clara_jax.api import Answer, Clara, load
    from clara_jax.corpus.store import Store, open_store

_MODULES = {
    "Answer": "api",
    "Clara": "api",
    "load": "api",
    "Store": "corpus.store",
    "open_store": "corpus.store",
}
__all__ = ["Answer", "Clara", "Store", "__version__", "load", "open_store"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and JAX with it, when it is first used."""
    if name == "__version__":
        return importlib.metadata.version("clara-jax")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"clara_jax.{_MODULES[name]}"), name)
