"""Set-up: 8 CPU devices, exact matmuls, a compilation cache, the optional shared material."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: optimisation would take most of their time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def named():
    """Operations have their names of now: the cache may hold programs with earlier ones."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder `shared` beside the repository: golden numbers and real data; skips where absent."""
    path = pathlib.Path(__file__).parent.parent.parent / "shared"
    if not (path / "golden").is_dir():
        pytest.skip(
            f"{path} is absent: golden numbers and real data are not part of the repository"
        )
    return path
