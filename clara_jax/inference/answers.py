"""Answers from memories: prompts of questions, and their decoding."""

from collections.abc import Callable, Sequence

import numpy as np

from clara_jax.data.tokenizer import Parts
from clara_jax.inference.generate import Prompt, generate
from clara_jax.inference.sampling import GenerationOptions
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model


def answer_prompts(
    model: Model,
    questions: Sequence[str],
    documents: Sequence[Sequence[str] | np.ndarray],
) -> list[Prompt]:
    """Prompts of the later stages, whose assistant's turns are open.

    Args:
        model: the model.
        questions: n texts.
        documents: for each question memories [K, M, D], which fill slots in their order; or texts,
            which stand there whole, a blank line between two; none at all is an empty list.
    """
    prompts = []
    for question, given in zip(questions, documents, strict=True):
        read = given if isinstance(given, np.ndarray) else "\n\n".join(given)
        docs, vectors = laid_out(model, read)
        ids, _ = model.layout.answer_prompt(docs, question)
        prompts.append(Prompt(ids, vectors))
    return prompts


def laid_out(model: Model, given: str | np.ndarray) -> tuple[Parts, np.ndarray | None]:
    """What stands for documents in a prompt, and the vectors [S, D] of its slots.

    Args:
        model: the model.
        given: their text, or their memories [K, M, D], of which a prompt at a higher rate holds
            means of neighbours.
    """
    if isinstance(given, str):
        return given, None
    n, M, D = given.shape
    count = model.layout.asked or M
    return model.layout.slots(n), given.reshape(n * count, M // count, D).mean(1)


def answers(
    model: Model,
    trees: Trees,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    role: str | None = "generator",
    stop: str | Sequence[str] = "\n",
    batch: int = 16,
    report: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """Stripped texts after prompts, greedy, by default up to the end of their line."""
    options = GenerationOptions(max_new_tokens, stop=stop)
    generations = generate(model, trees, prompts, options, role=role, batch=batch, report=report)
    return [generation.text.strip() for generation in generations]
