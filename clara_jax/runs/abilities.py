"""What a model with some adapters can do."""

from collections.abc import Iterable, Mapping, Sequence

from clara_jax.errors import UserError
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES

# What each call of the interface, and each stage of training that starts from a model, cannot do
# without. A reasoner that is not there is a copy of the compressor.
CALLS = {
    "compress": ("compressor",),
    "encode_query": ("compressor",),
    "rank": ("compressor",),
    "answer": ("compressor", "generator"),
    "ask": ("compressor", "generator"),
    "paraphrase": ("compressor", "generator"),
}


STARTS = dict.fromkeys(STAGES, ("compressor",))


def possible(needs: Mapping[str, Sequence[str]], names: Iterable[str]) -> str:
    """Which of CALLS or STARTS can do with the trees of these names."""
    return ", ".join(what for what, trees in needs.items() if set(trees) <= set(names))


def can(model: Model, trees: Trees, call: str) -> None:
    """Checks that a model has the adapters that a call needs, unless its base does without.

    Raises:
        UserError: it lacks one.
    """
    for name in () if model.base_trained else CALLS[call]:
        if trees.get(name) is None:
            raise UserError(
                f"this model, of stage {model.config.stage}, has no {name} and cannot {call}; it "
                f"can {possible(CALLS, trees)}"
            )
