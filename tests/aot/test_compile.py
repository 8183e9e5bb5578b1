"""`--mode=compile`: programs are those that run, and the TPU compiler's answers."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from clara_jax.aot import chips, compile, programs, report
from clara_jax.config import Config, Data, Eval, Memory, Model, Prompts, Select, Train
from clara_jax.config import Mesh as MeshConfig
from clara_jax.errors import UserError
from clara_jax.models.config import PRESETS
from clara_jax.runs import weights as weights_lib
from clara_jax.runs.lineage import Run
from clara_jax.runs.setup import abstract, create
from clara_jax.sharding import make_mesh
from clara_jax.training.inputs import open_inputs

ONE = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
CHIP = chips.CHIPS["v5e"]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'clara-jax[tpu]'",
)


def tiny(stage: str, **model) -> Config:
    prompts = dataclasses.replace(
        Prompts(), qa_system="", qa_user="{docs}", answer_system="", answer_user="{docs} {question}"
    )
    return Config(
        stage=stage,
        model=Model(preset="tiny", tokenizer="facts", vocab_size=192, **model),
        data=Data(sources="facts:40", document_length=40, rate=10, encoder_row=64, decoder_row=96,
                  packing_bins=8),
        select=Select(k=2, candidates=6),
        train=Train(batch_rows=8),
        eval=Eval(batch=8),
        mesh=MeshConfig(data=1, fsdp=1, tensor=1),
        prompts=prompts,
    )  # fmt: skip


@pytest.mark.parametrize(("stage", "memories"), [("scp", False), ("e2e", True)])
def test_shapes_are_those_of_the_batches_that_are_trained_on(stage, memories, tmp_path):
    """Names, ranks and dtypes; the lengths of questions' rows are measured on the data.

    tests/data/test_batches.py has every stage.
    """
    config = tiny(stage)
    mesh = None
    if memories:
        data = dataclasses.replace(config.data, memories=str(tmp_path / "memories"))
        config = dataclasses.replace(config, data=data)
    runs = [Run("", dataclasses.replace(config, stage="scp"))] if stage != "scp" else []
    real = next(open_inputs(*create(config, mesh, runs), str(tmp_path)).train)
    found = programs.batch_shapes(abstract(config, ONE).model)
    assert set(found) == set(real)
    for name, shape in found.items():
        assert shape.dtype == real[name].dtype, name
        assert len(shape.shape) == real[name].ndim and shape.shape[0] == 8, name
        if stage == "scp" or name.startswith(("doc", "dec", "memories")):
            assert shape.shape == real[name].shape, name


@pytest.mark.parametrize("stage", ["scp", "e2e"])
def test_abstract_trees_are_those_that_are_trained(stage):
    config = tiny(stage)
    real = create(config, runs=[Run("", dataclasses.replace(config, stage="scp"))])
    shapes = abstract(config, real.model.mesh)

    def described(trees):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), trees)

    names = [*config.trained, "base", "memory", "added"]
    for name in names:
        assert described(shapes.trees[name]) == described(real.trees[name]), name


def test_flops_count_what_a_frozen_base_needs():
    setup = abstract(tiny("scp"), ONE)
    P, tokens = programs.parameters(setup.model), 8 * (64 + 96)
    assert P == sum(x.size for x in jax.tree.leaves(create(tiny("scp")).trees["base"]))
    assert programs.train(*setup).flops == 4 * P * tokens
    full = dataclasses.replace(tiny("scp"), train=Train(batch_rows=8, full=True))
    whole = abstract(full, setup.model.mesh)
    assert programs.train(*whole).flops == 6 * P * tokens
    e2e = programs.train(*abstract(tiny("e2e"), setup.model.mesh))
    documents = 8 * 6 * 64
    assert e2e.flops == 4 * P * 8 * (programs.QUERY + 96) + 2 * P * documents


@pytest.mark.parametrize(
    "program",  # another test compiles the train step for TPUs
    [pytest.param(p, marks=[pytest.mark.slow] if p == "train" else []) for p in programs.PROGRAMS],
)
def test_every_program_compiles_for_the_local_devices(program, capsys, monkeypatch):
    untied = dataclasses.replace(PRESETS["tiny"], tied_embeddings=False)
    monkeypatch.setitem(PRESETS, "tiny", untied)
    config = dataclasses.replace(tiny("e2e"), mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    assert compile.run(config, program=program) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["devices"] == 8 and found["topology"] == "local" and found["program"] == program
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    kinds = found["hbm_by_kind"]
    assert sum(kinds.values()) == found["hbm_bytes_per_device"]
    assert abs(kinds["other"]) < 0.02 * found["hbm_bytes_per_device"]  # all arguments have a kind
    assert kinds["base"] < 4 * found["parameters"] / 3  # cut four ways, but for the norms
    assert found["fits"] is None and found["predicted_mfu"] is None
    assert "HBM of one device" in err


@pytest.fixture
def unoptimised():
    """Programs for TPUs, whose optimisation takes as long as all else."""
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")


@needs_libtpu
def test_a_train_step_is_compiled_for_tpus(capsys, unoptimised):
    """With int8 weights and the TPU's attention, on 4 chips; of one side, as every kernel costs."""
    options = {"dtype": "bfloat16", "param_dtype": "int8", "attention": "splash"}
    config = tiny("contrastive", remat="q,gate", **options)
    data = dataclasses.replace(config.data, memories="m")
    config = dataclasses.replace(config, data=data, mesh=MeshConfig(fsdp=2, tensor=2))
    with jax.default_matmul_precision("default"):  # the kernel has no other for bfloat16
        assert compile.run(config, "v5e:2x2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True and found["hbm_limit_bytes"] == CHIP.hbm
    assert found["pallas_calls"] == 4 * 4  # four layers, forward again and two back
    assert found["unpriced_parts"] == 0
    assert 0 < found["predicted_mfu"] < 1
    assert found["collective_bytes"]["all-gather"] > 0
    flops = found["model_flops_per_step"]
    mfu = flops / found["predicted_step_seconds"] / 4 / CHIP.flops
    assert found["predicted_mfu"] == pytest.approx(mfu)


@needs_libtpu
def test_search_is_compiled_for_tpus(capsys, monkeypatch):
    monkeypatch.setattr(programs, "DOCUMENTS", 20_000)
    config = dataclasses.replace(tiny("e2e"), mesh=MeshConfig())
    assert compile.run(config, "v5e:2x2", "search") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True and found["predicted_step_seconds"] > 0
    width = min(config.search.key, config.memory_tokens * PRESETS["tiny"].d_model)
    assert found["hbm_by_kind"]["keys"] == pytest.approx(5000 * (2 * width + 4), rel=0.15)


def test_rows_of_unknown_length_are_two_examples_of_a_packed_row():
    data = Data(sources="facts:40", document_length=40, rate=10)
    config = dataclasses.replace(tiny("scp"), data=data)
    for pack, rows in ((True, 16), (False, 8)):
        setup = abstract(
            dataclasses.replace(config, data=dataclasses.replace(data, pack=pack)), ONE
        )
        shapes = programs.batch_shapes(setup.model)
        assert shapes["enc_tokens"].shape == (rows, 44)
        assert shapes["dec_tokens"].shape == (rows, programs.DECODER)


def test_scales_are_no_parameters():
    counts = {
        dtype: programs.parameters(abstract(tiny("scp", param_dtype=dtype), ONE).model)
        for dtype in ("float32", "int8")
    }
    assert counts["int8"] == counts["float32"]


@needs_libtpu
def test_a_slice_is_used_whole():
    config = dataclasses.replace(tiny("scp"), mesh=MeshConfig(fsdp=2))
    with pytest.raises(UserError, match=r"config\.mesh has 2 devices, --topology=v5e:2x2 4"):
        compile.run(config, "v5e:2x2")


@needs_libtpu
def test_what_does_not_fit_says_what_to_change(capsys):
    config = dataclasses.replace(
        tiny("e2e", dtype="bfloat16", param_dtype="bfloat16"), eval=Eval(batch=1 << 22)
    )
    config = dataclasses.replace(config, mesh=MeshConfig())
    assert compile.run(config, "v5e:1x1", "decode") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["fits"] is False and found["predicted_mfu"] is None
    assert found["hbm_bytes_per_device"] > found["hbm_limit_bytes"]
    assert sum(found["hbm_by_kind"].values()) == found["hbm_bytes_per_device"]
    assert "does NOT fit" in err and "--config.eval.batch=2097152" in err
    assert "param_dtype=int8" not in err  # the base is not what is too large


def test_advice_names_options_that_help():
    found = {
        "fits": False, "program": "train", "rows": 128, "mesh": {"data": 2, "fsdp": 8},
        "hbm_by_kind": {"base": 3, "temporaries": 9}, "hbm_bytes_per_device": 12,
        "hbm_limit_bytes": 4,
    }  # fmt: skip
    text = "\n".join(report.advice(tiny("scp", attention="xla"), found))
    for option in (
        "model.remat=full", "train.loss_chunks=8", "train.accumulate=2", "mesh.data=1",
        "model.attention=auto", "model.param_dtype=bfloat16",
    ):  # fmt: skip
        assert f"--config.{option}" in text
    found["hbm_by_kind"] = {"base": 9, "temporaries": 3}
    assert "param_dtype" in report.advice(tiny("scp"), found)[1]
    assert report.advice(tiny("scp"), found | {"fits": True}) == []


@pytest.mark.parametrize("topology", ["v5e-8", "v5litepod-8", "h100:2x2", "v5e:4", "v5e:"])
def test_wrong_topologies_are_one_line(topology):
    with pytest.raises(UserError, match=f"--topology={topology}: not a topology such as v5e:4x4"):
        chips.target(topology)


@needs_libtpu
def test_impossible_topologies_are_one_line():
    with pytest.raises(UserError, match="--topology=v5e:3x5: ") as error:
        chips.target("v5e:3x5")
    assert "\n" not in str(error.value)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices"), [("v5e:1x1", 1), ("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_topologies(name, devices):
    target = chips.target(name)
    assert len(target.devices) == devices == np.prod(target.axes)
    assert target.devices[0].platform == "tpu"


def test_attention_that_these_devices_or_positions_do_not_allow(monkeypatch):
    gpu = tiny("scp", dtype="bfloat16", attention="cudnn")
    with pytest.raises(UserError, match=r"attention=cudnn needs a GPU, these devices are of a cpu"):
        abstract(gpu, ONE)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], sliding_window=30))
    spread = dataclasses.replace(tiny("scp", attention="splash"), memory=Memory(positions="spread"))
    with pytest.raises(UserError, match=r"cannot spread positions .* window of 30 tokens"):
        abstract(spread, ONE)
    auto = dataclasses.replace(spread, model=tiny("scp").model)
    assert weights_lib.model_config(auto, "tpu").attention == "xla"
    assert weights_lib.model_config(tiny("scp"), "tpu").attention == "splash"
    assert weights_lib.model_config(tiny("scp"), "gpu").attention == "xla"


def test_without_libtpu_one_line_tells_what_to_install(monkeypatch):
    def missing(**options):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clara-jax\[tpu\]'"):
        chips.target("v5e:1x1")


@pytest.mark.parametrize("topology", ["v5e:0x1", "v5e:99999x1"])
def test_topologies_without_chips_or_of_too_many(topology):
    with pytest.raises(UserError, match="not a topology such as"):
        chips.target(topology)
