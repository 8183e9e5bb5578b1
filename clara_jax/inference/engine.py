"""The Python interface: load a model, compress documents, read them.

    clara = clara_jax.load("workdir")
    memories = clara.compress(["Oslo is the capital of Norway."])  # [1, M, D]
    clara.paraphrase(memories)

What takes documents takes texts as well as memories that were compressed before.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clara_jax import sharding
from clara_jax.config import Config, Data, Model
from clara_jax.data import prompts
from clara_jax.data.records import ScpRecord, is_unicode
from clara_jax.data.rows import FRAME, encoder_batches
from clara_jax.data.tokenizer import load_tokenizer
from clara_jax.errors import UserError
from clara_jax.inference.generate import Prompt, generate, needed, put, rows_for, to_host
from clara_jax.interop import clara_release
from clara_jax.models import clara as model_lib
from clara_jax.models.clara import Trees
from clara_jax.models.config import ExtraTokens
from clara_jax.models.decoder import Decoder
from clara_jax.training import setup as setup_lib
from clara_jax.training.setup import Setup

# Texts; or memories [n, M, D], in one array or one each.
Documents = Sequence[str] | np.ndarray | jax.Array | Sequence[np.ndarray | jax.Array]


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Documents as memories.

    Attributes:
        memories: float32 [n, M, D].
        cut: documents that were longer than the limit.
        rate: tokens of text that were read, over memory vectors.
    """

    memories: np.ndarray
    cut: int
    rate: float


class Clara:
    """A model that is ready for use.

    Args:
        setup: model and tokenizer.
        batch: most documents or prompts at once.
    """

    def __init__(self, setup: Setup, batch: int = 16):
        self.setup = setup
        self.batch = batch

    def compress(self, documents: Sequence[str]) -> np.ndarray:
        """Memories float32 [n, M, D] of texts, each read up to the model's document length.

        How many were longer than that is logged.
        """
        return compress(self.setup, documents, self.batch).memories

    def paraphrase(self, documents: Documents, max_new_tokens: int = 256) -> list[str]:
        """Says in other words what each document says, given as text or as its memory."""
        setup = self.setup
        _check_new_tokens(max_new_tokens)
        memories = self._memories(self._checked(documents))
        slots = prompts.slots(setup.extra)
        # The instruction depends on the data type alone.
        record = ScpRecord("paraphrase", (), ("",), "", "")
        asked = [
            Prompt(
                prompts.scp_prompt(
                    setup.tokenizer, setup.config.prompts, record, slots, setup.config.seed, i
                ),
                memory,
            )
            for i, memory in enumerate(memories)
        ]
        generations = generate(setup, asked, max_new_tokens, batch=self.batch)
        return [generation.text.strip() for generation in generations]

    def answer_scp(
        self, questions: Sequence[str], documents: Documents, max_new_tokens: int = 32
    ) -> list[str]:
        """Answers one question about each document, as a model after pretraining is asked."""
        _check_new_tokens(max_new_tokens)
        questions, checked = _texts("questions", questions), self._checked(documents)
        if len(questions) != len(checked):
            raise UserError(f"{len(questions)} questions for {len(checked)} documents")
        setup = self.setup
        slots = prompts.slots(setup.extra)
        asked = [
            Prompt(
                prompts.scp_question(setup.tokenizer, setup.config.prompts, slots, question), memory
            )
            for question, memory in zip(questions, self._memories(checked), strict=True)
        ]
        return answers(setup, asked, max_new_tokens, batch=self.batch)

    def _checked(self, documents: Documents) -> list[str] | np.ndarray:
        """Texts as a list, memories as one array.

        Raises:
            UserError: neither, or memories of another shape than this model's.
        """
        arrays = np.ndarray | jax.Array
        M, D = len(self.setup.extra.memory), self.setup.model.d_model
        if isinstance(documents, list | tuple) and documents:
            if all(isinstance(document, arrays) for document in documents):
                shapes = {document.shape for document in documents}
                if shapes != {(M, D)}:
                    raise UserError(
                        f"memories have shapes {sorted(shapes)}, this model's are [{M}, {D}] each; "
                        "compress the documents with this model"
                    )
                documents = np.stack(documents)
        if not isinstance(documents, arrays):
            return _texts("documents", documents)
        if documents.ndim != 3 or documents.shape[1:] != (M, D):
            raise UserError(
                f"memories have shape {list(documents.shape)}, this model's are "
                f"[n, {M}, {D}]; compress the documents with this model"
            )
        return np.asarray(documents, np.float32)

    def _memories(self, checked: list[str] | np.ndarray) -> np.ndarray:
        """Memories of texts; memories as they are."""
        return self.compress(checked) if isinstance(checked, list) else checked


def _texts(what: str, texts: Any) -> list[str]:
    """The texts, checked where they come from outside.

    Raises:
        UserError: not a list of texts.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise UserError(f"{what} must be a list of texts, not one {type(texts).__name__}")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{what}[{i}] must be a text, not {type(text).__name__}")
        if not is_unicode(text):
            raise UserError(
                f"{what}[{i}] holds half of a surrogate pair, which is no character; remove it"
            )
    return texts


def _check_new_tokens(max_new_tokens: int) -> None:
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens!r} must be a whole number above 0")


def answers(
    setup: Setup,
    asked: Sequence[Prompt],
    max_new_tokens: int,
    *,
    role: str | None = "generator",
    batch: int = 16,
    report: Callable[[int], None] = lambda rows: None,
) -> list[str]:
    """Texts up to the end of the line after prompts of `data.prompts.scp_question`."""
    generations = generate(
        setup, asked, max_new_tokens, role=role, stop="\n", batch=batch, report=report
    )
    return [generation.text.strip() for generation in generations]


def compress(
    setup: Setup,
    documents: Sequence[str],
    batch: int = 16,
    report: Callable[[int], None] = lambda documents: None,
) -> Compressed:
    """Compresses documents in batches of like length.

    Args:
        setup: the model.
        documents: texts.
        batch: documents at once.
        report: called with the number of documents finished after each batch.

    Raises:
        UserError: not a list of texts.
    """
    documents = _texts("documents", documents)
    length = setup.config.data.document_length
    M = len(setup.extra.memory)
    encoded = [prompts.document_ids(setup.tokenizer, setup.extra, d, length) for d in documents]
    memories = np.zeros((len(encoded), M, setup.model.d_model), np.float32)
    trees = needed(setup.trees, "compressor")
    spread = setup.config.memory.positions == "spread"
    rows = rows_for(len(encoded), batch)
    for part in encoder_batches([ids for ids, _ in encoded], rows):
        arrays = [put(setup, x) for x in (part.tokens, part.positions, part.segments)]
        memories_BMD = to_host(setup, _compress(setup.decoder, spread, trees, *arrays))
        memories[part.index] = memories_BMD[: len(part.index)]
        report(len(part.index))
    cut = sum(is_cut for _, is_cut in encoded)
    if cut:
        logging.warning("%d of %d documents cut to %d tokens", cut, len(encoded), length)
    text = sum(len(ids) - M - FRAME for ids, _ in encoded)
    return Compressed(memories, cut, text / max(M * len(encoded), 1))


@functools.partial(jax.jit, static_argnames=("decoder", "spread"))
def _compress(
    decoder: Decoder,
    spread: bool,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    hidden_BTD = model_lib.encode(
        decoder, trees, tokens_BT, positions_BT, segments_BT, spread=spread
    )
    memories = model_lib.memory_vectors(decoder.config, trees, hidden_BTD, tokens_BT)
    return memories.astype(jnp.float32)


def load(path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Clara:
    """Loads a trained model.

    Args:
        path: workdir of a run, or a directory in the layout of the PyTorch release.
        base: the base model (directory, hub id or .gguf file). A release needs it; for a workdir it
            says where the base is now, if not where the run found it.

    Raises:
        UserError: there is no such model, or base and model do not fit.
    """
    for name, value in (("path", path), ("base", base or "")):
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"load: {name} must be a path, not {value!r}")
    if clara_release.is_release(path):
        if base is None:
            wanted = clara_release.read_settings(path).base
            raise UserError(f"{path}: holds no base model; give base=… (it was {wanted!r})")
        return Clara(_from_release(path, os.fspath(base)))
    if not (pathlib.Path(path) / "config.json").is_file():
        raise UserError(f"{path}: neither a workdir nor a CLaRa release: no config.json there")
    return Clara(setup_lib.restore(os.fspath(path), None if base is None else os.fspath(base)))


def _from_release(path: str | os.PathLike[str], base: str) -> Setup:
    settings = clara_release.read_settings(path)
    config = Config(
        stage=settings.stage,
        model=Model(base=base),
        lora=settings.lora,
        data=Data(document_length=settings.document_length, rate=settings.rate),
    )
    mesh = sharding.make_mesh(config.mesh)
    model = setup_lib.model_config(config)
    release = clara_release.read(path, model)
    trained = {**release.adapters, "memory": release.memory, "added": release.added}
    trees = jax.device_put(trained, sharding.replicated(mesh))
    trees["base"] = setup_lib.load_base(config, model, mesh)
    return Setup(
        config=config,
        mesh=mesh,
        decoder=Decoder(model, config.lora),
        tokenizer=load_tokenizer(base),
        extra=ExtraTokens(model.vocab_size, settings.memory_tokens),
        trees=trees,
    )
