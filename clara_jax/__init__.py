"""CLaRa in JAX: documents compressed into memory vectors, and answers read from them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clara_jax.inference.engine import Answer, Clara, load

__all__ = ["Answer", "Clara", "load"]


def __getattr__(name: str) -> Any:
    """Imports the engine, and JAX with it, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clara_jax.inference import engine

    return getattr(engine, name)
