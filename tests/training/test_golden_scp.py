"""SCP against numbers recorded from the PyTorch release: memories, logits, losses, gradients.

The golden rows are padded on the left, one example a row. Here they are laid out as our batches:
without that padding, padded on the right, and packed into one row; all must give the same numbers.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Mesh
from clara_jax.exchange import import_model
from clara_jax.models import clara
from clara_jax.models.decoder import head_logits
from clara_jax.runs.setup import Loaded, restore
from clara_jax.sharding import make_mesh
from clara_jax.training.losses import IGNORE
from clara_jax.training.objectives import Draw, scp
from clara_jax.training.step import means, totals
from tests.fixtures.models import altered

MSE_WEIGHT = 0.1
# Stage and whether all its examples are packed into one row. Every second row of stage1_mixed is a
# paraphrase; stage1_2 has two documents for each question.
CASES = (("stage1_qa", False), ("stage1_mixed", False), ("stage1_mixed", True), ("stage1_2", True))
PARTS = {"self_attn": "attention", "mlp": "mlp"}
ADAPTERS = {"encoder_adapter": "compressor", "decoder_adapter": "generator"}


@dataclasses.dataclass(frozen=True)
class Golden:
    arrays: dict[str, np.ndarray]
    scalars: dict
    setup: Loaded


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory) -> Golden:
    folder, workdir = shared / "golden", tmp_path_factory.mktemp("golden") / "imported"
    import_model.run(
        str(folder / "ckpt_mistral_stage1"), str(workdir), str(folder / "base_mistral")
    )
    setup = restore(str(workdir), make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    assert setup.model.config.stage == "scp"
    lora = dataclasses.replace(setup.model.config.lora, dropout=0.0)
    data = dataclasses.replace(setup.model.config.data, row_examples=8)
    setup = altered(
        setup,
        config=dataclasses.replace(setup.model.config, lora=lora, data=data),
        decoder=dataclasses.replace(setup.model.decoder, lora=lora),
    )
    with np.load(folder / "golden_mistral.npz") as file:
        arrays = dict(file)
    return Golden(arrays, json.loads((folder / "golden_mistral.json").read_text()), setup)


# --- Layout --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Laid:
    """A batch, and where in it the golden tokens are.

    Attributes:
        batch: as data/scp_rows.py makes it.
        enc: row and first column of each golden encoder row's tokens, [documents, 2].
        dec: row and column shift of each golden decoder row, so that golden column t is at t + it.
    """

    batch: dict[str, np.ndarray]
    enc: np.ndarray
    dec: np.ndarray


def place(sequences, rows, fill):
    """Puts sequences, each with its row, one behind the other; also gives where they start."""
    used, starts = {}, []
    for sequence, row in zip(sequences, rows, strict=True):
        starts.append((row, used.get(row, 0)))
        used[row] = used.get(row, 0) + len(sequence)
    out = np.full((max(rows) + 1, max(used.values()) + 3), fill, np.int32)  # some padding, too
    for sequence, (row, start) in zip(sequences, starts, strict=True):
        out[row, start : start + len(sequence)] = sequence
    return out, np.array(starts)


def lay_out(golden: Golden, stage: str, packed: bool) -> Laid:
    get = lambda name: golden.arrays[f"{stage}/{name}"]  # noqa: E731
    enc_mask, dec_mask = get("enc_attention_mask") > 0, get("dec_attention_mask") > 0
    questions = len(dec_mask)
    each = len(enc_mask) // questions
    dec_rows = [0] * questions if packed else list(range(questions))
    enc_rows = [row for row in dec_rows for _ in range(each)]
    # Labels are of the token itself; targets of the position before it.
    targets = np.roll(get("labels"), -1, axis=1)
    assert (get("labels")[:, 0] == IGNORE).all()
    sides = {
        "enc": ([ids[m] for ids, m in zip(get("enc_input_ids"), enc_mask, strict=True)], enc_rows),
        "dec": ([ids[m] for ids, m in zip(get("dec_input_ids"), dec_mask, strict=True)], dec_rows),
    }
    batch, starts = {}, {}
    for side, (sequences, rows) in sides.items():
        tokens, starts[side] = place(sequences, rows, 0)
        # Segments of the encoder count documents, those of the decoder questions.
        numbers = [rows[: i + 1].count(row) for i, row in enumerate(rows)]
        segments = [np.full(len(s), n) for s, n in zip(sequences, numbers, strict=True)]
        batch[f"{side}_tokens"] = tokens
        batch[f"{side}_segments"] = place(segments, rows, 0)[0]
        batch[f"{side}_positions"] = place([np.arange(len(s)) for s in sequences], rows, 0)[0]
    labels = [t[m] for t, m in zip(targets, dec_mask, strict=True)]
    batch["dec_targets"] = place(labels, dec_rows, IGNORE)[0]
    memory = golden.setup.model.extra.memory
    is_slot = np.isin(batch["dec_tokens"], memory)
    batch["dec_slots"] = np.where(is_slot, np.cumsum(is_slot, axis=1) - 1, -1)
    documents = np.bincount(enc_rows, minlength=len(is_slot))
    places = np.zeros((len(is_slot), documents.max() * len(memory)), np.int32)
    for row, tokens in enumerate(batch["enc_tokens"]):
        found = np.flatnonzero(np.isin(tokens, memory))
        places[row, : len(found)] = found
    batch["doc_places"] = places.reshape(len(places), -1, len(memory))
    batch["doc_valid"] = (np.arange(documents.max()) < documents[:, None]).astype(np.int32)
    padding = dec_mask.argmax(1)
    dec = starts["dec"] - np.stack([np.zeros_like(padding), padding], axis=1)
    return Laid({k: jnp.asarray(v) for k, v in batch.items()}, starts["enc"], dec)


# --- The computation, with the code that trains --------------------------------------------------


@pytest.fixture(scope="module")
def compute(golden):
    """Losses (total, ce, mse), gradients, the encoder's hidden states and all logits of a batch."""
    setup = golden.setup
    trained = {name: setup.trees[name] for name in ("compressor", "generator", "memory")}
    frozen = {name: tree for name, tree in setup.trees.items() if name not in trained}

    @jax.jit
    def compute(trained, batch):
        count = totals(setup.model, batch)

        def loss(trained):
            mean = means(scp(setup.model, {**frozen, **trained}, batch, Draw()).sums, count)
            ce, mse = mean["ce_loss"], mean["mse_loss"]
            return ce + MSE_WEIGHT * mse, (ce, mse)

        (total, parts), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        trees = {**frozen, **trained}
        enc = (batch["enc_tokens"], batch["enc_positions"], batch["enc_segments"])
        hidden = clara.encode(setup.model.decoder, trees, *enc, setup.model.memory)
        vectors = clara.memories(trees, hidden, batch["doc_places"])
        vectors = vectors.reshape(len(hidden), -1, hidden.shape[-1])
        answer = clara.generate_hidden(setup.model.decoder, trees, batch, vectors)
        logits = head_logits(
            setup.model.architecture, trees["base"], answer, trees["added"]["head"]
        )
        return (total, *parts), grads, hidden, logits

    return lambda batch: compute(trained, batch)


@pytest.fixture(scope="module", params=CASES, ids=lambda c: c[0] + ("-packed" if c[1] else ""))
def case(request, golden, compute):
    """A stage, its layout, and what `compute` gives for it."""
    stage, packed = request.param
    laid = lay_out(golden, stage, packed)
    return stage, laid, compute(laid.batch)


def our_leaf(tree, name):
    """Our array [in or R, ...] for a name of the release, and the release's layout of it."""
    match = re.fullmatch(
        r"model\.layers\.(\d+)\.(\w+)\.(\w+)_proj\.lora_([AB])\.(\w+)\.weight", name
    )
    layer, part, linear, matrix, adapter = match.groups()
    leaf = tree[ADAPTERS[adapter]]["layers"][PARTS[part]][linear][matrix.lower()][int(layer)]
    return leaf if matrix == "A" else leaf.T


# --- Tests ---------------------------------------------------------------------------------------


def test_checkpoint_arrives_in_our_layout(golden, shared):
    with np.load(shared / "golden" / "lora_mistral_stage2.npz") as file:
        compared = 0
        for name in file.files:
            if "query_reasoner" not in name:
                np.testing.assert_array_equal(our_leaf(golden.setup.trees, name), file[name])
                compared += 1
    assert compared == 2 * 2 * 7 * golden.setup.model.architecture.n_layers


def test_memories(golden, case):
    stage, laid, (_, _, hidden, _) = case
    extra = golden.setup.model.extra
    expected = golden.arrays[f"{stage}/memory"]
    for document, (row, start) in enumerate(laid.enc):
        tokens = np.asarray(laid.batch["enc_tokens"][row])
        first = start + int(np.argmax(tokens[start:] == extra.memory[0]))
        actual = hidden[row, first : first + len(extra.memory)]
        np.testing.assert_allclose(actual, expected[document], atol=2e-5)


def test_logits(golden, case):
    stage, laid, (_, _, _, logits) = case
    positions = golden.arrays[f"{stage}/logit_positions"]
    expected = golden.arrays[f"{stage}/logits"]
    for (question, t), wanted in zip(positions, expected, strict=True):
        row, shift = laid.dec[question]
        np.testing.assert_allclose(logits[row, t + shift], wanted, atol=1e-4)


def test_losses(golden, case):
    stage, _, ((total, ce, mse), *_) = case
    names = {"total_0.1mse": total, "loss": ce, "mse_loss": mse}
    for name, value in names.items():
        assert float(value) == pytest.approx(golden.scalars[f"{stage}/{name}"], rel=2e-5), name


def test_gradients(golden, case):
    """Every adapter gradient, norms and numbers; nothing but adapters and memory has one."""
    stage, _, (_, grads, _, _) = case
    assert set(grads) == {"compressor", "generator", "memory"}
    norms = {k: v for k, v in golden.scalars[f"{stage}/grad_norms"].items() if "lora_" in k}
    assert len(norms) == 2 * 2 * 7 * golden.setup.model.architecture.n_layers
    for name, norm in norms.items():
        gradient = np.asarray(our_leaf(grads, name))
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-3), name
        expected = golden.arrays[f"{stage}/grad/{name}"]
        np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_memory_embedding_gradient(golden, case):
    stage, _, (_, grads, _, _) = case
    if stage == "stage1_2":
        pytest.skip("the release freezes the memory embeddings after stage 1")
    expected = golden.arrays[f"{stage}/grad/model.embed_tokens.weight[mem rows]"]
    np.testing.assert_allclose(grads["memory"], expected, atol=1e-3 * np.abs(expected).max())
    norm = golden.scalars[f"{stage}/grad_norms"]["model.embed_tokens.weight"]
    assert np.linalg.norm(grads["memory"]) == pytest.approx(norm, rel=1e-3)
    # In the release too nothing else of the table is trained.
    assert golden.scalars[f"{stage}/grad_max_outside_mem_rows/model.embed_tokens.weight"] == 0


def test_fault_19_no_label_left_gives_zero_and_not_nan(golden, compute):
    laid = lay_out(golden, "stage1_qa", packed=False)
    batch = {**laid.batch, "dec_targets": jnp.full_like(laid.batch["dec_targets"], IGNORE)}
    (total, ce, mse), grads, _, _ = compute(batch)
    assert ce == 0 and total == pytest.approx(MSE_WEIGHT * mse)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["generator"]))


def test_fault_5_memory_tokens_start_alike_unless_told_otherwise(golden):
    base = golden.setup.trees["base"]
    mean = golden.arrays["init/mean_of_old_embeddings"]
    assert golden.scalars["init/max_abs_diff_new_rows_from_mean"] < 1e-4
    memory, added = clara.init_memory(base, 4, jax.random.key(0))
    np.testing.assert_allclose(memory, np.tile(mean, (4, 1)), atol=1e-6)
    np.testing.assert_allclose(added["embed"], np.tile(mean, (3, 1)), atol=1e-6)
    apart, _ = clara.init_memory(base, 4, jax.random.key(0), "tokens")
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


def test_fault_8_tables_inside_adapters_are_left_out(golden):
    for name in ADAPTERS.values():
        assert set(golden.setup.trees[name]) == {"layers"}
        assert set(golden.setup.trees[name]["layers"]) == {"attention", "mlp"}
