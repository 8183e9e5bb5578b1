import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.interop import adapters
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params

MODEL = ModelConfig(
    vocab_size=20, d_model=8, d_ff=12, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=6
)
LORA = LoraConfig(rank=3, alpha=6.0)
LINEARS = {
    "self_attn.q_proj": (12, 8),
    "self_attn.k_proj": (6, 8),
    "self_attn.v_proj": (6, 8),
    "self_attn.o_proj": (8, 12),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}

# Bases whose projections are joined: q, k, v below each other, then gate, up.
FUSED = dataclasses.replace(MODEL, family="phi3")
FUSED_LINEARS = {
    "self_attn.qkv_proj": (24, 8),
    "self_attn.o_proj": (8, 12),
    "mlp.gate_up_proj": (24, 8),
    "mlp.down_proj": (8, 12),
}


def random_tensors(linears=LINEARS, rank=LORA.rank, prefix="", dtype=np.float32):
    rng = np.random.default_rng(0)
    tensors = {}
    for i in range(MODEL.n_layers):
        for name, (n_out, n_in) in linears.items():
            for leaf, shape in (("lora_A", (rank, n_in)), ("lora_B", (n_out, rank))):
                key = f"{prefix}model.layers.{i}.{name}.{leaf}.weight"
                tensors[key] = rng.standard_normal(shape).astype(dtype)
    return tensors


def random_adapter(lora=LORA):
    rng = np.random.default_rng(1)
    layers = abstract_params(MODEL)["layers"]
    tree = {}
    for group, name in ((g, n) for g in ("attention", "mlp") for n in layers[g]):
        if name in lora.targets:
            n_layers, n_in, n_out = layers[group][name]["kernel"].shape
            tree.setdefault(group, {})[name] = {
                "a": rng.standard_normal((n_layers, lora.rank, n_in)).astype(np.float32),
                "b": rng.standard_normal((n_layers, lora.rank, n_out)).astype(np.float32),
            }
    return {"layers": tree}


def products(tree):
    """What each linear layer's weights change by, but for the scale: [L, in, out]."""
    return {
        name: np.einsum("lri,lro->lio", leaf["a"], leaf["b"])
        for linears in tree["layers"].values()
        for name, leaf in linears.items()
    }


def assert_same_tree(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_tensor_arrives_in_its_place(dtype):
    tensors = random_tensors(dtype=dtype)
    tree = adapters.to_tree(tensors, "file", LORA, MODEL)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(tree))
    for name in LINEARS:
        group, short = name.removesuffix("_proj").split(".")
        leaf = tree["layers"][{"self_attn": "attention"}.get(group, group)][short]
        for i in range(MODEL.n_layers):
            key = f"model.layers.{i}.{name}"
            np.testing.assert_array_equal(leaf["a"][i], tensors[f"{key}.lora_A.weight"])
            np.testing.assert_array_equal(leaf["b"][i], tensors[f"{key}.lora_B.weight"].T)
    back = adapters.to_tensors(tree, MODEL)
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])
        assert tensor.flags.c_contiguous


def test_subset_of_linear_layers():
    lora = LoraConfig(rank=3, targets=("q", "down"))
    tree = random_adapter(lora)
    tensors = adapters.to_tensors(tree, MODEL)
    assert {name.split(".")[4] for name in tensors} == {"q_proj", "down_proj"}
    assert_same_tree(adapters.to_tree(tensors, "file", lora, MODEL), tree)


def test_tensors_keep_the_dtype_of_the_adapter():
    tree = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), random_adapter())
    for tensor in adapters.to_tensors(tree, MODEL).values():
        assert tensor.dtype == ml_dtypes.bfloat16


Q = "encoder: model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"file: tensor {Q} is missing"),
        (
            lambda t: t.update({Q: np.ones((3, 9), np.float32)}),
            rf"file: tensor {Q} has shape \[3, 9\], but .*\[3, 8\]; is it the right base\?",
        ),
        (lambda t: t.update({Q.replace("1", "2"): t[Q]}), f"unknown tensor {Q.replace('1', '2')}"),
        (lambda t: t.update({"other": t[Q]}), "unknown tensor other"),
        (
            lambda t: t.update({Q: np.full((3, 8), np.nan, np.float32)}),
            f"tensor {Q} holds numbers that are infinite or none",
        ),
        (
            lambda t: t.update({Q: np.full((3, 8), -np.inf, ml_dtypes.bfloat16)}),
            f"tensor {Q} holds numbers that are infinite or none",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message):
    tensors = random_tensors(prefix="encoder: ")
    change(tensors)
    with pytest.raises(UserError, match=message):
        adapters.to_tree(tensors, "file", LORA, MODEL, prefix="encoder: ")


def test_tensors_of_no_target_are_refused():
    lora = LoraConfig(rank=3, targets=("q", "v"))
    with pytest.raises(
        UserError, match=r"unknown tensor .* or it is none of the adapter's targets"
    ):
        adapters.to_tree(random_tensors(), "file", lora, MODEL)


# --- Fused projections ---------------------------------------------------------------------------


def test_fused_tensors_are_split_among_linear_layers_and_joined_again():
    tensors = random_tensors(FUSED_LINEARS)
    tree = adapters.to_tree(tensors, "file", LORA, FUSED)
    attention = tree["layers"]["attention"]
    for i in range(MODEL.n_layers):
        key = f"model.layers.{i}.self_attn.qkv_proj"
        for name, rows in (("q", slice(0, 12)), ("k", slice(12, 18)), ("v", slice(18, 24))):
            leaf = attention[name]
            np.testing.assert_array_equal(leaf["a"][i], tensors[f"{key}.lora_A.weight"])
            np.testing.assert_array_equal(leaf["b"][i], tensors[f"{key}.lora_B.weight"][rows].T)
    # All of a module have the same A: it stays one, and the rank as it was.
    back = adapters.to_tensors(tree, FUSED)
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_linear_layers_with_an_a_each_are_joined_at_a_higher_rank():
    tree = random_adapter()
    tensors = adapters.to_tensors(tree, FUSED)
    assert {name.split(".")[4] for name in tensors} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj",
    }  # fmt: skip
    ranks = {tensor.shape["lora_B" in name] for name, tensor in tensors.items()}
    assert ranks == {9}  # three of 3; modules of fewer are padded to the same
    wide = LoraConfig(rank=9, alpha=9 * LORA.scale)
    again = adapters.to_tree(tensors, "file", wide, FUSED)
    expected = products(tree)
    for name, product in products(again).items():
        np.testing.assert_allclose(product, expected[name], atol=1e-6)
    # Once joined, they are joined for good: the rank does not grow at every export.
    assert {
        name: tensor.tobytes() for name, tensor in adapters.to_tensors(again, FUSED).items()
    } == {name: tensor.tobytes() for name, tensor in tensors.items()}


def test_fused_tensors_of_a_subset():
    tree = random_adapter(LoraConfig(rank=3, targets=("q", "v")))
    tensors = adapters.to_tensors(tree, FUSED)
    assert {tensor.shape for tensor in tensors.values()} == {(6, 8), (24, 6)}
    lora = LoraConfig(rank=6, targets=("q", "k", "v"))
    again = products(adapters.to_tree(tensors, "file", lora, FUSED))
    assert (again["k"] == 0).all()
    for name, product in products(tree).items():
        np.testing.assert_allclose(again[name], product, atol=1e-6)


def test_fused_tensor_of_another_base_is_refused():
    tensors = random_tensors(FUSED_LINEARS | {"self_attn.qkv_proj": (30, 8)})
    with pytest.raises(UserError, match=r"qkv_proj.lora_B.weight has shape \[30, 3\].*\[24, 3\]"):
        adapters.to_tree(tensors, "file", LORA, FUSED)
