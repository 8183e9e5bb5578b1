"""What an option of `config.py` is: the values that it may have, and what depends on it."""

import dataclasses
import datetime
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from clara_jax.errors import UserError
from clara_jax.models.config import LINEAR_NAMES, PRESETS, is_remat
from clara_jax.stages import STAGES

# What depends on an option.
METHOD = "method"  # what a run makes; a run that resumes must keep it
DRAW = "draw"  # the same, but another value is another draw of the same method, as the seed is
SCHEDULE = "schedule"  # the weights, and yet it may change when a run resumes
NOTHING = "nothing"  # neither weights nor batches


class Allowed(NamedTuple):
    """Values that an option may have."""

    accepts: Callable[[Any], bool]  # whether a value is one of them
    says: str  # what an error says of a value that is not
    names: tuple[str, ...] = ()  # all of them, where they are names


AT_LEAST_1 = Allowed(lambda x: x >= 1, "must be at least 1")
# Of what is held in memory: more is a slip, which would end in no memory or in no end.
SIZE = Allowed(lambda x: 1 <= x <= 10**6, "must be from 1 to 1000000")
SIZE_OR_0 = Allowed(lambda x: 0 <= x <= 10**6, "must be from 0 to 1000000")
VOCABULARY = Allowed(lambda x: 0 <= x <= 2**24, f"must be from 0 to {2**24}")
PROCESSES = Allowed(lambda x: 0 <= x <= 1024, "must be from 0 to 1024")
NOT_NEGATIVE = Allowed(lambda x: 0 <= x < math.inf, "must be a number, not negative")
BELOW_1 = Allowed(lambda x: 0 <= x < 1, "must be at least 0 and below 1")
SHARE = Allowed(lambda x: 0 <= x <= 1, "must be from 0 to 1")
# Beyond these bounds float32 would be zero or infinite somewhere.
SCALE = Allowed(lambda x: 1e-6 <= x <= 1e6, "must be from 1e-6 to 1e6")
SCALE_OR_0 = Allowed(lambda x: x == 0 or 1e-6 <= x <= 1e6, "must be 0, or from 1e-6 to 1e6")
ALPHA = Allowed(lambda x: x == -1 or 0 <= x <= 1, "must be from 0 to 1, or -1")
SEED = Allowed(lambda x: 0 <= x < 2**32, "must be from 0 to 2**32 - 1")
PORT = Allowed(lambda x: 0 <= x < 2**16, f"must be from 0 to {2**16 - 1}")  # 0 is a free one
PRESET = Allowed(lambda x: x in PRESETS, f"is not one of {', '.join(PRESETS)}", tuple(PRESETS))
ONE_OR_TWO = Allowed(lambda x: x in (1, 2), "must be 1 or 2")
RATES = Allowed(
    lambda x: all(rate >= 1 for rate in x) and len(set(x)) == len(x),
    "must be different rates, each at least 1",
)
REMAT = Allowed(is_remat, f"is not one of none, dots, full, nor some of {','.join(LINEAR_NAMES)}")
DAY = Allowed(lambda x: _is_day(x), "must be a day, as 2024-07-26")
FOLDER = Allowed(
    lambda x: "://" not in x,
    "must be a local folder: vectors are read from it at any position",
)


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class Option(NamedTuple):
    """One option."""

    default: Any  # its value where nothing else is said
    allowed: tuple[Allowed, ...]  # what its value must be, besides its type
    ties: str  # what depends on it: METHOD, DRAW, SCHEDULE or NOTHING
    inherited: bool  # a run that starts from another must have the same value


def option(default: Any, *allowed: Allowed, ties: str = "", inherited: bool = False) -> Any:
    """A field of an options class; an empty `ties` is that of its group."""
    metadata = {"allowed": allowed, "ties": ties, "inherited": inherited}
    return dataclasses.field(default=default, metadata=metadata)


def choice(*names: str, ties: str = "", inherited: bool = False) -> Any:
    """An option that takes one of some names, by default the first."""
    allowed = Allowed(lambda value: value in names, f"is not one of {', '.join(names)}", names)
    return option(names[0], allowed, ties=ties, inherited=inherited)


def options(cls: Any, prefix: str = "", ties: str = METHOD) -> Iterator[tuple[str, Option]]:
    """Dotted name and description of every option of a class and of the groups in it.

    Nothing that a run makes depends on any option of a group that is tied to NOTHING.
    """
    for field in dataclasses.fields(cls):
        own = field.metadata.get("ties") or ties
        own = NOTHING if ties == NOTHING else own
        if dataclasses.is_dataclass(field.type):
            yield from options(field.type, f"{prefix}{field.name}.", own)
        else:
            inherited = field.metadata.get("inherited", False)
            allowed = field.metadata.get("allowed", ())
            yield prefix + field.name, Option(field.default, allowed, own, inherited)


def build(cls: type, tree: Any, name: str) -> Any:
    """An options class from a tree of values, each checked for its type.

    Args:
        cls: the class.
        tree: values by name; those that are left out are the defaults.
        name: what errors call it.

    Raises:
        UserError: an unknown key or a value of the wrong type, with its dotted name.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a group of options, not {tree!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise UserError(f"unknown option {name}.{unknown[0]}; known: {', '.join(hints)}")
    values = {}
    for key, value in tree.items():
        values[key] = _convert(hints[key], value, f"{name}.{key}")
    try:
        return cls(**values)
    except ValueError as e:
        raise UserError(f"{name}: {e}") from e


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, name) for v in value)
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{name} must be {hint.__name__}, not {value!r}")
    return value


def get(config: Any, dotted: str) -> Any:
    """The option of a dotted name, such as `data.rate`."""
    value: Any = config
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


def validate(config: Any, known: Mapping[str, Option]) -> None:
    """Checks a frozen `config.Config`.

    Args:
        config: the config.
        known: its options.

    Raises:
        UserError: an option has a value that cannot be meant; it names option and value.
    """
    for name, one in known.items():
        for allowed in one.allowed:
            if not allowed.accepts(get(config, name)):
                raise UserError(f"config.{name}={get(config, name)!r} {allowed.says}")
    _validate_prompts(config.prompts)
    if config.train.full and config.model.param_dtype == "int8":
        raise UserError(
            "config.train.full trains the base, which config.model.param_dtype=int8 cannot hold; "
            "set float32 or bfloat16"
        )
    if config.model.attention == "cudnn" and config.model.dtype != "bfloat16":
        raise UserError("config.model.attention=cudnn needs config.model.dtype=bfloat16")
    if config.train.full and STAGES[config.stage].ranks:
        raise UserError(
            f"config.train.full is for scp and instruct: in {config.stage} the compressor stays as "
            "it is, and it is the base"
        )
    every = dataclasses.replace(config, train=dataclasses.replace(config.train, only="")).trained
    for name in filter(None, map(str.strip, config.train.only.split(","))):
        if name not in every:
            raise UserError(
                f"config.train.only={config.train.only!r}: {config.stage} trains "
                f"{', '.join(every)}, not {name!r}"
            )
    _validate_memory(config)
    if config.train.batch_rows % config.train.accumulate:
        raise UserError(
            f"config.train.batch_rows={config.train.batch_rows} does not divide by "
            f"config.train.accumulate={config.train.accumulate}"
        )


def _validate_memory(config: Any) -> None:
    """Memories must have vectors, of which coarser ones can be made."""
    length, M = config.data.document_length, config.memory_tokens
    if M < 1:
        raise UserError(
            f"config.data.rate={config.rate} leaves no memory vector for documents of "
            f"config.data.document_length={length}"
        )
    for name, rates in (("data.rates", config.data.rates), ("eval.rate", (config.eval.rate,))):
        for rate in filter(None, rates):
            count = config.vectors_at(rate)
            if rate < config.rate or not count or M % count:
                possible = ", ".join(str(length // n) for n in range(M, 0, -1) if M % n == 0)
                raise UserError(
                    f"config.{name}: memories of {M} vectors cannot be put together to "
                    f"{count} for a rate of {rate}; possible: {possible}"
                )
    if config.pools:
        for name, value in (("sees", "memories"), ("positions", "spread")):
            if getattr(config.memory, name) == value:
                raise UserError(
                    f"config.memory.{name}={value} is about memory tokens, of which there are none "
                    "with config.memory.kind=pool"
                )


def _validate_prompts(prompts: Any) -> None:
    """User turns must hold their places, each once; else slots and vectors would not match."""
    places = {
        "answer_user": ["docs", "question"],
        "qa_user": ["docs"],
        "paraphrase_users": ["docs"],
        "reconstruct_user": ["docs"],
        "continue_user": ["docs"],
    }
    for name, wanted in places.items():
        value = getattr(prompts, name)
        texts = (value,) if isinstance(value, str) else value
        if not texts or any(sorted(re.findall(r"\{(\w+)\}", text)) != wanted for text in texts):
            marks = " and ".join(f"{{{place}}}" for place in wanted)
            raise UserError(
                f"config.prompts.{name}={value!r} must hold {marks} once and no other place"
            )
