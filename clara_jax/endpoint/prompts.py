"""Prompts to a model: text files with places to fill, and the shape of the replies they ask for.

A file holds the system's message, a line of `===`, and the user's. Callers say which prompts there
are and in which folder.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from clara_jax import files
from clara_jax.config import Synthesis
from clara_jax.errors import UserError

_PLACE = re.compile(r"\{([a-z_]+)\}")
_BLANK = ("…", "...")  # where a prompt's form is to be filled
_BETWEEN = re.compile(r"^===$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a prompt must hold, each at least once, and the shape of its reply.

    A shape is made of str, int, bool, tuples of words of which one is to be chosen, `[shape]` for
    a list, and dictionaries of shapes.
    """

    places: tuple[str, ...]
    shape: dict[str, Any]


class Prompts:
    """The prompts of a run.

    Args:
        options: `prompts` names the folder, empty for the package's own; `demonstrations` the file
            of worked examples; `language` what to write in.
        kinds: the prompts by name.
        own: folder of the package's own.

    Raises:
        UserError: a file is missing, or lacks a place, or has one that nothing fills.
    """

    def __init__(self, options: Synthesis, kinds: Mapping[str, Kind], own: pathlib.Path):
        folder = pathlib.Path(options.prompts) if options.prompts else own
        if not folder.is_dir():
            raise UserError(f"config.synthesis.prompts={options.prompts!r}: no such folder")
        for path in (folder / f"{name}.txt" for name in kinds):
            if not path.is_file():
                raise UserError(
                    f"{path}: no such prompt; a folder of your own holds "
                    f"{', '.join(f'{name}.txt' for name in kinds)} (copy {own} and change it)"
                )
        self._texts = {name: _load(folder / f"{name}.txt", kind) for name, kind in kinds.items()}
        shown = _read(options.demonstrations) if options.demonstrations else ""
        self._always = {"demonstrations": shown.strip(), "language": options.language}
        self.version = folder.resolve().name
        content = repr((sorted(self._texts.items()), sorted(self._always.items())))
        self.hash = hashlib.sha256(content.encode()).hexdigest()

    def messages(self, name: str, **places: str) -> list[dict[str, str]]:
        """The messages of one request, with the places filled."""
        values = self._always | places
        system, user = (
            _PLACE.sub(lambda match: values[match[1]], text).strip() for text in self._texts[name]
        )
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def numbered(texts: list[str]) -> str:
    """A numbered list, one text a line."""
    return "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(texts, 1)) or "none"


def conform(value: Any, shape: Any, where: str = "reply") -> Any:
    """The value in the shape that was asked for; forgives what cannot be misunderstood.

    Raises:
        ValueError: it has another shape, with the place where.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        first = next(iter(shape))
        found = {}
        for key, inner in shape.items():
            # What only explains, or lists more, may be left out; what is asked for may not.
            if key not in value and key != first and inner in ([str], str):
                found[key] = [] if inner == [str] else ""
            elif key not in value:
                raise ValueError(f"{where} has no {key!r}")
            else:
                found[key] = conform(value[key], inner, key)
        return found
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        return [conform(item, shape[0], f"an item of {where}") for item in value]
    if isinstance(shape, tuple):
        word = value.strip(" .").lower() if isinstance(value, str) else value
        if word not in shape:
            raise ValueError(f"{where} is {value!r:.40}, not one of {', '.join(shape)}")
        return word
    if shape is str and isinstance(value, dict) and len(value) == 1:  # {"question": text}
        (value,) = value.values()
    convert = _CONVERT[shape]
    try:
        return convert(value)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise ValueError(f"{where} is {value!r:.40}, not {shape.__name__}") from e


def schema(shape: Any) -> dict[str, Any]:
    """The shape as JSON schema, for servers that can hold a model to one."""
    if isinstance(shape, dict):
        return {
            "type": "object",
            "properties": {key: schema(inner) for key, inner in shape.items()},
            "required": list(shape),
            "additionalProperties": False,
        }
    if isinstance(shape, list):
        return {"type": "array", "items": schema(shape[0])}
    if isinstance(shape, tuple):
        return {"type": "string", "enum": list(shape)}
    return {"type": {str: "string", int: "integer", bool: "boolean"}[shape]}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    if value in _BLANK:  # small models repeat the form that they should fill
        raise ValueError
    text = str(value)
    # Halves of surrogate pairs are valid JSON and no text; a record with one could not be read.
    return text.encode("utf-8", "ignore").decode().strip()


def _truth(value: Any) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    return value if isinstance(value, bool) else words[value.strip().lower()]


def _number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return int(value.strip(" .") if isinstance(value, str) else value)


_CONVERT = {str: _text, bool: _truth, int: _number}


def _read(path: str | pathlib.Path) -> str:
    try:
        return files.read(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def _load(path: pathlib.Path, kind: Kind) -> tuple[str, str]:
    text = _read(path)
    found = set(_PLACE.findall(text))
    for missing in sorted(set(kind.places) - found):
        raise UserError(f"{path}: the place {{{missing}}} is missing")
    for unknown in sorted(found - set(kind.places)):
        raise UserError(f"{path}: nothing fills {{{unknown}}}; places are {', '.join(kind.places)}")
    parts = _BETWEEN.split(text)
    if len(parts) != 2:
        raise UserError(f"{path}: must hold the system's text, one line ===, and the user's text")
    return parts[0], parts[1]
