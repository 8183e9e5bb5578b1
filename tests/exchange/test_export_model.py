"""--mode=export: every format holds what was trained, opens elsewhere and names no local path."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import clara_jax
from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Memory, Model, Select, Train, with_options
from clara_jax.errors import UserError
from clara_jax.exchange import export_model, import_model
from clara_jax.inference.answers import answer_prompts
from clara_jax.interop import base as base_lib
from clara_jax.interop import (
    clara_release,
    hf_config,
    hf_write,
    hub_ids,
    native,
    torch_zip_write,
)
from clara_jax.interop.torch_zip import TorchFile
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import init_params
from clara_jax.runs import setup as setup_lib
from clara_jax.runs import weights as weights_lib
from clara_jax.runs.lineage import save_origins
from clara_jax.runs.load import load_setup
from clara_jax.stages import ADAPTERS
from clara_jax.training.train import train
from tests.fixtures.models import altered, noised, save

PARTS = ("embed", "head")  # of a base, which are loaded quickly
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FILES = ("adapters.pth", "decoder_first_last_layers.pth")


def tensors(path) -> dict[str, np.ndarray]:
    """All tensors of a torch file by their path."""
    file = TorchFile(path)

    def walk(value, name):
        if isinstance(value, dict):
            return {k: v for key, x in value.items() for k, v in walk(x, f"{name}{key} ").items()}
        return {name: file.array(name, value)}

    return walk(file.content, "")


def export(workdir, format, output, base=None) -> pathlib.Path:
    export_model.run(str(workdir), format, str(output), base)
    local = str(pathlib.Path(workdir).parent)
    for path in output.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert local not in path.read_text(), f"{path} names a folder of this machine"
    return output


# --- Checkpoints of the release, there and back ---------------------------------------------------


@pytest.fixture(scope="module")
def stage2(release, tmp_path_factory):
    """The checkpoint after the last stage, imported."""
    workdir, base = tmp_path_factory.mktemp("imported") / "stage2", release / "base_mistral"
    import_model.run(str(release / "ckpt_mistral_stage2"), str(workdir), str(base))
    return workdir


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_tensor_of_the_release_comes_back_bit_for_bit(shared, tmp_path, stage):
    folder, original, imported = shared / "golden", f"ckpt_mistral_{stage}", tmp_path / "imported"
    import_model.run(str(folder / original), str(imported), str(folder / "base_mistral"))
    made = export(imported, "release", tmp_path / "x")
    for name in FILES:
        ours, theirs = tensors(made / name), tensors(folder / original / name)
        if name == "adapters.pth":  # some repeat embedding and head in every adapter (fault 8)
            theirs = {k: v for k, v in theirs.items() if "lora_" in k}
        assert set(ours) == set(theirs) and len(theirs) > 1
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype
            np.testing.assert_array_equal(ours[key], tensor, err_msg=key)
    ours, theirs = (
        json.loads((path / "config.json").read_text()) for path in (made, folder / original)
    )
    names = {"decoder_model_name", "compr_base_model_name", "transformers_version"}
    different = {k for k in {*ours, *theirs} - names if ours.get(k) != theirs.get(k)}
    assert different <= {"_attn_implementation_autoset", "attn_implementation"}
    assert ours["decoder_model_name"] == "base_mistral"


def test_a_checkpoint_in_bfloat16_comes_back_in_bfloat16(release, tmp_path):
    folder = release
    source = tmp_path / "source"
    source.mkdir()

    def halve(value, file):
        if isinstance(value, dict):
            return {k: halve(v, file) for k, v in value.items()}
        return file.array("", value).astype(ml_dtypes.bfloat16)

    for name in FILES:
        file = TorchFile(folder / "ckpt_mistral_stage2" / name)
        torch_zip_write.write(source / name, halve(file.content, file))
    settings = (folder / "ckpt_mistral_stage2" / "config.json").read_text()
    (source / "config.json").write_text(settings)
    import_model.run(str(source), str(tmp_path / "imported"), str(folder / "base_mistral"))
    made = export(tmp_path / "imported", "release", tmp_path / "x")
    for name in FILES:
        ours, theirs = tensors(made / name), tensors(source / name)
        assert set(ours) == set(theirs)
        for key, tensor in theirs.items():
            assert ours[key].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(ours[key].view(np.uint16), tensor.view(np.uint16), key)


QUESTION = "who opened the bridge, and when?"


def logits_of(clara, ids, role):
    """Ours [T, V] for a row of ids, the added tokens' included."""
    from clara_jax.models import clara as model_lib
    from clara_jax.models.decoder import head_logits

    setup = clara
    positions = np.arange(len(ids), dtype=np.int32)[None]

    @jax.jit
    def logits(trees, tokens):
        x = model_lib.embed(setup.model.architecture, trees, tokens)
        hidden, _ = model_lib.run(setup.model.decoder, trees, role, x, positions)
        return head_logits(
            setup.model.architecture, trees["base"], hidden, trees["added"].get("head")
        )

    return np.asarray(logits(setup.trees, np.asarray(ids, np.int32)[None]))[0]


def test_the_release_gives_our_logits_in_torch(release, stage2, tmp_path):
    """What its loader does: a base with more tokens, adapters by name, both tables put in."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    made = export(stage2, "release", tmp_path / "x")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        release / "base_mistral", dtype=torch.float32
    )
    files = {name: torch.load(made / name, weights_only=True) for name in FILES}
    model.resize_token_embeddings(len(files[FILES[1]][EMBED]))
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    # PEFT by itself: `model.load_adapter` of transformers 5.24 wants a PEFT that is not out yet.
    for name, weights in files["adapters.pth"].items():
        peft.inject_adapter_in_model(lora, model, adapter_name=name)
        assert not peft.set_peft_model_state_dict(model, weights, name).unexpected_keys
    missing = model.load_state_dict(files["decoder_first_last_layers.pth"], strict=False)
    assert not missing.unexpected_keys
    clara = clara_jax.load(stage2)
    ids = clara.model.tokenizer.encode([clara.model.extra.enc, QUESTION, *clara.model.extra.memory])
    for theirs, ours in (
        ("encoder_adapter", "compressor"),
        ("query_reasoner_adapter", "reasoner"),
        ("decoder_adapter", "generator"),
    ):
        for layer in model.modules():
            if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
                layer.set_adapter(theirs)
        with torch.no_grad():
            expected = model.eval()(input_ids=torch.tensor([ids])).logits[0].numpy()
        found = logits_of(clara, ids, ours)
        assert found.shape == expected.shape == (len(ids), 8199)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_peft_and_merged_give_our_logits_and_answers_in_torch(release, stage2, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    clara = clara_jax.load(stage2)
    plain = clara.model.tokenizer.encode(QUESTION)
    adapters = export(stage2, "peft", tmp_path / "peft")
    for name in ("compressor", "reasoner", "generator"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            release / "base_mistral", dtype=torch.float32
        )
        model = peft.PeftModel.from_pretrained(model, adapters / name).eval()
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([plain])).logits[0].numpy()
        found = logits_of(clara, plain, name)[:, :8192]
        np.testing.assert_allclose(found, expected, atol=1e-4)

    merged = export(stage2, "merged", tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([plain])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(clara, plain, "generator")[:, :8192], expected, atol=1e-4)
    # Memories as prompt embeddings.
    documents = ["The bridge was opened in 1987 by Ada Holm.", "A dog sat there."]
    (given,) = clara.prompt_embeddings([QUESTION], [documents])
    ids, _ = answer_prompts(clara.model, [QUESTION], [clara.compress(documents)])[0].tokens, None
    assert given.shape == (len(ids), 64)
    out = model.generate(
        inputs_embeds=torch.tensor(given)[None], max_new_tokens=8, do_sample=False,
        attention_mask=torch.ones((1, len(given)), dtype=torch.long),
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    assert text.strip() == clara.answer([QUESTION], [documents], max_new_tokens=8)[0]


# --- Runs that were trained here ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An e2e run on adapters after an scp run that trained the base itself, and one on adapters.

    Their weights differ from where they start by noise: no program of a step is compiled.
    """
    folder = tmp_path_factory.mktemp("trained")

    def train(config, workdir):
        started = setup_lib.start(config)
        moved = {name: started.trees[name] for name in config.trained}
        save(altered(started, trees=started.trees | noised(moved, 0)), workdir)

    scp = Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=192),
        data=Data(sources="facts:60", document_length=40, rate=10),
        memory=Memory(init="tokens"),
        select=Select(k=2, candidates=4),
        train=Train(full=True),
        mesh=config_lib.Mesh(fsdp=1),
    )
    train(scp, folder / "full")
    lora = dataclasses.replace(scp, train=dataclasses.replace(scp.train, full=False))
    train(lora, folder / "lora")
    for name in ("full", "lora"):
        e2e = dataclasses.replace(lora, stage="e2e", init_from=str(folder / name))
        train(e2e, folder / f"{name}_e2e")
    return folder


DOCUMENTS = ["the red fox lives in the old town", "the doctor sings", "who is the cook"]


def numbers(clara):
    return clara.compress(DOCUMENTS), clara.rank(["who is the cook"], [DOCUMENTS])


def assert_same(first, second) -> None:
    for ours, theirs in zip(numbers(first), numbers(second), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    ask = {"questions": ["who ?"], "candidates": [DOCUMENTS], "top_k": 2, "max_new_tokens": 6}
    assert first.ask(**ask)[0].text == second.ask(**ask)[0].text


@pytest.mark.parametrize(
    "run", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "full", "full_e2e")),
            "lora_e2e"],
)  # fmt: skip
def test_native_needs_no_other_file(trained, tmp_path, run):
    """The base is no file anywhere, so it is in there too; earlier runs are not needed."""
    made = export(trained / run, "native", tmp_path / "x")
    moved = made.rename(tmp_path / "elsewhere")
    config = config_lib.load(moved / "config.json")
    assert config.model.base == "./base" and not config.init_from and not config.data.sources
    assert_same(clara_jax.load(moved), clara_jax.load(trained / run))


def test_an_export_that_holds_its_base_is_exported_whole_again(trained, tmp_path):
    first = export(trained / "full_e2e", "native", tmp_path / "first")
    import_model.run(str(first), str(tmp_path / "imported"))
    for number, source in enumerate((first, tmp_path / "imported")):
        again = export(source, "native", tmp_path / f"again{number}")
        assert_same(clara_jax.load(again), clara_jax.load(trained / "full_e2e"))
        merged = export(source, "merged", tmp_path / f"merged{number}")
        names = [set(safetensors.numpy.load_file(p / "model.safetensors")) for p in
                 (merged, first / "base")]  # fmt: skip
        assert names[0] == names[1] and len(names[0]) > 30
        with pytest.raises(UserError, match="use --format=native"):
            export_model.run(str(source), "peft", str(tmp_path / "x"))
    with pytest.raises(UserError, match="a plain Hugging Face model"):
        clara_jax.load(tmp_path / "merged0")
    with pytest.raises(UserError, match=r"lies inside"):
        export_model.run(str(first), "native", str(first / "inside"))


def test_merged_of_a_base_trained_here_is_that_base(trained, tmp_path):
    made = export(trained / "full", "merged", tmp_path / "x")
    base = setup_lib.restore(str(trained / "full")).trees["base"]
    model = hf_config.read_config(made)
    jax.tree.map(np.testing.assert_array_equal, base_lib.load_params(made, model), base)


@pytest.mark.parametrize("format", ["release", "peft"])
def test_what_formats_cannot_hold_is_refused(trained, tmp_path, format):
    for run in ("full", "lora"):
        with pytest.raises(UserError, match=r"base was trained or drawn here; use --format=native"):
            export_model.run(str(trained / run), format, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


# --- The base it was trained on, and damage ------------------------------------------------------


def rewritten(base, folder, change=lambda x: x, **dtype) -> pathlib.Path:
    """A copy of a base with other weights, or the same in another dtype."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    model = base_lib.read_config(base)
    params = change(base_lib.load_params(base, model))
    hf_write.save_params(folder, params, model, **dtype)
    return folder


def finetuned(params):
    params["layers"]["attention"]["v"]["kernel"] *= 1.02
    return params


def test_another_base_of_the_same_shapes_is_refused_and_a_copy_is_not(release, stage2, tmp_path):
    base = release / "base_mistral"
    other = rewritten(base, tmp_path / "other", finetuned)
    copy = rewritten(base, tmp_path / "copy", dtype="bfloat16")
    for path in (stage2, export(stage2, "native", tmp_path / "x")):
        load_setup(path, str(copy), "int8", PARTS)
        with pytest.raises(UserError, match=r"other: another base \(hash \w+\) than that of ") as e:
            load_setup(path, str(other))
        assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    with pytest.raises(UserError, match="another base"):
        import_model.run(str(tmp_path / "x"), str(tmp_path / "y"), str(other))
    # Runs of an earlier version know no hash.
    path = tmp_path / "x" / "config.json"
    path.write_text(re.sub(r'"base_hash": "\w+"', '"base_hash": ""', path.read_text()))
    load_setup(tmp_path / "x", str(other), parts=PARTS)

    config = config_lib.load(stage2 / "config.json")
    begun = tmp_path / "run"
    (begun / "checkpoints" / "1").mkdir(parents=True)
    values = {
        "model.base": str(other),
        "data.sources": "facts:60",
        "data.shards": 1,
        "stage": "scp",
    }
    config_lib.save(with_options(config, values), begun / "config.json")  # where another was
    values["model.base_hash"] = ""
    with pytest.raises(UserError, match="than that of this run"):
        train(with_options(config, values), str(begun))
    with pytest.raises(UserError, match=r"than that of .*stage2"):
        setup_lib.start(with_options(config, {**values, "init_from": str(stage2)}))


def test_a_flipped_byte_of_an_export_is_told(stage2, trained, tmp_path):
    cases = {
        "native": (export(stage2, "native", tmp_path / "native"), "weights.safetensors"),
        "peft": (export(stage2, "peft", tmp_path / "peft"), "generator/adapter_model.safetensors"),
        "release": (export(stage2, "release", tmp_path / "release"), "adapters.pth"),
        "base": (export(trained / "full", "native", tmp_path / "own"), "base/model.safetensors"),
    }
    base = config_lib.load(stage2 / "config.json").model.base
    for made, name in cases.values():
        path = made / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"differs from its checksum") as e:
            load_setup(made, base if "base" not in name else None)
        assert str(made) in str(e.value)
    with pytest.raises(UserError, match=r"weights.safetensors differs from its checksum"):
        import_model.run(str(tmp_path / "native"), str(tmp_path / "imported"))


# --- Families -------------------------------------------------------------------------------------

PHI = ModelConfig(
    vocab_size=8200, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8,
    family="phi3", tied_embeddings=True,
)  # fmt: skip
QWEN = dataclasses.replace(PHI, family="qwen3", qk_norm=True, tied_embeddings=False)


@pytest.fixture(
    scope="module",
    params=[pytest.param(PHI, marks=pytest.mark.slow), QWEN],
    ids=["phi3", "qwen3"],
)
def on_a_file(request, release, tmp_path_factory):
    """A run with random adapters on a base with a table larger than its tokenizer."""
    folder, model = tmp_path_factory.mktemp("family"), request.param
    base = folder / "base"
    draw = jax.jit(functools.partial(init_params, model))
    hf_write.save_params(base, draw(jax.random.key(0)), model)
    (base / "config.json").write_text(json.dumps(hf_config.hf_config(model)))
    for file in (
        *(release / "base_mistral").glob("*token*"),
        release / "base_mistral" / "chat_template.jinja",
    ):
        (base / file.name).write_text(file.read_text())
    config = Config(
        stage="e2e",
        model=Model(base=str(base)),
        data=Data(document_length=40, rate=10),
        mesh=config_lib.Mesh(fsdp=1),
    )
    setup = setup_lib.create(config)
    names = ("compressor", "reasoner", "generator", "memory", "added")
    fresh = weights_lib.fresh_trees(
        config,
        setup.model.architecture,
        setup.trees["base"],
        setup.model.mesh,
        ADAPTERS,
        0,
    )
    trees = jax.device_get(noised({name: fresh[name] for name in names}, 1, 0.1))
    (folder / "run").mkdir()
    native.write(folder / "run", trees, step=7)
    config_lib.save(config, folder / "run" / "config.json")
    save_origins(str(folder / "run"), config)
    return folder, trees


one_family = pytest.mark.parametrize("on_a_file", [QWEN], indirect=True, ids=["qwen3"])


@one_family
def test_a_merged_model_ends_where_its_base_does(on_a_file, tmp_path):
    folder, _ = on_a_file
    generation = {"eos_token_id": [2, 0, 5], "do_sample": False}
    (folder / "base" / "generation_config.json").write_text(json.dumps(generation))
    made = export(folder / "run", "merged", tmp_path / "x")
    assert json.loads((made / "generation_config.json").read_text()) == generation
    settings = json.loads((made / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local"} & set(settings)


@one_family
def test_a_full_disk_is_one_line(on_a_file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("No space left on device")

    folder, _ = on_a_file
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    for format in ("native", "peft", "merged"):
        with pytest.raises(UserError, match=rf"{tmp_path}/x.*cannot be written \(.*No space left"):
            export_model.run(str(folder / "run"), format, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


@one_family
def test_what_is_wrong_with_an_export_is_told_when_it_is_imported(on_a_file, tmp_path):
    folder, trees = on_a_file
    base = str(folder / "base")

    def message(source, base=base) -> str:
        with pytest.raises(UserError) as error:
            import_model.run(str(source), str(tmp_path / "w"), base)
        assert not (tmp_path / "w").exists()
        return str(error.value)

    made = export(folder / "run", "native", tmp_path / "native")
    (made / "checksums.json").unlink()
    assert "'/no/such' is neither a model directory" in message(made, "/no/such")
    assert "base 'base' is neither a model directory" in message(made, None)
    bad = {**trees, "memory": np.full_like(trees["memory"], np.nan)}
    native.write(made, bad, step=0)
    assert "memory holds NaN" in message(made)
    native.write(made, {**trees, "memory": trees["memory"][:3]}, step=0)
    assert "memory has shape [3, 32]" in message(made)
    made = export(folder / "run", "peft", tmp_path / "peft")
    (made / "checksums.json").unlink()
    path = made / "generator" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "lora_alpha": 2 * settings["lora_alpha"]}))
    assert "lora_alpha / r is 4, but" in message(made)
    path.write_text(json.dumps({**settings, "lora_alpha": 10**400}))
    assert "lora_alpha" in message(made) or "not a PEFT" in message(made)
    assert "a run that was trained here" in message(_trained_folder(tmp_path))


def _trained_folder(tmp_path) -> pathlib.Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


@one_family
def test_sigterm_leaves_nothing_half_written(on_a_file, tmp_path):
    folder, _ = on_a_file
    code = (
        "import os, signal, sys; from clara_jax.exchange import export_model as e;"
        "e.FORMATS['native'] = lambda *_: os.kill(os.getpid(), signal.SIGTERM);"
        f"e.run({str(folder / 'run')!r}, 'native', {str(tmp_path / 'x')!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 143, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["native", "peft", "release"])
def test_families_come_back_with_the_same_numbers(on_a_file, tmp_path, format):
    folder, trees = on_a_file
    made = export(folder / "run", format, tmp_path / "x")
    base = str(folder / "base")
    back = clara_jax.load(made, base=base)
    assert_same(back, clara_jax.load(folder / "run"))
    if format == "release":
        assert len(tensors(made / FILES[1])[f"{EMBED} "]) == 8192 + 4 + 3  # the tokenizer's
        # Again, from the rank that fused projections needed: it does not grow.
        import_model.run(str(made), str(tmp_path / "imported"), base)
        again = export(tmp_path / "imported", format, tmp_path / "y")
        for name in FILES:
            first, second = tensors(made / name), tensors(again / name)
            for key in first:
                np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    if format == "native":
        assert clara_jax.load(made, base=base).model.step == 7
        jax.tree.map(
            np.testing.assert_array_equal,
            native.read(made, trees, back.model.architecture, back.model.config.lora), trees,
        )  # fmt: skip


def test_a_checkpoint_looks_like_its_base_also_with_fused_projections(
    on_a_file, tmp_path, monkeypatch
):
    folder, _ = on_a_file
    made = export(folder / "run", "release", tmp_path / "x")
    model = hf_config.read_config(folder / "base")
    monkeypatch.setitem(hub_ids.PRESETS, "one", model)
    monkeypatch.setitem(hub_ids.PRESETS, "other", dataclasses.replace(model, d_ff=50))
    monkeypatch.setattr(hub_ids, "HUB_IDS", {"one": "org/one", "other": "org/other"})
    assert clara_release.looks_like(made) == ["org/one"]


@one_family
def test_another_alpha_is_the_same_in_the_release(on_a_file, tmp_path):
    folder, trees = on_a_file
    run = tmp_path / "run"
    run.mkdir()
    native.write(run, trees, step=0)
    config = config_lib.load(folder / "run" / "config.json")
    lora = dataclasses.replace(config.lora, alpha=80.0)
    config_lib.save(dataclasses.replace(config, lora=lora), run / "config.json")
    made = export(run, "release", tmp_path / "x")
    assert_same(clara_jax.load(made, base=folder / "base"), clara_jax.load(run))


@one_family
@pytest.mark.parametrize(
    ("group", "option", "value", "message"),
    [
        ("memory", "positions", "spread", "the release knows after alone"),
        ("memory", "kind", "pool", "the release knows tokens alone"),
        ("memory", "sees", "all", "the release knows before alone"),
    ],
)
def test_what_the_release_cannot_do_is_refused(on_a_file, tmp_path, group, option, value, message):
    folder, trees = on_a_file
    run = tmp_path / "run"
    run.mkdir()
    native.write(run, trees, step=0)
    config = config_lib.load(folder / "run" / "config.json")
    changed = dataclasses.replace(getattr(config, group), **{option: value})
    config_lib.save(dataclasses.replace(config, **{group: changed}), run / "config.json")
    with pytest.raises(UserError, match=message):
        export_model.run(str(run), "release", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


# --- Names and mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", ("mistralai/Mistral-7B-Instruct-v0.2", True)),
        ("/x/models--Qwen--Qwen3-0.6B/snapshots/0a", ("Qwen/Qwen3-0.6B", True)),
        ("/data/Qwen3-0.6B", ("Qwen/Qwen3-0.6B", True)),
        ("/x/SmolLM2-135M-Instruct.Q4_1.gguf", ("HuggingFaceTB/SmolLM2-135M-Instruct", True)),
        ("/data/Qwen3-0.6B-my-own", ("Qwen3-0.6B-my-own", False)),
    ],
)
def test_what_a_base_is_called_elsewhere(base, name):
    assert hub_ids.name_of(base) == name


def test_a_folder_may_say_what_it_is_called(tmp_path):
    (tmp_path / "config.json").write_text('{"_name_or_path": "someone/model"}')
    assert hub_ids.name_of(str(tmp_path)) == ("someone/model", True)
    (tmp_path / "config.json").write_text('{"_name_or_path": "/a/path/of/mine"}')
    assert hub_ids.name_of(str(tmp_path)) == (tmp_path.name, False)


def test_mistakes_on_the_command_line(command, tmp_path, capsys):
    def run(*arguments):
        assert command("--mode=export", *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    workdir = f"--workdir={tmp_path / 'w'}"
    assert "needs --format" in run(workdir, f"--output={tmp_path / 'x'}")
    assert "--format=onnx" in run(workdir, f"--output={tmp_path / 'x'}", "--format=onnx")
    (tmp_path / "there").write_text("")
    assert "is there already" in run(workdir, f"--output={tmp_path}", "--format=native")
    assert "neither a workdir" in run(workdir, f"--output={tmp_path / 'x'}", "--format=native")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
