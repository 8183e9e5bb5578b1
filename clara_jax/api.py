"""The Python interface: load a model, compress documents, rank them, answer from them.

    clara = clara_jax.load("workdir")
    documents = ["Oslo is the capital of Norway.", "Rome is the capital of Italy."]
    memories = clara.compress(documents)  # [2, M, D]
    clara.ask(["What is the capital of Norway?"], [memories], top_k=1)

What takes documents takes texts as well as memories that were compressed before.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax import config
from clara_jax.corpus import write
from clara_jax.corpus.store import Store
from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError
from clara_jax.inference import checks, rank
from clara_jax.inference.answers import answer_prompts, answers, laid_out
from clara_jax.inference.checks import Documents
from clara_jax.inference.encode import compress, encode_query
from clara_jax.inference.generate import Prompt, generate, needed, prompt_batches, to_host
from clara_jax.inference.sampling import GenerationOptions, Sampling
from clara_jax.models.clara import Trees
from clara_jax.runs import abilities
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Model

__all__ = ["Answer", "Clara", "Documents", "compress", "encode_query", "load"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it was read from.

    Attributes:
        text: the answer.
        indices: positions of the selected documents among the candidates, the best first.
        scores: theirs.
    """

    text: str
    indices: tuple[int, ...]
    scores: tuple[float, ...]


class Clara:
    """A model that is ready for use.

    Whatever generates text takes, beside `max_new_tokens`: `temperature` (0: greedy), `top_p`,
    `seed` of the draws, and `stop`, a text or several that end the answer and are no part of it.
    All methods raise UserError for arguments that cannot be meant.

    Args:
        model: all but its weights.
        trees: these.
        batch: most documents or prompts at once.
    """

    def __init__(self, model: Model, trees: Trees, batch: int = 16):
        self.model, self.trees = model, trees
        self.batch = batch

    def at_rate(self, rate: int) -> "Clara":
        """The same with means of neighbouring memory vectors in the prompts, which are fewer.

        Memories stay as they are. `rate` is a multiple of their own, better one that was trained
        (`config.data.rates`); 0: their own.
        """
        return Clara(self.model.at_rate(rate), self.trees, self.batch)

    def compress(self, documents: Sequence[str]) -> np.ndarray:
        """Memories float32 [n, M, D] of texts, each read up to the model's document length.

        How many were longer than that is logged.
        """
        abilities.can(self.model, self.trees, "compress")
        return compress(self.model, self.trees, documents, self.batch).memories

    def compress_to(
        self, store: str | os.PathLike[str], documents: Iterable[str | Mapping[str, Any]]
    ) -> Store:
        """Compresses documents into a store, or adds to it those that it does not hold.

        Args:
            store: its folder, made if there is none.
            documents: texts, or mappings with `text` and perhaps `id` and `title`; streamed. Long
                ones become several pieces.
        """
        return write.add(store, self.model, self.trees, documents, config.Store(batch=self.batch))

    def encode_query(self, questions: Sequence[str]) -> np.ndarray:
        """Memory vectors float32 [n, M, D] of questions, to compare documents' memories with.

        The query reasoner reads them. Where the model has none yet (after scp or instruct) the
        compressor serves, of which the reasoner is a copy at the start of e2e.
        """
        abilities.can(self.model, self.trees, "encode_query")
        return encode_query(self.model, self.trees, questions, self.batch)

    def rank(self, questions: Sequence[str], candidates: Sequence[Documents]) -> np.ndarray:
        """How well each question's candidates match it, by the score of `config.select.score`.

        Args:
            questions: n texts.
            candidates: one or more documents for each question. A text that several share is
                compressed once.

        Returns:
            Float32 [n, N] for the most candidates N; -inf where a question has fewer.
        """
        questions, given = checks.documents_of_each(self.model, questions, "candidates", candidates)
        scores = [scores_N for _, scores_N in self._scored(questions, given)]
        scores_nN = np.full((len(scores), max(map(len, scores), default=0)), -np.inf, np.float32)
        for row, scores_N in zip(scores_nN, scores, strict=True):
            row[: len(scores_N)] = scores_N
        return scores_nN

    def ask(
        self,
        questions: Sequence[str],
        candidates: Sequence[Documents],
        top_k: int | None = None,
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = "",
    ) -> list[Answer]:
        """Ranks each question's candidates and answers it from the `top_k` best, best first.

        Candidates are as for `rank`. `top_k` is `config.select.k` unless given; where there are
        fewer candidates, all are taken.
        """
        abilities.can(self.model, self.trees, "ask")
        top_k = self.model.config.select.k if top_k is None else top_k
        checks.at_least_one("top_k", top_k)
        options = _options(max_new_tokens, temperature, top_p, seed, stop)
        questions, given = checks.documents_of_each(self.model, questions, "candidates", candidates)
        selected, ranked = [], []
        for memories_NMD, scores_N in self._scored(questions, given):
            best = rank.best(scores_N, top_k)
            selected.append(memories_NMD[best])
            ranked.append((tuple(best), tuple(scores_N[best].tolist())))
        texts = self._texts(answer_prompts(self.model, questions, selected), options)
        return [Answer(text, *parts) for text, parts in zip(texts, ranked, strict=True)]

    def answer(
        self,
        questions: Sequence[str],
        documents: Sequence[Documents],
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = "",
    ) -> list[str]:
        """Answers each question from all of its documents, in their order."""
        abilities.can(self.model, self.trees, "answer")
        options = _options(max_new_tokens, temperature, top_p, seed, stop)
        questions, given = checks.documents_of_each(self.model, questions, "documents", documents)
        memories = list(self._memories_of_each(given))
        return self._texts(answer_prompts(self.model, questions, memories), options)

    def prompt_embeddings(
        self, questions: Sequence[str], documents: Sequence[Documents]
    ) -> list[np.ndarray]:
        """The generator's input for each question and its documents, float32 [T, D].

        What `answer` reads: embeddings of the prompt's tokens, memories at their places. For other
        engines that serve the merged model (`--mode=export --format=merged`).
        """
        model = self.model
        questions, given = checks.documents_of_each(model, questions, "documents", documents)
        prompts = answer_prompts(model, questions, list(self._memories_of_each(given)))
        out: list[np.ndarray] = [np.empty(0)] * len(prompts)
        for index, batch in prompt_batches(prompts, model.extra, self.batch):
            x_BTD = to_host(model, batch.embed(model.architecture, needed(self.trees, None)))
            for i, x_TD, length in zip(index, x_BTD, batch.lengths_B, strict=False):
                out[i] = x_TD[:length].astype(np.float32)
        return out

    def paraphrase(
        self,
        documents: Documents,
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = "",
    ) -> list[str]:
        """Says in other words what each document says, given as text or as its memory."""
        model = self.model
        abilities.can(model, self.trees, "paraphrase")
        options = _options(max_new_tokens, temperature, top_p, seed, stop)
        memories = self._memories(checks.documents(model, "documents", documents))
        # The instruction depends on the data type alone.
        record = ScpRecord("paraphrase", (), ("",), "", "")
        given = [laid_out(model, memory_MD[None]) for memory_MD in memories]
        prompts = [
            Prompt(model.layout.scp_prompt(record, docs, i), vectors)
            for i, (docs, vectors) in enumerate(given)
        ]
        return self._texts(prompts, options)

    def answer_scp(
        self, questions: Sequence[str], documents: Documents, max_new_tokens: int = 32
    ) -> list[str]:
        """Answers one question about each document, as a model after pretraining is asked."""
        model = self.model
        checks.at_least_one("max_new_tokens", max_new_tokens)
        questions = checks.texts("questions", questions)
        given = checks.documents(model, "documents", documents)
        if len(questions) != len(given):
            raise UserError(f"{len(questions)} questions for {len(given)} documents")
        read = [laid_out(model, memory_MD[None]) for memory_MD in self._memories(given)]
        prompts = [
            Prompt(model.layout.scp_question(docs, question), vectors)
            for question, (docs, vectors) in zip(questions, read, strict=True)
        ]
        return answers(model, self.trees, prompts, max_new_tokens, batch=self.batch)

    def _texts(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[str]:
        generations = generate(self.model, self.trees, prompts, options, batch=self.batch)
        return [generation.text.strip() for generation in generations]

    def _memories(self, given: list[str] | np.ndarray) -> np.ndarray:
        """Memories of texts; memories as they are."""
        return self.compress(given) if isinstance(given, list) else given

    def _memories_of_each(self, given: Sequence[list[str] | np.ndarray]) -> Iterator[np.ndarray]:
        """Memories [N, M, D] of each question's documents, every distinct text compressed once.

        One after the other, for questions that share many documents.
        """
        lists = (documents for documents in given if isinstance(documents, list))
        texts = list(dict.fromkeys(itertools.chain.from_iterable(lists)))
        memories, row = self.compress(texts), {text: i for i, text in enumerate(texts)}
        for documents in given:
            is_text = isinstance(documents, list)
            yield memories[[row[text] for text in documents]] if is_text else documents

    def _scored(
        self, questions: list[str], given: Sequence[list[str] | np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Memories [N, M, D] of each question's candidates, and their scores [N]."""
        queries, kind = self.encode_query(questions), self.model.config.select.score
        for query_MD, memories_NMD in zip(queries, self._memories_of_each(given), strict=True):
            yield memories_NMD, rank.scores(query_MD, memories_NMD, kind)


def _options(
    max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: str | Sequence[str]
) -> GenerationOptions:
    """The options of a method that generates, checked before any work."""
    checks.at_least_one("max_new_tokens", max_new_tokens)
    return GenerationOptions(max_new_tokens, Sampling(temperature, top_p, seed), stop)


def load(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    param_dtype: str | None = None,
) -> Clara:
    """Loads a trained model.

    Args:
        path: workdir of a run, or a directory in the layout of the PyTorch release.
        base: the base model (directory, hub id or .gguf file). A release needs it; for a workdir it
            says where the base is now, if not where the run found it.
        param_dtype: of the base's weights, `float32`, `bfloat16` or `int8` (its matrices, in half
            the memory of bfloat16); by default as in training, and of a release float32.

    Raises:
        UserError: there is no such model, or base and model do not fit.
    """
    return Clara(*load_setup(path, base, param_dtype))
