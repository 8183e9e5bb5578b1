"""Imports go one way: a package imports from the rows below its own, never beside it or above."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "clara_jax"

# One row a layer; none of a row imports another of the same row, nor anything above it.
LAYERS = (
    ("text", "models", "errors", "progress", "stages"),
    ("files", "distributed", "config_checks"),
    ("config", "plotting", "ledger", "checksums"),
    ("interop", "sharding", "config_help"),
    ("data", "command_line"),
    ("runs", "endpoint"),
    ("inference", "synthesis"),
    ("training", "corpus"),
    ("serving", "aot", "api", "exchange"),
    ("evaluation", "ask"),
    ("main", ""),  # the package's own names, `import clara_jax`
    ("cli",),
    ("configs", "benchmarks"),
)
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}

# All that models/ may use: no files, flags, configs, tokenizers or data.
MODELS_MAY_IMPORT = {"collections", "dataclasses", "functools", "math", "typing", "jax", "flax",
                     "numpy"}  # fmt: skip
NEVER = {"torch", "tensorflow", "torchvision", "tensorflow_text"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(module: str) -> str:
    """`training` for clara_jax.training.losses, `` for clara_jax, `configs` for configs.scp."""
    parts = [*module.split("."), ""]
    return parts[1] if parts[0] == "clara_jax" else parts[0]


def imports(path: pathlib.Path) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from clara_jax import sharding` is the module, not a name of the package.
            found |= {module_of(f"{node.module}.{alias.name}") for alias in node.names}
    return found


FILES = {
    module_name(path): path
    for folder in (PACKAGE, ROOT / "configs", ROOT / "benchmarks")
    for path in sorted(folder.rglob("*.py"))
}


def module_of(name: str) -> str:
    """The module that a full name is, or is of."""
    return name if name in FILES else name.rpartition(".")[0] or name


def ours(module: str) -> list[str]:
    """What a module imports of these files."""
    return [name for name in imports(FILES[module]) if name in FILES]


def test_every_module_belongs_to_a_layer():
    assert {package(module) for module in FILES} == set(LAYER_OF)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    for name in ours(module):
        same = package(name) == package(module)
        assert same or LAYER_OF[package(name)] < LAYER_OF[package(module)], f"imports {name}"


def test_no_circles():
    """Modules can be put in an order in which each imports earlier ones alone."""
    left = {module: set(ours(module)) for module in FILES}
    while ready := [module for module, needs in left.items() if not needs & set(left)]:
        for module in ready:
            del left[module]
    assert not left


@pytest.mark.parametrize("module", [m for m in FILES if package(m) == "models"])
def test_models_know_nothing_but_arrays(module):
    for name in imports(FILES[module]):
        if name.startswith("clara_jax"):
            assert package(name) == "models", f"{module} imports {name}"
        else:
            assert name.split(".")[0] in MODELS_MAY_IMPORT, f"{module} imports {name}"
    calls = ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
    assert not [n for n in calls if isinstance(n, ast.Name) and n.id in ("open", "print")]


@pytest.mark.parametrize("module", FILES)
def test_package_needs_no_other_framework(module):
    assert not {name.split(".")[0] for name in imports(FILES[module])} & NEVER


@pytest.mark.parametrize("name", ["ask", "api", "serving.run", "corpus.compress"])
def test_asking_and_serving_need_no_pipeline_of_training_data(name):
    """Neither TFDS nor Grain nor Optax: they take long to import, and fail in ways of their own."""
    reached, todo = set(), [f"clara_jax.{name}"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += ours(module)
    used = {found.partition(".")[0] for module in reached for found in imports(FILES[module])}
    assert "jax" in used and not used & {"tensorflow_datasets", "grain", "optax"}
