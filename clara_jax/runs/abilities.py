"""What a model with some adapters can do."""

from clara_jax.config import TRAINED
from clara_jax.errors import UserError
from clara_jax.runs.setup import Setup
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence


# What each call of the interface, and each stage of training that goes on from a model, cannot do
# without. A reasoner that is not there is a copy of the compressor.
CALLS = {
    "compress": ("compressor",),
    "encode_query": ("compressor",),
    "rank": ("compressor",),
    "answer": ("compressor", "generator"),
    "ask": ("compressor", "generator"),
    "paraphrase": ("compressor", "generator"),
}


STAGES = dict.fromkeys(TRAINED, ("compressor",))


def possible(needs: Mapping[str, Sequence[str]], names: Iterable[str]) -> str:
    """Which of CALLS or STAGES can do with the trees of these names."""
    return ", ".join(what for what, trees in needs.items() if set(trees) <= set(names))


def can(setup: Setup, call: str) -> None:
    """Checks that a model has the adapters that a call needs, unless its base does without.

    Raises:
        UserError: it lacks one.
    """
    for name in () if setup.base_trained else CALLS[call]:
        if setup.trees.get(name) is None:
            raise UserError(
                f"this model, of stage {setup.config.stage}, has no {name} and cannot {call}; it "
                f"can {possible(CALLS, setup.trees)}"
            )
