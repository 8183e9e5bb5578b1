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
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clara_jax import sharding
from clara_jax.config import Config, Data, Model
from clara_jax.data import prompts
from clara_jax.data.records import ScpRecord
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

Documents = Sequence[str] | np.ndarray | jax.Array  # texts, or memories [n, M, D]


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
        memories = self._memories(documents)
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
        if len(questions) != len(documents):
            raise UserError(f"{len(questions)} questions for {len(documents)} documents")
        setup = self.setup
        slots = prompts.slots(setup.extra)
        asked = [
            Prompt(
                prompts.scp_question(setup.tokenizer, setup.config.prompts, slots, question), memory
            )
            for question, memory in zip(questions, self._memories(documents), strict=True)
        ]
        return answers(setup, asked, max_new_tokens, batch=self.batch)

    def _memories(self, documents: Documents) -> np.ndarray:
        """Memories of texts; memories as they are.

        Raises:
            UserError: memories of another shape than this model's.
        """
        if isinstance(documents, np.ndarray | jax.Array):
            wanted = (len(self.setup.extra.memory), self.setup.model.d_model)
            if documents.ndim != 3 or documents.shape[1:] != wanted:
                raise UserError(
                    f"memories have shape {list(documents.shape)}, this model's are "
                    f"[n, {wanted[0]}, {wanted[1]}]; compress the documents with this model"
                )
            return np.asarray(documents, np.float32)
        return self.compress(documents)


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
    """
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
