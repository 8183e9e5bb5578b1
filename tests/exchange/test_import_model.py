"""--mode=import: checkpoints of the release and PISCO's, and what is wrong with others."""

import collections
import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import clara_jax
from clara_jax import config as config_lib
from clara_jax.errors import UserError
from clara_jax.exchange import export_model, import_model
from clara_jax.interop import native, torch_zip_write
from clara_jax.interop.torch_zip import TorchFile
from clara_jax.training.train import train

ADAPTERS, TABLES = "adapters.pth", "decoder_first_last_layers.pth"
Q = "model.layers.1.self_attn.q_proj.lora_A.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """A copy of a stage-2 checkpoint and its base, to be damaged."""

    def __init__(self, release: pathlib.Path, folder: pathlib.Path, command):
        self.command = command
        self.source, self.base, self.workdir = folder / "ckpt", folder / "base", folder / "w"
        self.copy(release / "ckpt_mistral_stage2", self.source)
        self.copy(release / "base_mistral", self.base)

    @staticmethod
    def copy(source: pathlib.Path, target: pathlib.Path) -> None:
        target.mkdir()
        for file in source.iterdir():
            shutil.copyfile(file, target / file.name)

    def settings(self, **changes) -> None:
        path = self.source / "config.json"
        data = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))

    def tensors(self, file: str, change) -> None:
        """Writes a file again with its dict of arrays changed."""
        opened = TorchFile(self.source / file)

        def arrays(value):
            if isinstance(value, dict):
                return {k: arrays(v) for k, v in value.items()}
            return np.array(opened.array("", value))

        content = arrays(opened.content)
        change(content)
        torch_zip_write.write(self.source / file, content)

    def run(self) -> int:
        return self.command(
            "--mode=import", f"--source={self.source}", f"--base={self.base}",
            f"--workdir={self.workdir}",
        )  # fmt: skip


@pytest.fixture
def checkpoint(release, tmp_path, command) -> Checkpoint:
    return Checkpoint(release, tmp_path, command)


def test_what_is_imported_is_said(checkpoint, capsys):
    assert checkpoint.run() == 0
    shown = capsys.readouterr().out
    for text in (
        "stage e2e", "compressor, reasoner, generator\n", "rank 16, alpha 32",
        "4 vectors of a document of 64 tokens (rate 16), top 2", "serves    compress, encode_query",
        f"--config.init_from={checkpoint.workdir}",
    ):  # fmt: skip
        assert text in shown
    assert native.names(checkpoint.workdir) == (
        "added", "compressor", "generator", "memory", "reasoner"
    )  # fmt: skip
    mode = (checkpoint.workdir / native.WEIGHTS).stat().st_mode
    assert oct(mode)[-3:] == "644"
    # Again: what is there stays as it is.
    before = (checkpoint.workdir / "config.json").stat().st_mtime_ns
    assert checkpoint.run() == 2
    assert "is there already" in capsys.readouterr().err
    assert (checkpoint.workdir / "config.json").stat().st_mtime_ns == before


def cut(name):
    def damage(c):
        whole = (c.source / name).read_bytes()
        (c.source / name).write_bytes(whole[: len(whole) // 2])

    return damage


def other_base(c):
    """Of the same shapes."""
    tensors = safetensors.numpy.load_file(c.base / "model.safetensors")
    rng = np.random.default_rng(0)
    tensors[EMBED] = rng.standard_normal(tensors[EMBED].shape, np.float32)
    safetensors.numpy.save_file(tensors, c.base / "model.safetensors")


def larger_base(c):
    config = json.loads((c.base / "config.json").read_text())
    (c.base / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))


def base_of_type(c):
    config = json.loads((c.base / "config.json").read_text())
    (c.base / "config.json").write_text(json.dumps({**config, "model_type": "rwkv"}))


class Attack:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def code(c):
    with zipfile.ZipFile(c.source / ADAPTERS, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Attack(c.source / "marker"), 2))


def rank(c):
    def change(adapters):
        for tensors in adapters.values():
            for name in tensors:
                tensors[name] = tensors[name][:8] if "lora_A" in name else tensors[name][:, :8]

    c.tensors(ADAPTERS, change)


def poison(value):
    def damage(c):
        def change(adapters):
            adapters["query_reasoner_adapter"][Q][3, 4] = value

        c.tensors(ADAPTERS, change)

    return damage


def vocabulary(c):
    c.tensors(TABLES, lambda t: t.update({k: np.concatenate([v, v[:1]]) for k, v in t.items()}))


def elsewhere(c):
    c.source = c.source / "compression-16"


def beside(c):
    (c.source / "compression-16").mkdir()
    for file in list(c.source.iterdir()):
        if file.is_file():
            file.rename(c.source / "compression-16" / file.name)


def below_a_file(c):
    c.workdir = c.base / "config.json" / "w"


def endless(c):
    (c.source / ADAPTERS).unlink()
    (c.source / ADAPTERS).symlink_to("/dev/zero")


def pipe(c):
    (c.source / "config.json").unlink()
    os.mkfifo(c.source / "config.json")


def broken_template(c):
    (c.source / "chat_template.jinja").write_text("{% for %}")


def deep(c):
    (c.source / "tokenizer_config.json").write_text("[" * 100_000)


class Hidden(dict):
    """Pickles as an OrderedDict with an attribute in the place of a method."""

    def __reduce__(self):
        return collections.OrderedDict, (), {"items": "x"}


def hidden(c):
    with zipfile.ZipFile(c.source / ADAPTERS, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Hidden(), 2))


MALFORMED = {
    "truncated adapters": (cut(ADAPTERS), "adapters.pth: damaged"),
    "truncated tables": (cut(TABLES), f"{TABLES}: damaged"),
    "another base": (other_base, "is another than that of the base"),
    "a larger base": (larger_base, "is it the right base?"),
    "missing adapter": (
        lambda c: c.tensors(ADAPTERS, lambda a: a.pop("decoder_adapter")),
        "adapter decoder_adapter is missing (there is encoder_adapter, query_reasoner_adapter)",
    ),
    "NaN": (poison(np.nan), f"query_reasoner_adapter: {Q} holds"),
    "infinity": (poison(np.inf), f"query_reasoner_adapter: {Q} holds"),
    "NaN in a memory token": (
        lambda c: c.tensors(TABLES, lambda t: t[EMBED].__setitem__((8193, 0), np.nan)),
        f"tensor {EMBED} holds NaN",
    ),
    "code": (code, "refused: its pickle asks for posix.system"),
    "another rank": (rank, "has shape [8, 64]"),
    "rank in the settings": (lambda c: c.settings(lora_r=8), "ask for [8, 64]"),
    "vocabulary off by one": (vocabulary, "has shape [8200, 64]"),
    "rate in the settings": (lambda c: c.settings(compr_rate=32), "ask for [8197, 64]"),
    "unknown type of base": (base_of_type, "model_type 'rwkv' is not supported"),
    "unknown type of checkpoint": (
        lambda c: c.settings(model_type="BERT"), "model_type 'BERT' is not supported",
    ),
    "unknown stage": (lambda c: c.settings(training_stage="stage7"), "training_stage 'stage7'"),
    "no settings": (lambda c: (c.source / "config.json").write_text("{"), "not a CLaRa config"),
    "a rank beyond all widths": (lambda c: c.settings(lora_r=2**31 - 1), "from 1 to 16384"),
    "a file without end": (endless, "adapters.pth: not a file"),
    "settings that are a pipe": (pipe, "config.json: not a file"),
    "a broken chat template": (broken_template, "ckpt: the chat template cannot be used"),
    "a template's file too deep": (deep, "tokenizer_config.json: cannot be read"),
    "methods hidden by a pickle": (hidden, "adapter encoder_adapter is missing (there is none)"),
    "missing subfolder": (elsewhere, "has no folder 'compression-16'"),
    "subfolder not named": (beside, "/compression-16"),
    "target that cannot be written": (below_a_file, "cannot be written here (File exists)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_inputs_are_one_line_and_exit_code_2(checkpoint, capsys, case):
    damage, message = MALFORMED[case]
    damage(checkpoint)
    capsys.readouterr()
    assert checkpoint.run() == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("clara_jax: ") and message in lines[0], lines
    assert not list(checkpoint.source.rglob("marker"))
    left = {path.name for path in checkpoint.base.parent.iterdir()}
    assert left <= {"base", "ckpt"}, "something half-written is left"


def test_the_code_of_the_test_is_a_real_one(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "marker"), 2))
    assert (tmp_path / "marker").exists()


def test_a_checkpoint_without_an_adapter_says_what_it_can_do(checkpoint, capsys):
    checkpoint.settings(training_stage="stage2_pretrain_retrieval")
    checkpoint.tensors(ADAPTERS, lambda a: a.pop("decoder_adapter"))
    assert checkpoint.run() == 0
    shown = capsys.readouterr().out
    assert "compressor, reasoner (no generator)" in shown
    assert "serves    compress, encode_query, rank\n" in shown
    for model in (
        clara_jax.load(checkpoint.workdir),
        clara_jax.load(checkpoint.source, base=checkpoint.base),
    ):
        assert model.rank(["who?"], [["a man", "a dog"]]).shape == (1, 2)
        for call in (model.answer, model.ask):
            with pytest.raises(UserError, match=r"no generator and cannot .* can compress, enc"):
                call(["who?"], [["a man"]])
        with pytest.raises(UserError, match="no generator and cannot paraphrase"):
            model.paraphrase(["a man"])


def test_base_is_asked_for_with_what_it_looks_like(checkpoint, monkeypatch):
    like = {"golden": "someone/tiny-mistral"}
    from clara_jax.interop import base, hub_ids

    monkeypatch.setattr(hub_ids, "HUB_IDS", like)
    monkeypatch.setitem(hub_ids.PRESETS, "golden", base.read_config(checkpoint.base))
    with pytest.raises(UserError, match=r"the shapes of someone/tiny-mistral"):
        import_model.run(str(checkpoint.source), str(checkpoint.workdir))
    larger_base(checkpoint)
    with pytest.raises(UserError, match=r"right base\? \(the checkpoint has the shapes of someone"):
        import_model.run(str(checkpoint.source), str(checkpoint.workdir), str(checkpoint.base))


def test_a_pisco_checkpoint_answers(checkpoint, capsys):
    """Two adapters, no stage: PISCO's, trained on teachers' answers."""
    gone = dict.fromkeys(("training_stage", "generation_top_k", "stage2_retrieval_top_n"), ...)
    checkpoint.settings(model_type="COCOM", compr_use_mlp=True, quantization="int8", **gone)
    checkpoint.tensors(ADAPTERS, lambda a: a.pop("query_reasoner_adapter"))
    assert checkpoint.run() == 0
    assert "stage instruct" in capsys.readouterr().out
    model = clara_jax.load(checkpoint.workdir)
    found = model.ask(["who?"], [["a man", "a dog", "a cat"]], max_new_tokens=4)[0]
    assert len(found.indices) == 3 and found.text
    assert model.model.config.select.k == 5


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_checkpoints_own_chat_template_is_kept(checkpoint, tmp_path, file):
    own = "{% for m in messages %}<|im_start|>OWN {{ m['content'] }}\n{% endfor %}"
    text = own if file.endswith("jinja") else json.dumps({"chat_template": own})
    (checkpoint.source / file).write_text(text)
    checkpoint.run()
    for format in ("native", "peft"):
        export_model.run(str(checkpoint.workdir), format, str(tmp_path / format))
    for model in (
        clara_jax.load(checkpoint.source, base=checkpoint.base),
        clara_jax.load(checkpoint.workdir),
        clara_jax.load(tmp_path / "native", base=checkpoint.base),
        clara_jax.load(tmp_path / "peft", base=checkpoint.base),
    ):
        shown = model.model.tokenizer.decode(model.model.tokenizer.encode(
            model.model.tokenizer.chat("a system", "a question")
        ))  # fmt: skip
        assert shown == "OWN a system\nOWN a question\n"
    for folder in (checkpoint.workdir, tmp_path / "native", tmp_path / "peft"):
        assert json.loads((folder / "config.json").read_text())["model"]["tokenizer"] == (
            "./tokenizer"
        )


def test_training_goes_on_from_an_import_but_not_in_it(checkpoint, tmp_path):
    """And ends in a checkpoint of the release again, with what was not trained as it was."""
    checkpoint.settings(training_stage="stage1_2")
    checkpoint.tensors(ADAPTERS, lambda a: a.pop("query_reasoner_adapter"))
    checkpoint.run()
    imported = config_lib.load(checkpoint.workdir / "config.json")
    config = dataclasses.replace(
        imported,
        stage="e2e",
        data=dataclasses.replace(imported.data, sources="facts:40"),
        select=dataclasses.replace(imported.select, candidates=4),
        train=dataclasses.replace(imported.train, steps=1, batch_rows=8),
        init_from=str(checkpoint.workdir),
        mesh=config_lib.Mesh(fsdp=1),
    )
    with pytest.raises(UserError, match=r"holds an imported .* --config.init_from="):
        train(config, str(checkpoint.workdir))
    other = dataclasses.replace(config.data, document_length=32)
    with pytest.raises(UserError, match=r"config.data.document_length=32, .* was trained with 64"):
        train(dataclasses.replace(config, data=other), str(tmp_path / "e2e"))
    assert train(config, str(tmp_path / "e2e")) == 0
    export_model.run(str(tmp_path / "e2e"), "release", str(tmp_path / "released"))
    released = clara_jax.load(tmp_path / "released", base=checkpoint.base).trees
    before = clara_jax.load(checkpoint.workdir).trees
    same = {
        name: all(map(np.array_equal, jax.tree.leaves(released[name]), jax.tree.leaves(tree)))
        for name, tree in before.items()
    }
    assert same.pop("base") and same.pop("compressor") and same.pop("memory") and same.pop("added")
    assert same == {"generator": False}
    assert "head" in released["added"] and "reasoner" in released


def test_links_of_what_was_exported_and_its_modes(checkpoint, tmp_path, capsys, command):
    assert checkpoint.run() == 0
    (checkpoint.workdir / "config.json").chmod(0o600)
    arguments = ["--mode=import", f"--base={checkpoint.base}", f"--source={checkpoint.workdir}"]
    assert command(*arguments, f"--workdir={tmp_path / 'copy'}") == 0
    assert oct((tmp_path / "copy" / "config.json").stat().st_mode)[-3:] == "600"
    (tmp_path / "secret").write_text("secret")
    (checkpoint.workdir / "notes").symlink_to(tmp_path / "secret")
    assert command(*arguments, f"--workdir={tmp_path / 'other'}") == 2
    assert "notes: is a link to a file elsewhere" in capsys.readouterr().err
