"""Answers from memories: prompts of questions, and their decoding."""

from collections.abc import Callable, Sequence

import numpy as np

from clara_jax.inference.generate import Prompt, generate
from clara_jax.inference.sampling import GenerationOptions
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model


def answer_prompts(
    model: Model,
    questions: Sequence[str],
    documents: Sequence[Sequence[str] | np.ndarray],
    replies: Sequence[str] | None = None,
) -> list[Prompt]:
    """Prompts of the later stages.

    Args:
        model: the model.
        questions: n texts.
        documents: for each question memories [K, M, D], which fill slots in their order; or texts,
            which stand there whole, a blank line between two; none at all is an empty list.
        replies: answers that the assistant's turns hold; None leaves the turns open.
    """
    prompts, layout = [], model.layout
    replies = [None] * len(questions) if replies is None else replies
    for question, given, reply in zip(questions, documents, replies, strict=True):
        docs, vectors = "", None
        if isinstance(given, np.ndarray):
            docs, vectors = layout.slots(len(given)), np.concatenate(given)
        elif given:
            docs = "\n\n".join(given)
        ids, _ = layout.answer_prompt(docs, question, reply)
        prompts.append(Prompt(ids, vectors))
    return prompts


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
