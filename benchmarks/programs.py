"""What the benchmark measures: train steps of each kind, compressing, answering.

Token ids are random, shapes are those of the method (see the constants). Every function is called
in a process of its own (speed.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Program, Result, measured
from clara_jax import sharding
from clara_jax.config import Config, Data, Mesh, Model, Train
from clara_jax.data import scp_rows
from clara_jax.data.packing import PADDED_DECODER, Report, measure
from clara_jax.data.prompts import FRAME, TextLayout
from clara_jax.data.reader import Reader
from clara_jax.inference import generate
from clara_jax.inference.encode import encode_rows
from clara_jax.models.clara import Trees
from clara_jax.models.config import ExtraTokens
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.lineage import Run
from clara_jax.runs.setup import Loaded, create
from clara_jax.training.losses import IGNORE
from clara_jax.training.optim import make_optimizer
from clara_jax.training.step import compile_step, init_optimizer, make_step

DOCUMENT, RATE = 256, 16  # tokens of a document, compression rate
PROMPT = 60  # tokens of the padded decoder rows that carry no label
COMPRESSED = 8  # documents compressed at once
PADDED_ROWS = 4  # examples of the padded step that packing is compared with
TOKENS = PADDED_DECODER + DOCUMENT + FRAME + DOCUMENT // RATE  # of a padded example, both sides
# A question of 32 tokens. With SmolLM2's tokenizer the default prompt with five documents' slots
# has 132 tokens without it; data.questions rounds the longest of the QA sets' up to these rows.
QUESTION, ASKED = 32, 164  # tokens of the question, of the prompt with it
QUERY_ROW, ANSWER_ROW = 64, 192  # of the reasoner, of the generator: prompt and answer
ANSWERS, NEW_TOKENS = 4, 64  # answered at once, tokens of each
# The PyTorch release on two cores, float32, in u; e2e compresses and pads to 1,043 tokens there.
RELEASE = {
    "1 row": 47.0,
    "4 rows": 163.0,
    "compress": 7.5,
    "e2e": 340.0,
    "prompts": 13.0,
    "answer": 80.0,
}
RELEASE_MODEL = "smollm2_135m"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure on."""

    base: str = ""  # HF directory, hub id or .gguf file; empty: random weights of `preset`
    preset: str = "smollm2_135m"  # architecture of the random weights
    dtype: str = "float32"  # of the activations
    chunks: int = 1  # blocks of the cross-entropy
    sources: tuple[str, ...] = ()  # records whose packing is measured
    gigabytes: float = 3.0  # 10^9 bytes of the bfloat16 checkpoint that is imported, about
    documents: int = 200_000  # to search among


def make_setup(options: Options, remat: str = "none", stage: str = "scp", **data: Any) -> Loaded:
    """A model as at the start of a stage, on one device."""
    config = Config(
        stage=stage,
        model=Model(
            preset=options.preset,
            base=options.base,
            dtype=options.dtype,
            remat=remat,
            tokenizer="" if options.base else "facts",
        ),
        data=Data(
            **{"document_length": DOCUMENT, "rate": RATE, "sources": ",".join(options.sources)}
            | data
        ),
        train=Train(loss_chunks=options.chunks),
    )
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    earlier = dataclasses.replace(config, stage="scp")  # which trained the compressor
    return create(config, mesh, [Run("", earlier)] if stage != "scp" else [])


def random_batch(model: setup_lib.Model, rows: int) -> dict[str, np.ndarray]:
    """Rows that hold one full example each, of random tokens."""
    rng, extra = np.random.default_rng(0), model.extra
    enc = _documents(rng, model.layout, rows, DOCUMENT)
    dec = _dialogues(rng, extra, rows, PADDED_DECODER, PROMPT - 1, documents=1)
    places = np.tile(model.layout.places(enc.shape[1]), (rows, 1))
    return {
        "doc_places": places[:, None],
        "doc_valid": np.ones((rows, 1), np.int32),
        "dec_slots": _slots(extra, dec),
        "dec_targets": _labels(dec, PROMPT),
        **_side("enc", enc),
        **_side("dec", dec),
    }


def question_batch(model: setup_lib.Model, compress: bool) -> dict[str, np.ndarray]:
    """One question with full-length candidates, compressed in the step or before."""
    rng, extra, select = np.random.default_rng(0), model.extra, model.config.select
    M, N = len(extra.memory), select.candidates
    qry = _documents(rng, model.layout, 1, QUESTION)
    dec = _dialogues(rng, extra, 1, ANSWER_ROW, ASKED - QUESTION, select.k)
    batch = {
        "doc_valid": np.ones((1, N), np.int32),
        "doc_gold": np.eye(1, N, dtype=np.int32),
        "doc_teacher": np.zeros((1, N), np.float32),
        "dec_slots": _slots(extra, dec),
        "dec_targets": _labels(dec, ASKED),
        **_side("dec", dec),
        **_side("qry", qry, QUERY_ROW),
        "qry_places": model.layout.places(qry.shape[1])[None],
    }
    if not compress:
        memories = rng.standard_normal((1, N, M, model.architecture.d_model), np.float32)
        return batch | {"memories": memories.astype(model.architecture.dtype)}
    enc = _documents(rng, model.layout, N, DOCUMENT)
    first_N = np.arange(N, dtype=np.int32) * enc.shape[1]
    documents = {key: value[None] for key, value in _side("enc", enc).items()}
    places_NM = first_N[:, None] + model.layout.places(enc.shape[1])[None]
    return batch | documents | {"doc_places": places_NM[None]}


def _documents(rng: np.random.Generator, layout: TextLayout, rows: int, text: int) -> np.ndarray:
    """The compressor's or the reasoner's input of `rows` texts of `text` tokens."""
    tail = len(layout.tail)
    tokens = rng.integers(0, layout.extra.vocab_size, (rows, text + FRAME + tail), np.int32)
    tokens[:, 0], tokens[:, tokens.shape[1] - tail :] = layout.extra.enc, layout.tail
    return tokens


def _dialogues(
    rng: np.random.Generator, extra: ExtraTokens, rows: int, length: int, end: int, documents: int
) -> np.ndarray:
    """Random tokens [rows, length] with the slots of `documents` before position `end`."""
    tokens = rng.integers(0, extra.vocab_size, (rows, length), np.int32)
    slots = [*extra.memory, extra.sep] * documents
    tokens[:, end - len(slots) : end] = slots
    return tokens


def _slots(extra: ExtraTokens, tokens: np.ndarray) -> np.ndarray:
    """Numbers memory tokens from 0 in each row; -1 elsewhere."""
    is_slot = extra.is_memory(tokens)
    return np.where(is_slot, np.cumsum(is_slot, axis=1) - 1, -1).astype(np.int32)


def _labels(tokens: np.ndarray, start: int) -> np.ndarray:
    targets = np.full_like(tokens, IGNORE)
    targets[:, start - 1 : -1] = tokens[:, start:]
    return targets


def _side(side: str, tokens: np.ndarray, length: int = 0) -> dict[str, np.ndarray]:
    """Tokens, segments and positions of rows of one sequence, padded to `length`."""
    padding = ((0, 0), (0, max(0, length - tokens.shape[1])))
    segments, positions = np.ones_like(tokens), np.zeros_like(tokens) + np.arange(tokens.shape[1])
    return {
        f"{side}_tokens": np.pad(tokens, padding),
        f"{side}_segments": np.pad(segments, padding),
        f"{side}_positions": np.pad(positions.astype(np.int32), padding),
    }


def step_program(
    model: setup_lib.Model,
    trees: Trees,
    name: str,
    batch: dict[str, np.ndarray],
    release: float | None = None,
) -> Program:
    """Whole train steps: forward, backward, clipping and AdamW."""
    # Copies, for the step gives its state's memory away and the model may serve another program.
    trained = {key: jax.tree.map(jnp.copy, trees[key]) for key in model.config.trained}
    frozen = {key: tree for key, tree in trees.items() if key not in trained}
    optimizer = make_optimizer(model.config)
    state = (trained, init_optimizer(model, optimizer, trained))
    rows = sharding.put_whole(sharding.batch_sharding(model.mesh), batch)
    step_fn = compile_step(model, make_step(model, optimizer), state)
    compiled = step_fn.lower(state, frozen, rows, np.int32(0)).compile()

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, rows, np.int32(0))
        return state, metrics

    tokens = sum(value.size for key, value in batch.items() if key.endswith("_tokens"))
    return Program(name, compiled, run, tokens, release)


def release(options: Options, name: str) -> float | None:
    """The release's time, if these are the model and the device that it was measured with."""
    same = not options.base and (options.preset, options.dtype) == (RELEASE_MODEL, "float32")
    return RELEASE.get(name) if same and jax.default_backend() == "cpu" else None


def scp_step(options: Options, rows: int, remat: str) -> Result:
    """A train step of `rows` padded examples."""
    model, trees = make_setup(options, remat)
    name = f"{rows} row{'s' * (rows > 1)}"
    full = f"scp step, {name}" + (f", remat {remat}" if remat != "none" else "")
    batch = random_batch(model, rows)
    return measured(step_program(model, trees, full, batch, release(options, name)))[0]


def compress(options: Options) -> Result:
    """Compressing one document of full length, as one of COMPRESSED in a batch."""
    model, trees = make_setup(options)
    batch = random_batch(model, COMPRESSED)
    arrays = [jnp.asarray(batch[f"enc_{x}"]) for x in ("tokens", "positions", "segments")]
    arrays.append(jnp.asarray(batch["doc_places"][:, 0]))
    compiled = encode_rows.lower(model.decoder, "compressor", model.memory, trees, *arrays)
    compiled = compiled.compile()
    program = Program(
        "compress, 1 document",
        compiled,
        lambda: compiled(trees, *arrays),
        batch["enc_tokens"].size,
        release(options, "compress"),
    )
    whole = measured(program)[0]
    return dataclasses.replace(
        whole,
        time=whole.time / COMPRESSED,
        seconds=whole.seconds / COMPRESSED,
        tokens=whole.tokens // COMPRESSED,
    )


def e2e_step(options: Options, compress: bool) -> Result:
    """A train step of one question with its candidates' texts, or with their memories."""
    model, trees = make_setup(options, stage="e2e")
    name = "e2e step, " + ("20 documents" if compress else "20 memories")
    batch = question_batch(model, compress)
    return measured(step_program(model, trees, name, batch, release(options, "e2e")))[0]


def answer(options: Options) -> list[Result]:
    """ANSWERS questions answered from the memories of five documents each, greedily.

    Returns:
        One token of each, which is the work of the prompts; and NEW_TOKENS of each, prompts
        included. No token ends an answer.
    """
    model, trees = make_setup(options, stage="e2e")
    rng, extra, k = np.random.default_rng(0), model.extra, model.config.select.k
    tokens = _dialogues(rng, extra, ANSWERS, ASKED, ASKED - QUESTION, k)
    shape = (k * len(extra.memory), model.architecture.d_model)
    vectors = rng.standard_normal((ANSWERS, *shape), np.float32)
    asked = [generate.Prompt(*pair) for pair in zip(tokens.tolist(), vectors, strict=True)]
    ((_, arrays),) = generate.prompt_batches(asked, extra, ANSWERS)
    trees, batch = generate.needed(trees, "generator"), generate.put(model, arrays)
    never_V = np.zeros(model.architecture.vocab_size, bool)

    def program(name: str, key: str, new_tokens: int) -> Program:
        compiled = generate.decode.lower(
            model.decoder, trees, batch, never_V, role="generator", max_new_tokens=new_tokens
        ).compile()
        work = arrays.tokens_BT.size + ANSWERS * (new_tokens - 1)
        run = functools.partial(compiled, trees, batch, never_V)
        return Program(name, compiled, run, work, release(options, key))

    return measured(
        program(f"answer, {ANSWERS} prompts", "prompts", 1),
        program(f"answer, {ANSWERS} x {NEW_TOKENS} tokens", "answer", NEW_TOKENS),
    )


def packing(options: Options) -> tuple[Result, Result, float, Report]:
    """Train steps of PADDED_ROWS padded examples and of about as many tokens of packed rows.

    Returns:
        Both results, how many examples the packed rows hold on average, and the packing's report.
    """
    model, trees = make_setup(options)
    config = model.config
    reader = Reader(scp_rows.open_data(config), model.layout, config)
    lengths = scp_rows.row_lengths(reader)
    dataset = scp_rows.make_dataset(reader, lengths)
    report = measure(dataset, config.data, reader.layout)
    rows = max(1, round(PADDED_ROWS * TOKENS / (lengths.encoder + lengths.decoder)))
    first = [row for row, _ in zip(dataset, range(rows), strict=False)]
    batch = {key: np.stack([row[key] for row in first]) for key in first[0]}
    padded, packed = measured(
        step_program(
            model, trees, f"padded step, {PADDED_ROWS} rows", random_batch(model, PADDED_ROWS)
        ),
        step_program(model, trees, f"packed step, {rows} row{'s' * (rows > 1)}", batch),
    )
    return padded, packed, rows * report.examples / report.rows, report
