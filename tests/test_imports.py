"""Imports go one way: models, then data and interop, then training and inference, and so on up."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "clara_jax"

# A module imports from its own layer or a lower one.
LAYERS = (
    ("errors", "files", "models", "progress"),
    ("config", "config_checks", "distributed", "sharding", "data", "interop"),
    ("training", "inference"),
    ("evaluation", "synthesis", "serving", "aot"),
    ("main", "command_flags", "command_line", ""),  # the package's own names, `import clara_jax`
)
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}

# All that models/ may use: no files, flags, configs, tokenizers or data.
MODELS_MAY_IMPORT = {"collections", "dataclasses", "functools", "math", "typing", "jax", "flax",
                     "numpy"}  # fmt: skip
NEVER = {"torch", "tensorflow", "torchvision", "tensorflow_text"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def group(module: str) -> str:
    """`training` for clara_jax.training.losses, `` for clara_jax itself."""
    return [*module.split("."), ""][1]


def imports(path: pathlib.Path) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                # `from clara_jax import sharding` is the module, not a name of the package.
                found.add(full if node.module == "clara_jax" else node.module)
    return found


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_belongs_to_a_layer():
    assert {group(module) for module in FILES} <= set(LAYER_OF)
    assert len(FILES) > 20


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    own = LAYER_OF[group(module)]
    for name in imports(FILES[module]):
        if name.split(".")[0] == "clara_jax":
            assert LAYER_OF[group(name)] <= own, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in FILES if group(m) == "models"])
def test_models_know_nothing_but_arrays(module):
    for name in imports(FILES[module]):
        if name.startswith("clara_jax"):
            assert group(name) == "models", f"{module} imports {name}"
        else:
            assert name.split(".")[0] in MODELS_MAY_IMPORT, f"{module} imports {name}"
    calls = ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
    assert not [n for n in calls if isinstance(n, ast.Name) and n.id in ("open", "print")]


@pytest.mark.parametrize("module", FILES)
def test_package_needs_no_other_framework(module):
    assert not {name.split(".")[0] for name in imports(FILES[module])} & NEVER
