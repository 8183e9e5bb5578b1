import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clara_jax.errors import UserError
from clara_jax.interop import base, peft
from clara_jax.interop.torch_zip_write import write as write_torch
from clara_jax.models.config import LINEAR_NAMES, LoraConfig, ModelConfig
from clara_jax.models.decoder import Decoder, embed, head_logits
from clara_jax.models.lora import init_adapter

MODEL = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8
)
LORA = LoraConfig(rank=3, alpha=7.5, dropout=0.125)

# What `adapter_config.json` of older PEFT versions holds.
OLD = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "lora_alpha": 12, "lora_dropout": 0.05,
    "modules_to_save": None, "r": 3, "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "org/base", "layers_to_transform": None, "layers_pattern": None,
}  # fmt: skip


def random_adapter(lora=LORA, seed=0):
    tree = init_adapter(MODEL, lora, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def change(directory, **settings):
    """Changes settings of a written adapter; `...` takes one out."""
    path = directory / "adapter_config.json"
    settings = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))


def change_tensors(directory, update):
    path = directory / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    update(tensors)
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("targets", [LINEAR_NAMES, ("q", "v"), ("down",)])
def test_what_is_written_is_read(tmp_path, targets):
    lora = dataclasses.replace(LORA, targets=targets)
    adapter = random_adapter(lora)
    peft.write(tmp_path / "new" / "folder", adapter, lora, MODEL, "org/base")
    read, settings = peft.read(tmp_path / "new" / "folder", MODEL)
    assert_same(read, adapter)
    assert settings == lora
    data = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert data["target_modules"] == sorted(f"{name}_proj" for name in targets)
    assert (data["base_model_name_or_path"], data["lora_alpha"]) == ("org/base", 7.5)


def test_bfloat16_adapters(tmp_path):
    adapter = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_adapter())
    peft.write(tmp_path, adapter, LORA, MODEL)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    read, _ = peft.read(tmp_path, MODEL)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read))
    assert_same(read, jax.tree.map(lambda x: np.asarray(x, np.float32), adapter))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_torch_files(tmp_path, dtype):
    adapter = random_adapter()
    peft.write(tmp_path, adapter, LORA, MODEL)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {k: v.astype(dtype) for k, v in safetensors.numpy.load_file(path).items()}
    path.unlink()
    write_torch(tmp_path / "adapter_model.bin", tensors)
    read, _ = peft.read(tmp_path, MODEL)
    assert_same(read, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), adapter))
    write_torch(tmp_path / "adapter_model.bin", {"nested": tensors})
    with pytest.raises(UserError, match=r"adapter_model\.bin: nested is not a tensor"):
        peft.read(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        ("all-linear", LINEAR_NAMES),
        (["v_proj", "q_proj"], ("q", "v")),
        (["mlp.up_proj", "o_proj"], ("o", "up")),
        (r".*\.layers\.\d+\.self_attn\.(q|k)_proj", ("q", "k")),
        ([f"model.layers.{i}.mlp.down_proj" for i in range(2)], ("down",)),
        (["model.layers.0.mlp.down_proj"], None),
    ],
)
def test_target_modules(tmp_path, modules, targets):
    (tmp_path / "adapter_config.json").write_text(json.dumps(OLD | {"target_modules": modules}))
    if targets is None:
        with pytest.raises(UserError, match="target_modules has down_proj of some layers only"):
            peft.read_settings(tmp_path, MODEL)
    else:
        assert peft.read_settings(tmp_path, MODEL).targets == targets


def test_rank_stabilised_scale(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(OLD | {"use_rslora": True}))
    assert peft.read_settings(tmp_path, MODEL).scale == pytest.approx(12 / 3**0.5)
    (tmp_path / "adapter_config.json").write_text(json.dumps(OLD))
    assert peft.read_settings(tmp_path, MODEL).scale == 4.0


def test_patterns_that_say_nothing_new(tmp_path):
    patterns = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 12}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(OLD | patterns))
    assert peft.read_settings(tmp_path, MODEL).rank == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, only 'LORA'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported, only 'none'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is not"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern gives q_proj 8, the others have 3"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern gives q_proj 8"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target module 'lm_head' is not supported"),
        ({"target_modules": ["roj"]}, "target module 'roj' is not supported; this base's are down"),
        ({"target_modules": "(("}, "not a PEFT adapter's settings"),
        ({"target_modules": None}, "not a PEFT adapter's settings"),
        ({"target_modules": ...}, "'target_modules' is missing"),
        ({"r": ...}, "'r' is missing"),
        ({"r": 0}, "r=0 is not a whole number from 1 to 16384"),
        ({"lora_alpha": "x"}, "lora_alpha='x' is not a number"),
        ({"lora_dropout": "x"}, "not a PEFT adapter's settings"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, settings, message):
    peft.write(tmp_path, random_adapter(), LORA, MODEL)
    change(tmp_path, **settings)
    with pytest.raises(UserError, match=rf"adapter_config\.json: .*{message}") as error:
        peft.read(tmp_path, MODEL)
    assert "\n" not in str(error.value)


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda t: t.pop(Q), f"tensor {Q} is missing"),
        (
            lambda t: t.update({Q: np.ones((4, 32), np.float32)}),
            r"\[4, 32\].*\[3, 32\].*right base",
        ),
        (
            lambda t: t.update({Q: np.full((3, 32), np.nan, np.float32)}),
            f"tensor {Q} holds numbers",
        ),
        (lambda t: t.update({Q: np.ones((3, 32), np.int8)}), f"tensor {Q} has dtype int8"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": np.ones((64, 32), np.float32)}),
            "unknown tensor base_model.model.lm_head.weight",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, update, message):
    peft.write(tmp_path, random_adapter(), LORA, MODEL)
    change_tensors(tmp_path, update)
    with pytest.raises(UserError, match=rf"adapter_model\.safetensors: .*{message}"):
        peft.read(tmp_path, MODEL)


def test_missing_and_damaged_files_are_named(tmp_path):
    peft.write(tmp_path, random_adapter(), LORA, MODEL)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"safetensors: not a readable safetensors file"):
        peft.read(tmp_path, MODEL)
    path.unlink()
    with pytest.raises(UserError, match=r"neither adapter_model\.safetensors nor"):
        peft.read(tmp_path, MODEL)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        peft.read(tmp_path, MODEL)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"no such file; is this a PEFT adapter's directory\?"):
        peft.read(tmp_path, MODEL)


# --- PEFT itself ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model in transformers' layout."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    directory = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.2,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


TOKENS = np.random.default_rng(0).integers(0, 64, (2, 7))


def our_logits(directory, adapter, lora):
    config = base.read_config(directory)
    params = base.load_params(directory, config)
    tokens = jnp.asarray(TOKENS)
    positions = jnp.tile(jnp.arange(7)[None], (2, 1))
    hidden = Decoder(config, lora).apply(
        {"params": params, "lora": adapter}, embed(config, params, tokens), positions
    )[0]
    return np.asarray(head_logits(config, params, hidden))


def their_logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.as_tensor(TOKENS)).logits.numpy()


def load(directory):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32")


@pytest.mark.parametrize("targets", [LINEAR_NAMES, ("q", "v", "down")])
def test_peft_loads_our_adapter_with_our_numbers(tmp_path, tiny, targets):
    import peft as theirs

    lora = dataclasses.replace(LORA, targets=targets)
    adapter = jax.tree.map(lambda x: 0.3 * x, random_adapter(lora))
    peft.write(tmp_path, adapter, lora, MODEL, str(tiny))
    model = theirs.PeftModel.from_pretrained(load(tiny), tmp_path)
    ours, plain = our_logits(tiny, adapter, lora), their_logits(load(tiny))
    np.testing.assert_allclose(ours, their_logits(model), atol=1e-4)
    assert np.abs(ours - plain).max() > 0.5, "the adapter must show"
    model.save_pretrained(tmp_path / "again")
    read, settings = peft.read(tmp_path / "again", MODEL)
    assert_same(read, adapter)
    assert settings == lora


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "up_proj"]])
def test_adapter_of_peft_has_its_numbers_here(tmp_path, tiny, modules, use_rslora):
    import peft as theirs
    import torch

    settings = theirs.LoraConfig(
        task_type="CAUSAL_LM", r=5, lora_alpha=8, target_modules=modules, use_rslora=use_rslora,
        lora_dropout=0.1,
    )  # fmt: skip
    model = theirs.get_peft_model(load(tiny), settings)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    adapter, lora = peft.read(tmp_path, MODEL)
    assert (lora.rank, lora.dropout) == (5, 0.1)
    np.testing.assert_allclose(our_logits(tiny, adapter, lora), their_logits(model), atol=1e-4)
