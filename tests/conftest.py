"""Set-up: 8 CPU devices, exact matmuls, a compilation cache, the optional shared material."""

import importlib.metadata
import os
import pathlib

# All of it in the environment, so that the processes that tests start have it too; they may append
# to XLA_FLAGS, of which the last word counts.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: optimisation would take most of their time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The newer emitters of fusions, the only ones later, take as long again as those before them.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

# What tests of several packages use.
pytest_plugins = ("tests.fixtures.endpoint", "tests.fixtures.models", "tests.fixtures.server")

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also what shows once more what others do")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: shows in another form what a faster test shows too")


def pytest_collection_modifyitems(config, items):
    """Leaves slow tests to whoever asks for them: without them a run stays under 15 minutes."""
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


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
