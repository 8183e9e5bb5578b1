"""instruct, e2e and contrastive against the PyTorch release: from its texts to its gradients.

Rows are laid out by our own reader, packed and padded on the right; the release pads on the left.
Its two stage-2 checkpoints hold the same weights as those that all stages' numbers were made with.
What must hold whatever the numbers are is shown with a checkpoint made here.
"""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Mesh
from clara_jax.data.question_lengths import measure
from clara_jax.data.question_rows import QuestionRows, Shapes
from clara_jax.data.reader import Reader
from clara_jax.data.records import QaRecord
from clara_jax.exchange import import_model
from clara_jax.inference.encode import compress
from clara_jax.runs.setup import Loaded, restore
from clara_jax.sharding import make_mesh
from clara_jax.training.objectives import OBJECTIVES, Draw, weights
from clara_jax.training.step import means, totals
from tests.fixtures.models import altered

STAGES = {"instruct": "stage1_2", "e2e": "stage2", "contrastive": "stage2_pretrain_retrieval"}
ADAPTERS = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
    "decoder_adapter": "generator",
}
PARTS = {"self_attn": "attention", "mlp": "mlp"}


def imported(folder, workdir) -> Loaded:
    """The stage-2 checkpoint of a folder, with five candidates and no dropout."""
    import_model.run(
        str(folder / "ckpt_mistral_stage2"), str(workdir), str(folder / "base_mistral")
    )
    setup = restore(str(workdir), make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    lora = dataclasses.replace(setup.model.config.lora, dropout=0.0)
    select = dataclasses.replace(setup.model.config.select, candidates=5, compat=True)
    assert select.k == 2
    return altered(
        setup,
        config=dataclasses.replace(setup.model.config, lora=lora, select=select),
        decoder=dataclasses.replace(setup.model.decoder, lora=lora),
    )


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory):
    folder, workdir = shared / "golden", tmp_path_factory.mktemp("golden") / "imported"
    setup = imported(folder, workdir)
    with np.load(folder / "golden_mistral.npz") as file:
        arrays = dict(file)
    scalars = json.loads((folder / "golden_mistral.json").read_text())
    examples = json.loads((folder / "texts.json").read_text())["examples"]
    records = [
        QaRecord(
            e["question"], tuple(e["docs"]), (e["answer"],), tuple(e["pos_index"]), f"texts:{i}"
        )
        for i, e in enumerate(examples)
    ]
    return types.SimpleNamespace(setup=setup, arrays=arrays, scalars=scalars, records=records)


def told(i: int) -> str:
    """A text of more tokens than are read."""
    name, stuff = ("Ada", "Bo", "Cy")[i % 3], ("oak", "iron", "stone", "rope")[i % 4]
    return f"Bridge {i} was built of {stuff} by {name} in {1800 + 7 * i}. " * 3


@pytest.fixture(scope="module")
def made(release, tmp_path_factory):
    """The like of `golden` without its numbers, and what e2e gives for its records."""
    setup = imported(release, tmp_path_factory.mktemp("made") / "imported")
    golds = [(1,), (3, 1), (0, 2, 4), (2,)]
    records = [
        QaRecord(
            f"who built bridge {i}?", tuple(map(told, range(5 * i, 5 * i + 5))), ("Bo",), gold, ""
        )
        for i, gold in enumerate(golds)
    ]
    made = types.SimpleNamespace(setup=setup, records=records)
    made.e2e = stage_setup(made, "e2e")
    made.batch, _ = lay_out(made, made.e2e)
    made.found = run(made.e2e, made.batch)
    return made


def stage_setup(golden, stage: str, **select) -> Loaded:
    config = golden.setup.model.config
    select = dataclasses.replace(config.select, **select)
    config = dataclasses.replace(config, stage=stage, select=select)
    return altered(golden.setup, config=config)


def lay_out(golden, setup: Loaded, records=None) -> tuple[dict, Reader]:
    records = golden.records if records is None else records
    if setup.model.config.stage == "instruct":  # the release takes the first documents
        records = [
            dataclasses.replace(
                r, documents=r.documents[:2], gold=tuple(g for g in r.gold if g < 2)
            )
            for r in records
        ]
    reader = Reader(records, setup.model.layout, setup.model.config)
    rows = QuestionRows(reader, measure(reader, compress=True))
    if setup.model.config.stage == "instruct":
        object.__setattr__(reader, "picked", records.__getitem__)  # in the order given
    rows = [rows(i) for i in range(len(records))]
    return {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}, reader


def run(setup: Loaded, batch: dict, names: tuple[str, ...] = tuple(ADAPTERS.values())):
    """Means, gradients of all three adapters and the scores."""
    objective, weight = OBJECTIVES[setup.model.config.stage], weights(setup.model.config)

    @jax.jit
    def compute(trained, frozen, batch):
        def loss(trained):
            found = objective(setup.model, {**frozen, **trained}, batch, Draw(tau=0.02))
            mean = means(found.sums, totals(setup.model, batch))
            return sum(w * mean[name] for name, w in weight.items()), (mean, found.scores_BN)

        return jax.grad(loss, has_aux=True)(trained)

    trained = {name: setup.trees[name] for name in names}
    frozen = {name: tree for name, tree in setup.trees.items() if name not in trained}
    grads, (mean, scores) = compute(trained, frozen, batch)
    return mean, grads, scores


def our_leaf(tree, name):
    match = re.fullmatch(
        r"model\.layers\.(\d+)\.(\w+)\.(\w+)_proj\.lora_([AB])\.(\w+)\.weight", name
    )
    layer, part, linear, matrix, adapter = match.groups()
    leaf = tree[ADAPTERS[adapter]]["layers"][PARTS[part]][linear][matrix.lower()][int(layer)]
    return leaf if matrix == "A" else leaf.T


@pytest.fixture(scope="module", params=["instruct", "e2e"])
def case(request, golden):
    setup = stage_setup(golden, request.param)
    batch, reader = lay_out(golden, setup)
    return request.param, batch, reader, run(setup, batch)


def test_token_ids_are_the_releases(golden, case):
    stage, batch, reader, _ = case
    get = lambda name: golden.arrays[f"{STAGES[stage]}/{name}"]  # noqa: E731
    for i in range(len(golden.records)):
        whole = get("dec_input_ids")[i][get("dec_attention_mask")[i] > 0]
        valid = batch["dec_segments"][i] > 0
        np.testing.assert_array_equal(batch["dec_tokens"][i][valid], whole)
        labels = get("labels")[i]
        np.testing.assert_array_equal(
            batch["dec_targets"][i][batch["dec_targets"][i] != -100], labels[labels != -100]
        )
        if stage == "e2e":
            query = get("query_input_ids")[i][get("query_attention_mask")[i] > 0]
            np.testing.assert_array_equal(
                batch["qry_tokens"][i][batch["qry_segments"][i] > 0], query
            )
    each = len(get("enc_input_ids")) // len(golden.records)
    for row, (ids, mask) in enumerate(
        zip(get("enc_input_ids"), get("enc_attention_mask"), strict=True)
    ):
        document = golden.records[row // each].documents[row % each]
        np.testing.assert_array_equal(reader.layout.document_ids(document)[0], ids[mask > 0])


def test_losses(golden, case):
    stage, _, _, (mean, _, _) = case
    expected = golden.scalars[f"{STAGES[stage]}/loss"]
    assert float(mean["ce_loss"]) == pytest.approx(expected, rel=1e-5)
    if stage == "instruct":
        expected = golden.scalars["stage1_2/mse_loss"]
        assert float(mean["mse_loss"]) == pytest.approx(expected, rel=1e-4)


def test_gradients(golden, case):
    stage, _, _, (_, grads, _) = case
    norms = golden.scalars[f"{STAGES[stage]}/grad_norms"]
    compared = 0
    for name, norm in norms.items():
        if "lora_" not in name or (stage == "instruct" and "reasoner" in name):
            continue
        gradient = np.asarray(our_leaf(grads, name))
        if norm is None:
            assert "encoder" in name and not gradient.any(), name
            continue
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-2), name
        expected = golden.arrays[f"{STAGES[stage]}/grad/{name}"]
        np.testing.assert_allclose(gradient, expected, atol=5e-3 * np.abs(expected).max())
        compared += 1
    assert compared == 2 * 2 * 7 * golden.setup.model.architecture.n_layers
    untouched = "reasoner" if stage == "instruct" else "compressor"
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[untouched]))


def test_scores_and_choice(golden, case):
    stage, _, _, (_, _, scores) = case
    if stage == "e2e":
        np.testing.assert_allclose(scores, golden.arrays["stage2/scores"], atol=1e-5)
        chosen = np.argsort(-np.asarray(scores), axis=1)[:, :2]
        np.testing.assert_array_equal(chosen, golden.arrays["stage2/topk_idx"])


def test_contrastive_loss_trains_the_reasoner_alone(golden):
    setup = stage_setup(golden, "contrastive")
    batch, _ = lay_out(golden, setup)
    assert "dec_tokens" not in batch
    mean, grads, _ = run(setup, batch)
    expected = golden.scalars["stage2_pretrain_retrieval/loss"]
    assert float(mean["contrastive_loss"]) == pytest.approx(expected, rel=1e-4)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["reasoner"]))
    for name in ("compressor", "generator"):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[name]))


def test_recall_and_reciprocal_rank(made):
    mean, _, scores = made.found
    recall, ranks = {k: [] for k in (1, 3, 5)}, []
    for row, record in zip(np.asarray(scores), made.records, strict=True):
        order = list(np.argsort(-row))
        for k in recall:
            recall[k].append(len(set(order[:k]) & set(record.gold)) / len(record.gold))
        ranks.append(1 / (1 + min(order.index(g) for g in record.gold)))
    for k, values in recall.items():
        assert float(mean[f"recall@{k}"]) == pytest.approx(np.mean(values))
    assert float(mean["mrr"]) == pytest.approx(np.mean(ranks))


def test_memories_computed_once_give_the_same_loss(made):
    mean, grads, _ = made.found
    kept = {k: v for k, v in made.batch.items() if not k.startswith(("enc_", "doc_places"))}
    documents = [document for record in made.records for document in record.documents]
    memories = compress(made.setup.model, made.setup.trees, documents).memories
    kept["memories"] = jnp.asarray(memories.reshape(4, 5, 4, 64))
    kept_mean, kept_grads, _ = run(made.e2e, kept)
    for name in mean.keys() & kept_mean.keys():
        assert float(mean[name]) == pytest.approx(float(kept_mean[name]), rel=1e-5), name
    for name in ("reasoner", "generator"):
        for one, other in zip(
            jax.tree.leaves(grads[name]), jax.tree.leaves(kept_grads[name]), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(one).max())


def test_hard_selection_gives_the_reasoner_exactly_no_gradient(made):
    mean, grads, _ = run(stage_setup(made, "e2e", method="hard"), made.batch)
    assert float(mean["ce_loss"]) == pytest.approx(float(made.found[0]["ce_loss"]), rel=1e-5)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["reasoner"]))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["generator"]))


def test_auxiliary_contrastive_loss_adds_to_the_reasoners_gradient(made):
    plain = made.e2e
    with_aux = altered(plain, config=dataclasses.replace(plain.model.config, aux_contrastive=0.5))
    only = stage_setup(made, "contrastive")
    both, alone = (run(s, made.batch)[1] for s in (with_aux, only))
    trees = (g["reasoner"] for g in (made.found[1], both, alone))
    for a, b, c in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(b, a + 0.5 * c, atol=1e-4 * np.abs(b).max())


def test_fewer_candidates_than_slots_and_padding_change_nothing(made):
    """A question with one candidate among padding is the question with one candidate."""
    setup = stage_setup(made, "e2e", compat=False)
    short = [dataclasses.replace(r, documents=r.documents[:1], gold=()) for r in made.records[:2]]
    padded, _ = lay_out(made, setup, short)
    exact, _ = lay_out(made, stage_setup(made, "e2e", candidates=1, k=1), short)
    assert padded["doc_valid"].sum() == 2 and padded["doc_valid"].shape[1] == 5
    mean, grads, _ = run(setup, padded)
    expected, *_ = run(stage_setup(made, "e2e", candidates=1, k=1), exact)
    assert float(mean["ce_loss"]) == pytest.approx(float(expected["ce_loss"]), rel=1e-6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["reasoner"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_documents_that_do_not_fit_are_left_out_gold_ones_last(made):
    reader = Reader(made.records, made.e2e.model.layout, made.e2e.model.config)
    row = QuestionRows(reader, Shapes(2, 71, 96, 512))(2)
    assert row["doc_valid"].tolist() == [1, 1, 0, 0, 0]
    assert row["doc_gold"].tolist() == [1, 1, 0, 0, 0]  # two of its three gold documents
