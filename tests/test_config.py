"""Options: unknown and mistyped ones are errors, and every one of them does something."""

import ast
import dataclasses
import json
import pathlib
import re

import ml_collections
import pytest

from clara_jax import config as config_lib
from clara_jax import config_checks
from clara_jax.config import OPTIONS, Config, default, freeze, load, save
from clara_jax.errors import UserError
from clara_jax.models import attention, scores, topk

PACKAGE = pathlib.Path(config_lib.__file__).parent


def options(value=None, prefix="") -> dict[str, object]:
    """Dotted name and default of every option."""
    value = Config() if value is None else value
    found = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            found |= options(inner, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = inner
    return found


def limited(*to: config_checks.Allowed) -> list[str]:
    """Options whose values have one of these limits."""
    found = [name for name, option in OPTIONS.items() if set(to) & set(option.allowed)]
    assert found
    return found


def with_option(name: str, value: object) -> dict:
    tree = dataclasses.asdict(Config())
    *groups, last = name.split(".")
    inner = tree
    for group in groups:
        inner = inner[group]
    inner[last] = value
    return tree


def error_of(tree) -> str:
    with pytest.raises(UserError) as error:
        freeze(tree)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    return message


# --- Round trips ---------------------------------------------------------------------------------


def test_defaults_survive_json_and_configdict(tmp_path):
    assert freeze(default()) == Config()
    save(Config(), tmp_path / "config.json")
    assert load(tmp_path / "config.json") == Config()
    assert freeze(json.loads((tmp_path / "config.json").read_text())) == Config()


OTHER = {
    bool: lambda v: not v,
    int: lambda v: v * 2 + 2,
    float: lambda v: v / 2 + 0.01,
    str: lambda v: v + "x",
    tuple: lambda v: (*v, "x"),
}
CHOICES = {name: a.names for name, o in OPTIONS.items() for a in o.allowed if a.names}
VALID = {name: choices[-1] for name, choices in CHOICES.items()} | {
    "lora.targets": ("q", "v"),
    "model.attention": "splash",
    "model.remat": "q,gate",
    "train.only": "memory",
    "search.hops": 2,
    "search.alpha": 0.4,
    "data.rates": (16, 32),
    "eval.rate": 64,
    "mesh.fsdp": 4,
    "serve.port": 0,
    "prompts.date": "2020-02-03",
    "prompts.paraphrase_users": ("{docs} again",),
}


@pytest.mark.parametrize("name", options())
def test_every_option_can_be_changed_and_survives_json(tmp_path, name):
    value = options()[name]
    value = VALID[name] if name in VALID else OTHER[type(value)](value)
    config = freeze(with_option(name, value))
    assert options(config)[name] == value
    assert options(config) == options() | {name: value}
    save(config, tmp_path / "config.json")
    assert load(tmp_path / "config.json") == config


def test_missing_options_take_their_defaults():
    assert freeze({"train": {"steps": 7}}) == dataclasses.replace(
        Config(), train=dataclasses.replace(Config().train, steps=7)
    )


def test_choices_are_what_the_models_know():
    assert CHOICES["select.method"] == tuple(topk.METHODS)
    assert CHOICES["select.score"] == tuple(scores.KINDS)
    assert CHOICES["model.attention"] == ("auto", *attention.ATTENTIONS)


def test_integers_do_for_floats():
    rate = freeze({"optim": {"learning_rate": 1}}).optim.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


# --- Errors --------------------------------------------------------------------------------------


def test_configdict_refuses_unknown_options():
    with pytest.raises((KeyError, AttributeError)):
        default().train.step = 3


@pytest.mark.parametrize("group", ["", *(n + "." for n in dataclasses.asdict(Config()))])
def test_unknown_options_are_named(group):
    if group and not isinstance(dataclasses.asdict(Config())[group[:-1]], dict):
        assert "must be" in error_of({group[:-1]: {"no_such": 1}})
        return
    message = error_of(with_option(f"{group}no_such", 1))
    assert f"unknown option config.{group}no_such" in message and "known: " in message


WRONG = {bool: 1, int: "8", float: "0.1", str: 3, tuple: "a,b"}


@pytest.mark.parametrize("name", options())
def test_wrong_types_are_named(name):
    value = options()[name]
    assert f"config.{name} must be" in error_of(with_option(name, WRONG[type(value)]))
    if type(value) is int:
        assert f"config.{name} must be int" in error_of(with_option(name, True))
        assert f"config.{name} must be int" in error_of(with_option(name, 1.5))
    if type(value) is tuple:
        assert f"config.{name} must be" in error_of(with_option(name, [1.5]))
    assert f"config.{name} must be" in error_of(with_option(name, None))


def test_groups_must_be_groups():
    assert "config.train must be a group" in error_of({"train": 3})
    assert "config must be a group" in error_of([1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage", "sft"),
        ("model.dtype", "float16"),
        ("model.param_dtype", "int4"),
        ("model.remat", "q,x"),
        ("model.attention", "flash"),
        ("model.remat", "all"),
        ("data.split", "test"),
        ("optim.schedule", "linear"),
        ("memory.init", "zeros"),
        ("data.rate", 257),
        ("train.accumulate", 3),
        *((name, 0) for name in limited(config_checks.AT_LEAST_1)),
        *((name, type(OPTIONS[name].default)(-1)) for name in limited(config_checks.NOT_NEGATIVE)),
        *((name, value) for name in limited(config_checks.BELOW_1) for value in (-0.5, 1.0)),
        *((name, 1e7) for name in limited(config_checks.SCALE, config_checks.SCALE_OR_0)),
        ("optim.learning_rate", float("nan")),
        ("optim.weight_decay", float("inf")),
        ("optim.final_fraction", 1.5),
        ("synthesis.near_duplicates", 1.5),
        ("serve.port", 2**16),
        ("search.hops", 3),
        ("search.alpha", -0.5),
        ("seed", -1),
        ("seed", 2**32),
        ("prompts.qa_user", "no place"),
        ("prompts.qa_user", "{docs} {docs}"),
        ("prompts.qa_user", "{doc}"),
        ("prompts.reconstruct_user", "{docs} {question}"),
        ("prompts.answer_user", "{docs}"),
        ("prompts.paraphrase_users", ()),
        ("prompts.paraphrase_users", ("{docs}", "")),
        ("optim.clip", 0.0),
        ("optim.clip", float("nan")),
    ],
)
def test_impossible_values_are_named(name, value):
    assert f"config.{name}={value!r}" in error_of(with_option(name, value))


@pytest.mark.parametrize(
    ("name", "value"), [("targets", ["q", "head"]), ("rank", 0), ("dropout", 1.0)]
)
def test_impossible_adapters_are_named(name, value):
    message = error_of(with_option(f"lora.{name}", value))
    assert message.startswith("config.lora: ") and name in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "must be a group"),
        ('{"a": 1}', "config.a"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_memory_tokens():
    assert Config().memory_tokens == 16
    assert freeze(with_option("data.rate", 100)).memory_tokens == 2


# --- Use -----------------------------------------------------------------------------------------


def used_names() -> set[str]:
    """Names of attributes, and words of strings, that the package uses, not only checks."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path == pathlib.Path(config_checks.__file__):
            continue
        own = path == pathlib.Path(config_lib.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if own:  # declares them all; only what its properties make of them counts
                if re.fullmatch(r"self\.\w+\.\w+", ast.unparse(node)):
                    found.add(node.attr)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", node.value):
                    found.add(node.value.rpartition(".")[2])
    return found


def test_every_option_is_used():
    used = used_names()
    unused = [name for name in options() if name.split(".")[-1] not in used]
    assert not unused


def test_dictionary_and_configdict_freeze_alike():
    config = default()
    config.train.steps = 5
    assert isinstance(config, ml_collections.ConfigDict)
    assert freeze(config) == freeze(with_option("train.steps", 5))


def test_differences_are_named():
    other = freeze(with_option("data.rate", 8))
    assert config_lib.differences(Config(), other, ("seed", "data", "model")) == ["data.rate"]
    assert config_lib.differences(Config(), other, ("seed", "model")) == []


def test_a_config_file_that_is_damaged_is_told(tmp_path):
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match="not JSON"):
            load(tmp_path / "config.json")


def test_paths_that_exist_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    model = dataclasses.replace(Config().model, base="base", tokenizer="facts")
    found = config_lib.absolute(dataclasses.replace(Config(), model=model, init_from="owner/name"))
    assert found.model.base == str(tmp_path / "base")
    assert (found.model.tokenizer, found.init_from) == ("facts", "owner/name")
