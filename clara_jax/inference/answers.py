"""Answers from memories: prompts of questions, and their decoding."""

from collections.abc import Callable, Sequence

import numpy as np

from clara_jax.inference.generate import Prompt, generate
from clara_jax.inference.sampling import GREEDY, Sampling
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model


def answer_prompts(
    model: Model,
    questions: Sequence[str],
    documents: Sequence[Sequence[str] | np.ndarray],
    told: Sequence[str] | None = None,
) -> list[Prompt]:
    """Prompts of the later stages.

    Args:
        model: the model.
        questions: n texts.
        documents: for each question memories [K, M, D], which fill slots in their order; or texts,
            which stand there whole, a blank line between two; none at all is an empty list.
        told: answers that the assistant's turns hold; None leaves the turns open.
    """
    asked, layout = [], model.layout
    told = [None] * len(questions) if told is None else told
    for question, given, answer in zip(questions, documents, told, strict=True):
        docs, vectors = "", None
        if isinstance(given, np.ndarray):
            docs, vectors = layout.slots(len(given)), np.concatenate(given)
        elif given:
            docs = "\n\n".join(given)
        ids, _ = layout.answer_prompt(docs, question, answer)
        asked.append(Prompt(ids, vectors))
    return asked


def answers(
    model: Model,
    trees: Trees,
    asked: Sequence[Prompt],
    max_new_tokens: int,
    *,
    role: str | None = "generator",
    stop: str | Sequence[str] = "\n",
    sampling: Sampling = GREEDY,
    batch: int = 16,
    report: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """Stripped texts after prompts, by default up to the end of their line."""
    generations = generate(
        model, trees, asked, max_new_tokens,
        role=role, stop=stop, sampling=sampling, batch=batch, report=report,
    )  # fmt: skip
    return [generation.text.strip() for generation in generations]
