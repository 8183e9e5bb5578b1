"""What may be given to a call of the public interface, checked where it comes from outside."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.data.records import is_unicode
from clara_jax.errors import UserError
from clara_jax.runs.setup import Model

# Texts; or memories [n, M, D], in one array or one each.
Documents = Sequence[str] | np.ndarray | jax.Array | Sequence[np.ndarray | jax.Array]

_ARRAY = np.ndarray | jax.Array

MOST = 10**6  # tokens or documents that a call may ask for


def texts(what: str, value: Any) -> list[str]:
    """The texts.

    Raises:
        UserError: not a list of texts.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f"{what} must be a list of texts, not one {type(value).__name__}")
    value = list(value)
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise UserError(f"{what}[{i}] must be a text, not {type(text).__name__}")
        if not is_unicode(text):
            raise UserError(
                f"{what}[{i}] holds half of a surrogate pair, which is no character; remove it"
            )
    return value


def documents(model: Model, what: str, value: Documents) -> list[str] | np.ndarray:
    """Texts as a list, memories as one float32 array [n, M, D].

    Raises:
        UserError: neither, or memories of another shape than this model's.
    """
    M, D = len(model.extra.memory), model.architecture.d_model
    if isinstance(value, list | tuple) and value and all(isinstance(x, _ARRAY) for x in value):
        shapes = {np.shape(memory) for memory in value}
        if shapes != {(M, D)}:
            raise UserError(
                f"memories in {what} have shapes {sorted(shapes)}, this model's are [{M}, {D}] "
                "each; compress the documents with this model"
            )
        value = np.stack(value)
    if not isinstance(value, _ARRAY):
        return texts(what, value)
    if value.ndim != 3 or value.shape[1:] != (M, D):
        raise UserError(
            f"memories in {what} have shape {list(value.shape)}, this model's are [n, {M}, {D}]; "
            "compress the documents with this model"
        )
    if not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
        raise UserError(f"memories in {what} must be numbers, not {value.dtype}")
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"memories in {what} hold NaN or infinity; compress the documents again")
    return value


def documents_of_each(
    model: Model, questions: Any, what: str, value: Any
) -> tuple[list[str], list[list[str] | np.ndarray]]:
    """Questions and the documents of each, one or more, as `documents` gives them.

    Raises:
        UserError: no list of texts, not as many lists of documents, or one of them is wrong.
    """
    questions = texts("questions", questions)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(
            f"{what} must be a list with the documents of each question, not one "
            f"{type(value).__name__}"
        )
    value = list(value)
    if len(value) != len(questions):
        raise UserError(f"{len(questions)} questions, but {what} for {len(value)}")
    checked = [documents(model, f"{what}[{i}]", given) for i, given in enumerate(value)]
    for i, given in enumerate(checked):
        if not len(given):
            raise UserError(f"{what}[{i}] is empty; give one document or more")
    return questions, checked


def at_least_one(name: str, value: Any) -> None:
    """Checks a number of tokens or documents.

    Raises:
        UserError: it is none.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 < value <= MOST:
        raise UserError(f"{name}={value!r} must be a whole number from 1 to {MOST}")
