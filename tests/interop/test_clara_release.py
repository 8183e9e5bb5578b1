import dataclasses
import json
import os
import pickle
import struct
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.interop import base, clara_release, release_config
from clara_jax.interop.torch_zip import TorchFile
from clara_jax.models.config import ModelConfig

# --- Writing torch's zip format by hand, opcode by opcode ----------------------------------------

KINDS = {"float32": b"FloatStorage", "bfloat16": b"BFloat16Storage", "float16": b"HalfStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key, offset, shape, strides, kind=b"FloatStorage") -> bytes:
    storage = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu")
    storage += number(0) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def write_zip(path, pickled: bytes, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("name/data.pkl", b"\x80\x02" + pickled + b".")
        for i, values in enumerate(storages):
            archive.writestr(f"name/data/{i}", values.tobytes())
    return path


def write_tensors(path, tree, compression=zipfile.ZIP_STORED):
    storages = []

    def pickled(value):
        if isinstance(value, dict):
            return mapping({key: pickled(v) for key, v in value.items()})
        storages.append(np.ascontiguousarray(value))
        strides = [s // value.itemsize for s in storages[-1].strides]
        key = str(len(storages) - 1)
        return tensor(key, 0, value.shape, strides, KINDS[str(value.dtype)])

    return write_zip(path, pickled(tree), storages, compression)


# --- A small release written by hand -------------------------------------------------------------

MODEL = ModelConfig(
    vocab_size=20, d_model=8, d_ff=12, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=6
)
R, M = 3, 2
LINEARS = {
    "self_attn.q_proj": (12, 8),
    "self_attn.k_proj": (6, 8),
    "self_attn.v_proj": (6, 8),
    "self_attn.o_proj": (8, 12),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}
SETTINGS = {
    "model_type": "CLaRa",
    "training_stage": "stage1",
    "training_form": "both_separately",
    "compr_model_name": None,
    "kbtc_training": False,
    "doc_max_length": 64,
    "compr_rate": 32,
    "lora": True,
    "lora_r": R,
    "sep": True,
    "different_mem_tokens": True,
    "generation_top_k": 5,
    "decoder_model_name": "org/base",
}


def random_adapter(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    tensors = {}
    for i in range(MODEL.n_layers):
        for name, (n_out, n_in) in LINEARS.items():
            for leaf, shape in (("lora_A", (R, n_in)), ("lora_B", (n_out, R))):
                key = f"model.layers.{i}.{name}.{leaf}.weight"
                tensors[key] = rng.standard_normal(shape).astype(dtype)
    return tensors


def random_release(dtype=np.float32):
    rng = np.random.default_rng(9)
    rows = MODEL.vocab_size + M + 3
    adapters = {
        name: random_adapter(i, dtype) for i, name in enumerate(clara_release.ADAPTER_NAMES)
    }
    layers = {
        name: rng.standard_normal((rows, MODEL.d_model)).astype(dtype)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    return adapters, layers


def write_release(directory, adapters, layers, settings=SETTINGS):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings))
    write_tensors(directory / "adapters.pth", adapters)
    write_tensors(directory / "decoder_first_last_layers.pth", layers)
    return directory


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_tensor_arrives_in_its_place(tmp_path, dtype):
    adapters, layers = random_release(dtype)
    # Some checkpoints repeat the tables in every adapter.
    adapters["encoder_adapter"] |= layers
    release = clara_release.read(write_release(tmp_path, adapters, layers), MODEL)
    assert clara_release.is_release(tmp_path)
    assert dataclasses.asdict(release.settings) == {
        "stage": "scp", "document_length": 64, "rate": 32, "top_k": 5, "rank": R,
        "base": "org/base", "adapters": ("compressor", "generator"),
    }  # fmt: skip
    assert release.settings.memory_tokens == M
    assert (release.lora.rank, release.lora.scale) == (R, 2.0)
    assert set(release.adapters) == {"compressor", "reasoner", "generator"}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(release.adapters))
    for theirs, ours in clara_release.ADAPTER_NAMES.items():
        for name in LINEARS:
            group, short = name.removesuffix("_proj").split(".")
            leaf = release.adapters[ours]["layers"][{"self_attn": "attention"}.get(group, group)][
                short
            ]
            for i in range(MODEL.n_layers):
                key = f"model.layers.{i}.{name}"
                np.testing.assert_array_equal(
                    leaf["a"][i], adapters[theirs][f"{key}.lora_A.weight"]
                )
                np.testing.assert_array_equal(
                    leaf["b"][i], adapters[theirs][f"{key}.lora_B.weight"].T
                )
    embed, head = layers["model.embed_tokens.weight"][20:], layers["lm_head.weight"][20:]
    np.testing.assert_array_equal(release.memory, embed[:M])
    np.testing.assert_array_equal(release.added["embed"], embed[M:])
    np.testing.assert_array_equal(release.added["head"], head.T)
    assert release.memory.dtype == np.float32


@pytest.mark.parametrize("carries_head", [True, False])
def test_tied_base_scores_with_the_embedding(tmp_path, carries_head):
    adapters, layers = random_release()
    layers = {"model.embed_tokens.weight": layers["model.embed_tokens.weight"]} | (
        {"lm_head.weight": layers["model.embed_tokens.weight"]} if carries_head else {}
    )
    tied = dataclasses.replace(MODEL, tied_embeddings=True)
    release = clara_release.read(write_release(tmp_path, adapters, layers), tied)
    np.testing.assert_array_equal(release.added["head"], layers["model.embed_tokens.weight"][20:].T)


Q = "model.layers.1.self_attn.q_proj.lora_A.weight"
EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, t: a["decoder_adapter"].pop(Q), f"tensor decoder_adapter: {Q} is missing"),
        (
            lambda a, t: a["encoder_adapter"].update({Q: np.ones((R, 9), np.float32)}),
            rf"tensor encoder_adapter: {Q} has shape \[3, 9\].*\[3, 8\].*right base",
        ),
        (
            lambda a, t: a["encoder_adapter"].update(
                {Q.replace("1", "2"): np.ones((R, 8), np.float32)}
            ),
            "unknown tensor encoder_adapter: model.layers.2.self_attn.q_proj.lora_A.weight",
        ),
        (lambda a, t: a.pop("encoder_adapter"), "adapter encoder_adapter is missing"),
        (lambda a, t: a.update(my_adapter={}), "unknown adapter 'my_adapter'"),
        (lambda a, t: t.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
        (lambda a, t: t.pop(EMBED), f"tensor {EMBED} is missing"),
        (
            lambda a, t: t.update({EMBED: np.ones((26, 8), np.float32)}),
            rf"tensor {EMBED} has shape \[26, 8\].*\[25, 8\]",
        ),
        (
            lambda a, t: t.update({"model.norm.weight": np.ones(8, np.float32)}),
            "unknown tensor model.norm.weight",
        ),
        (lambda a, t: t.update({EMBED: {}}), f"{EMBED} is not a tensor"),
        (lambda a, t: a.update(encoder_adapter=np.ones(3, np.float32)), "not a dict of tensors"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    adapters, layers = random_release()
    change(adapters, layers)
    directory = write_release(tmp_path, adapters, layers)
    with pytest.raises(UserError, match=message):
        clara_release.read(directory, MODEL)


def test_reasoner_is_needed_after_end_to_end_training_only(tmp_path):
    adapters, layers = random_release()
    del adapters["query_reasoner_adapter"]
    clara_release.read(write_release(tmp_path, adapters, layers), MODEL)
    settings = SETTINGS | {"training_stage": "stage2"}
    with pytest.raises(UserError, match="adapter query_reasoner_adapter is missing"):
        clara_release.read(write_release(tmp_path, adapters, layers, settings), MODEL)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 21}, {"d_model": 16}, {"d_ff": 8}, {"n_layers": 1}, {"n_layers": 3},
        {"n_kv_heads": 2}, {"head_dim": 4},
    ],
)  # fmt: skip
def test_base_that_does_not_fit_is_refused(tmp_path, changes):
    directory = write_release(tmp_path, *random_release())
    with pytest.raises(UserError, match="tensor"):
        clara_release.read(directory, dataclasses.replace(MODEL, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training_stage": "stage9"}, "training_stage 'stage9' is not supported"),
        ({"training_stage": ...}, "'training_stage' is missing"),
        ({"lora_r": ...}, "'lora_r' is missing"),
        ({"compr_rate": 65}, "leave no memory"),
        ({"compr_rate": 0}, "compr_rate=0 is not a whole"),
        ({"compr_rate": "x"}, "compr_rate='x' is not a whole"),
        ({"sep": ...}, "'sep' is missing"),
        ({"training_form": "both"}, "training_form='both' is not supported"),
        ({"model_type": "COCOM", "training_stage": "stage9"}, "training_stage 'stage9'"),
        ({"sep": False}, "sep=False is not supported, only True"),
        ({"different_mem_tokens": False}, "different_mem_tokens"),
        ({"compr_model_name": "bert"}, "compr_model_name='bert'"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, change, message):
    settings = {k: v for k, v in (SETTINGS | change).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        release_config.read_settings(tmp_path)


def test_missing_files_are_named(tmp_path):
    directory = write_release(tmp_path, *random_release())
    for name in ("adapters.pth", "decoder_first_last_layers.pth", "config.json"):
        (directory / name).unlink()
        assert not clara_release.is_release(directory)
        with pytest.raises(UserError, match=f"{name}: no such file"):
            clara_release.read(directory, MODEL)
        write_release(tmp_path, *random_release())


# --- The torch file format -----------------------------------------------------------------------


class Reduce:
    """Pickles into a call, as an attacker would."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda marker: Reduce(os.system, f"touch {marker}"),
        lambda marker: Reduce(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Reduce(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Reduce(open, str(marker), "w"),
    ],
)
def test_malicious_pickle_is_refused_and_does_not_run(tmp_path, attack, protocol):
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"encoder_adapter": attack(marker)}, protocol)
    pickle.loads(pickled)
    assert marker.exists(), "the attack must be a real one"
    marker.unlink()
    for target in ("adapters.pth", "decoder_first_last_layers.pth"):
        directory = write_release(tmp_path / "release", *random_release())
        with zipfile.ZipFile(directory / target, "w") as archive:
            archive.writestr("name/data.pkl", pickled)
        with pytest.raises(UserError, match=f"{target}: refused: its pickle asks for"):
            clara_release.read(directory, MODEL)
        assert not marker.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",  # dotted names walk attributes
        b"ctorch\nload\n",
        b"cclara_jax.interop.torch_zip\nTorchFile\n",
        b"cnumpy\nfromfile\n",
        b"c__builtin__\neval\n",
        b"cbuiltins\ngetattr\n",
        b"\x8c\x0atorch._utils\x8c\x14_rebuild_tensor_v2.__\x93",
    ],
)
def test_other_names_are_refused(tmp_path, pickled):
    with pytest.raises(UserError, match=r"refused|not readable"):
        TorchFile(write_zip(tmp_path / "x.pth", pickled))


@pytest.mark.parametrize("name", [b"_rebuild_tensor_v2", b"_rebuild_parameter"])
@pytest.mark.parametrize(
    "state", [mapping({"x": number(1)}), b"N" + mapping({"__call__": number(1)}) + b"\x86"]
)
def test_a_pickle_cannot_change_what_it_is_given(tmp_path, name, state):
    with pytest.raises(UserError, match="not readable"):
        TorchFile(write_zip(tmp_path / "x.pth", b"ctorch._utils\n" + name + b"\n" + state + b"b"))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor("0", 0, (3, 4), (4, 1)), None),
        (tensor("0", 0, (4, 3), (1, 4)), None),
        (tensor("0", 0, (0, 7), (7, 1)), None),
        (tensor("0", 0, (3, 5), (4, 1)), "beyond its storage"),
        (tensor("0", 1, (3, 4), (4, 1)), "beyond its storage"),
        (tensor("0", 0, (2,), (1 << 30,)), "beyond its storage"),
        (tensor("0", -1, (3,), (1,)), "bad shape"),
        (tensor("0", 4, (3,), (-1,)), "bad shape"),
        (tensor("0", 0, (3,), (4, 1)), "bad shape"),
        (tensor("0", 0, (1 << 30, 1 << 30), (0, 0)), "bad shape"),
        (tensor("0", 0, (0, 1 << 30, 1 << 30), (0, 0, 0)), "bad shape"),
        (tensor("0", 0, (1,) * 100, (0,) * 100), "bad shape"),
        (tensor("7", 0, (3,), (1,)), "storage '7' is missing"),
        (tensor("../data.pkl", 0, (3,), (1,)), "storage '../data.pkl' is missing"),
    ],
)  # fmt: skip
def test_tensors_stay_within_their_storage(tmp_path, pickled, message):
    values = np.arange(12, dtype=np.float32)
    file = TorchFile(write_zip(tmp_path / "x.pth", mapping({"t": pickled}), [values]))
    description = file.content["t"]
    if message is None:
        expected = np.lib.stride_tricks.as_strided(
            values, description.shape, [4 * s for s in description.strides]
        )
        np.testing.assert_array_equal(file.array("t", description), expected)
    else:
        with pytest.raises(UserError, match=f"tensor t: .*{message}"):
            file.array("t", description)


def test_damaged_files_are_refused(tmp_path):
    directory = write_release(tmp_path, *random_release())
    path = directory / "adapters.pth"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"adapters\.pth: damaged"):
            clara_release.read(directory, MODEL)
    path.write_bytes(pickle.dumps({"encoder_adapter": {}}))
    with pytest.raises(UserError, match="not in torch's zip format"):
        clara_release.read(directory, MODEL)
    write_tensors(path, random_release()[0], zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        clara_release.read(directory, MODEL)
    for pickled in (
        b"",
        b"}}}",
        b"(((",
        b"0",
        tensor("0", 0, (1,), (1,))[:-1],
        b"X\xff\xff\xff\x7fa",
    ):
        write_zip(path, pickled)
        with pytest.raises(UserError, match=r"adapters\.pth"):
            clara_release.read(directory, MODEL)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        clara_release.read(directory, MODEL)


def test_files_of_torch_read_as_torch_reads_them(tmp_path):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn((6, 8), generator=generator)
    tensors = {
        "plain": whole,
        "shared rows": whole[2:4],
        "shared columns": whole[:, 3:5],
        "transposed": whole.t(),
        "expanded": whole[:1].expand(5, 8),
        "scalar": whole[1, 2],
        "empty": whole[:0],
        "bfloat16": whole.to(torch.bfloat16),
        "float16": whole.to(torch.float16)[1:],
        "float64": whole.to(torch.float64),
        "parameter": torch.nn.Parameter(whole.clone(), requires_grad=True),
    }
    torch.save({"group": tensors}, tmp_path / "x.pth")
    file = TorchFile(tmp_path / "x.pth")
    for name, description in file.content["group"].items():
        ours, theirs = file.array(name, description), tensors[name].detach()
        assert ours.shape == tuple(theirs.shape)
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours.astype(np.float64), theirs.to(torch.float64).numpy())
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "x.pth")  # has metadata attributes
    assert list(TorchFile(tmp_path / "x.pth").content) == ["weight", "bias"]
    for refused in (torch.nn.Linear(2, 3), torch.arange(3), {"dtype": torch.float32}):
        torch.save(refused, tmp_path / "x.pth")
        with pytest.raises(UserError, match="refused"):
            TorchFile(tmp_path / "x.pth")
    torch.save({"group": tensors}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="zip format"):
        TorchFile(tmp_path / "x.pth")


# --- The release's own checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage", "adapters"),
    [
        ("ckpt_mistral_stage1", "scp", {"compressor", "generator"}),
        ("ckpt_mistral_stage2", "e2e", {"compressor", "reasoner", "generator"}),
    ],
)
def test_release_checkpoints(shared, name, stage, adapters):
    golden = shared / "golden"
    config = base.read_config(golden / "base_mistral")
    release = clara_release.read(golden / name, config)
    settings = release.settings
    assert (settings.stage, settings.document_length, settings.rate) == (stage, 64, 16)
    assert (settings.memory_tokens, release.lora.rank, release.lora.alpha) == (4, 16, 32.0)
    assert set(release.adapters) == adapters
    assert release.memory.shape == (4, 64)
    assert release.added["embed"].shape == (3, 64)
    assert release.added["head"].shape == (64, 7)
    # Rows that were overwritten by numbers larger than the release's own: none is like another.
    rows = np.concatenate([release.memory, release.added["embed"]])
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1) + 9 * np.eye(7)
    assert distances.min() > 1e-3
    weights = np.load(golden / "lora_mistral_stage2.npz")
    used = 0
    for theirs, ours in clara_release.ADAPTER_NAMES.items():
        for key in (k for k in weights.files if theirs in k and ours in adapters):
            _, _, layer, group, linear, leaf, _, _ = key.split(".")
            group = {"self_attn": "attention"}.get(group, group)
            tree = release.adapters[ours]["layers"][group][linear.removesuffix("_proj")]
            mine = tree[leaf.removeprefix("lora_").lower()][int(layer)]
            theirs_laid = weights[key].T if leaf == "lora_B" else weights[key]
            np.testing.assert_array_equal(mine, theirs_laid)
            used += 1
    assert used == 42 * len(adapters)


def test_release_checkpoint_reads_as_torch_reads_it(shared):
    torch = pytest.importorskip("torch")
    for name in ("ckpt_mistral_stage1", "ckpt_mistral_stage2"):
        directory = shared / "golden" / name
        layers = torch.load(directory / "decoder_first_last_layers.pth", weights_only=True)
        config = base.read_config(shared / "golden" / "base_mistral")
        release = clara_release.read(directory, config)
        embed = layers["model.embed_tokens.weight"].detach().numpy()[8192:]
        np.testing.assert_array_equal(release.memory, embed[:4])
        np.testing.assert_array_equal(release.added["embed"], embed[4:])
        np.testing.assert_array_equal(
            release.added["head"].T, layers["lm_head.weight"].detach().numpy()[8192:]
        )


def test_wrong_base_for_a_release_checkpoint_is_refused(release):
    config = base.read_config(release / "base_mistral")
    with pytest.raises(UserError, match="right base"):
        clara_release.read(
            release / "ckpt_mistral_stage2", dataclasses.replace(config, vocab_size=49152)
        )


def test_nested_tuples_and_other_bombs_are_refused(tmp_path):
    number = b"K\x01"
    bombs = {
        "doubled": number + b"2\x86" * 99,  # each tuple holds the one before twice
        "remembered": number + b"".join(b"q%ch%c\x86" % (i, i) for i in range(99)),
        "deep": number + b"\x85" * 10_000,
        "as a key": b"}(" + number + b"".join(b"\x85q%ch%c\x86" % (i, i) for i in range(40))
        + number + b"u",
    }  # fmt: skip
    for name, pickled in bombs.items():
        with pytest.raises(UserError, match=r"refused: .* plain tensors do not need"):
            TorchFile(write_zip(tmp_path / f"{name}.pth", pickled))
    path = write_zip(tmp_path / "order.pth", mapping({}), compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("name/byteorder", b"little" + b"\0" * 10**8)
    with pytest.raises(UserError, match="big-endian"):
        TorchFile(path)
