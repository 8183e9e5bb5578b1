import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import config as config_lib
from clara_jax import distributed
from clara_jax.api import load
from clara_jax.data import scp_rows
from clara_jax.data.reader import Reader
from clara_jax.errors import UserError
from clara_jax.runs import setup as setup_lib
from clara_jax.sharding import put_batch
from clara_jax.training import step as step_lib
from clara_jax.training import train as train_lib
from clara_jax.training import writers
from clara_jax.training.optim import make_optimizer
from clara_jax.training.train import train
from tests.fixtures.models import save


def with_options(config, **groups):
    changed = {k: dataclasses.replace(getattr(config, k), **v) for k, v in groups.items()}
    return dataclasses.replace(config, **changed)


def metrics(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [  # without times, which differ between runs
        {k: v for k, v in line.items() if not k.endswith("_per_s") and not k.startswith("time/")}
        for line in lines
    ]


def prepared(config):
    setup = setup_lib.create(config)
    reader = Reader(scp_rows.open_data(config), setup.model.layout, config)
    data = scp_rows.make_train_iterator(reader, scp_rows.row_lengths(reader))
    names = config.trained
    trained = {k: v for k, v in setup.trees.items() if k in names}
    frozen = {k: v for k, v in setup.trees.items() if k not in names}
    optimizer = make_optimizer(config)
    state = (trained, step_lib.init_optimizer(setup.model, optimizer, trained))
    step = step_lib.compile_step(setup.model, step_lib.make_step(setup.model, optimizer), state)
    return setup, data, state, frozen, step


@pytest.fixture(scope="module")
def whole(tiny):
    """With dropout, and a schedule for which stopping early is the same run."""
    options = {"schedule": "constant", "warmup": 0.0}
    return with_options(tiny, optim=options, lora={"dropout": 0.1})


@pytest.fixture(scope="module")
def uninterrupted(whole, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert train(whole, str(workdir)) == 0
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3, 4]
    return workdir


def assert_equal(workdir, expected):
    assert metrics(workdir) == metrics(expected)
    restored = [setup_lib.restore(str(path)).trees for path in (workdir, expected)]
    jax.tree.map(np.testing.assert_array_equal, *restored)


def test_resumed_run_equals_uninterrupted_one(whole, uninterrupted, tmp_path):
    # Lines of a run that was killed before it saved anything.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    assert train(with_options(whole, train={"steps": 2}), str(tmp_path)) == 0
    assert train(whole, str(tmp_path)) == 0
    assert_equal(tmp_path, uninterrupted)


def test_sigterm_saves_and_the_run_resumes_equal(whole, uninterrupted, tmp_path, monkeypatch):
    """tests/test_distributed.py has processes that are told to end."""
    write = writers.MetricWriter.write

    def told(self, *metrics):
        write(self, *metrics)
        signal.raise_signal(signal.SIGTERM)

    config = with_options(whole, train={"checkpoint_every": 100})
    with monkeypatch.context() as patch:
        patch.setattr(writers.MetricWriter, "write", told)
        assert train(config, str(tmp_path)) == 143
    assert 1 <= setup_lib.restore(str(tmp_path)).model.step < 4
    assert train(config, str(tmp_path)) == 0
    assert_equal(tmp_path, uninterrupted)


def test_ctrl_c_ends_the_step_and_twice_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with train_lib._on_signal() as received:
        assert received(1) == 0
        signal.raise_signal(signal.SIGINT)
        assert received(2) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_processes_agree_on_a_signal_where_jaxs_service_is_off(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "any_of", lambda flag: True)  # the other one has got it
    before = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with train_lib._on_signal() as received:
            assert received(3) == signal.SIGTERM
    finally:
        jax.config.update("jax_enable_preemption_service", before)


def test_only_what_the_stage_trains_is_in_the_checkpoint(tiny, tmp_path):
    config = with_options(tiny, train={"steps": 1})
    train(config, str(tmp_path / "adapters"))
    kept = sorted(p.name for p in (tmp_path / "adapters/checkpoints/1").iterdir() if p.is_dir())
    assert kept == ["compressor", "data", "generator", "memory", "optimizer"]
    train(with_options(config, train={"full": True}), str(tmp_path / "full"))
    kept = sorted(p.name for p in (tmp_path / "full/checkpoints/1").iterdir() if p.is_dir())
    assert kept == ["base", "data", "memory", "optimizer"]
    # A later stage takes the trained base, frozen, and adds adapters without effect.
    later = dataclasses.replace(config, init_from=str(tmp_path / "full"), seed=5)
    setup = setup_lib.start(later)
    trained = setup_lib.restore(str(tmp_path / "full"))
    jax.tree.map(np.testing.assert_array_equal, setup.trees["base"], trained.trees["base"])
    assert not np.any(setup.trees["generator"]["layers"]["mlp"]["up"]["b"])
    assert "base" not in later.trained


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_trace_and_frozen_trees_untouched(tiny, full):
    config = with_options(tiny, train={"full": full})
    _, data, state, frozen, step = prepared(config)
    setup = setup_lib.create(config)
    before = jax.device_get(frozen)
    losses = []
    for i in range(3):
        state, m = step(state, frozen, put_batch(setup.model.mesh, next(data)), np.int32(i))
        losses.append(float(m["loss"]))
    assert step._cache_size() == 1
    assert losses[2] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
    assert set(state[0]) == ({"base", "memory"} if full else {"compressor", "generator", "memory"})


def test_accumulation_equals_one_batch(tiny):
    results = []
    for accumulate in (1, 2):
        config = with_options(
            tiny,
            train={"accumulate": accumulate},
            mesh={"fsdp": 2},
        )
        setup, data, state, frozen, step = prepared(config)
        results.append(step(state, frozen, put_batch(setup.model.mesh, next(data)), np.int32(0)))
    ((one, _), one_metrics), ((two, _), two_metrics) = results
    for key in one_metrics:
        np.testing.assert_allclose(one_metrics[key], two_metrics[key], rtol=2e-5, err_msg=key)
    # Adam divides by the gradient's own size: compare where it is not mere rounding.
    np.testing.assert_allclose(one["memory"], two["memory"], atol=1e-5)


def test_golden_first_steps(tiny):
    """Numbers of two steps; a change of the model, the data or the loss shows here.

    If a change is meant, print `found` and put it in.
    """
    rows = {"document_length": 40, "encoder_row": 96, "decoder_row": 96}
    _, data, state, frozen, step = prepared(with_options(tiny, data=rows))
    mesh = setup_lib.create(tiny).model.mesh
    found = []
    for i in range(2):
        state, m = step(state, frozen, put_batch(mesh, next(data)), np.int32(i))
        found.append({k: round(float(m[k]), 4) for k in ("ce_loss", "mse_loss")})
    message = f"expected {GOLDEN}, found {found}; see this test's docstring"
    for one, other in zip(found, GOLDEN, strict=True):
        assert one == pytest.approx(other, abs=2e-3), message


GOLDEN = [{"ce_loss": 5.6014, "mse_loss": 0.261}, {"ce_loss": 3.8662, "mse_loss": 0.1121}]


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    config = with_options(
        tiny,
        train={"checkpoint_every": 1, "steps": 20},
        optim={"learning_rate": 1e30, "warmup": 0.0},
    )
    with pytest.raises(UserError, match=r"^step \d+: the loss is (nan|inf)") as e:
        train(config, str(tmp_path))
    bad = int(str(e.value).split()[1].rstrip(":"))
    assert setup_lib.restore(str(tmp_path)).model.step == bad - 1


def test_held_out_loss_is_logged(tiny, tmp_path):
    train(with_options(tiny, train={"eval_every": 2, "steps": 2}), str(tmp_path))
    held_out = metrics(tmp_path)[-1]
    assert held_out["step"] == 2 and 0 < held_out["eval/ce_loss"] < 20


def test_data_that_end_before_the_steps_are_saved(tiny, tmp_path, caplog):
    once = with_options(
        tiny,
        data={"sources": "facts:60", "epochs": 1},
        train={"steps": 50, "checkpoint_every": 100, "eval_every": 100},
    )
    assert train(once, str(tmp_path)) == 0
    done = setup_lib.restore(str(tmp_path)).model.step
    assert 1 <= done < 50
    assert metrics(tmp_path)[-1].keys() == {
        "step", "eval/ce_loss", "eval/ce_loss_others", "eval/mse_loss",
    }  # fmt: skip
    assert train(once, str(tmp_path)) == 0  # nothing is left to do
    assert setup_lib.restore(str(tmp_path)).model.step == done
    with pytest.raises(UserError, match="no whole batch"):
        train(with_options(once, data={"sources": "facts:2"}), str(tmp_path / "none"))


def test_a_mistake_does_not_claim_or_spoil_a_workdir(tiny, tmp_path):
    one = with_options(tiny, train={"steps": 1})
    with pytest.raises(UserError, match="nowhere"):
        train(with_options(one, data={"sources": "nowhere.jsonl"}), str(tmp_path))
    assert train(one, str(tmp_path)) == 0
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"config\.train\.full=False, now it is True"):
        train(with_options(one, train={"full": True}), str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="cannot be read with this config"):
        train(with_options(one, lora={"rank": 8}), str(tmp_path))
    assert not (tmp_path / "config.json").exists()
    (tmp_path / "config.json").write_text(before)
    assert train(with_options(one, model={"remat": "full"}), str(tmp_path)) == 0


def test_a_run_of_a_larger_machine_is_restored_on_this_one(tiny, tmp_path):
    save(setup_lib.create(tiny), tmp_path)
    larger = dataclasses.replace(tiny, mesh=config_lib.Mesh(data=4, fsdp=16, tensor=4))
    config_lib.save(larger, tmp_path / "config.json")
    assert dict(setup_lib.restore(str(tmp_path)).model.mesh.shape) == {
        "data": 1,
        "fsdp": 8,
        "tensor": 1,
    }


def test_one_run_a_workdir(tiny, tmp_path):
    with train_lib._lock(str(tmp_path)), pytest.raises(UserError, match="another run"):
        train(tiny, str(tmp_path))


def test_no_broken_state_is_saved(tiny, tmp_path):
    config = with_options(
        tiny,
        train={"checkpoint_every": 1, "steps": 20},
        optim={"learning_rate": 1e39, "warmup": 0.0},
    )
    with pytest.raises(UserError, match="Nothing is saved yet"):
        train(config, str(tmp_path))
    assert not train_lib.has_checkpoint(str(tmp_path))


def test_a_full_disk_is_told_and_what_is_damaged_too(tiny, tmp_path, monkeypatch):
    for step in (1, 2):
        save(setup_lib.create(tiny), tmp_path, step, keep=2)

    def full(*_):
        try:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand more")
        except ValueError as e:
            raise RuntimeError("wrapped") from e

    checkpointer = train_lib.Checkpoints(str(tmp_path), 2)
    with checkpointer, monkeypatch.context() as patch:
        patch.setattr(checkpointer._checkpointer, "save_checkpointables_async", full)
        with pytest.raises(UserError, match=r"No space left on device\); earlier") as e:
            checkpointer.save(3, {}, {}, None)
        assert len(str(e.value).splitlines()) == 1
    data = max((tmp_path / "checkpoints/2/generator").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(b"x" * 10)
    (tmp_path / "checkpoints/2/checksums.json").unlink()  # of an earlier version
    with pytest.raises(UserError, match="remove it to go on from step 1") as e:
        setup_lib.restore(str(tmp_path))
    assert len(str(e.value)) < 700


def test_mistakes(tiny, tmp_path):
    save(setup_lib.create(tiny), tmp_path)
    with pytest.raises(UserError, match=r"config\.data\.rate=10, now it is 20"):
        train(with_options(tiny, data={"rate": 20}), str(tmp_path))
    with pytest.raises(UserError, match="7 rows do not divide by the 2 devices"):
        train(with_options(tiny, train={"batch_rows": 7}, mesh={"fsdp": 2}), str(tmp_path / "x"))
    (tmp_path / "y").mkdir()
    config_lib.save(tiny, tmp_path / "y" / "config.json")
    with pytest.raises(UserError, match="no checkpoints here"):
        setup_lib.restore(str(tmp_path / "y"))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"rank": 16', '"rank": 8'))
    with pytest.raises(UserError, match="cannot be read with this config"):
        setup_lib.restore(str(tmp_path))


@pytest.mark.slow
def test_adapters_train_on_an_int8_base_and_are_restored(tiny, tmp_path):
    """QLoRA: the loss falls, a resumed run goes on, and answers come from the int8 base."""
    config = with_options(tiny, model={"param_dtype": "int8"})
    assert train(config, str(tmp_path)) == 0
    setup = setup_lib.restore(str(tmp_path))
    kernel = setup.trees["base"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.int8
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[-1] < losses[0]
    more = with_options(config, train={"steps": 5}, model={"attention": "xla", "remat": "q"})
    assert train(more, str(tmp_path)) == 0
    with pytest.raises(UserError, match=r"config\.model\.param_dtype='int8', now it is 'float32'"):
        train(tiny, str(tmp_path))


def test_a_run_is_read_with_an_int8_base_on_request(tiny, tmp_path):
    save(setup_lib.create(tiny), tmp_path)
    documents = ["the lamp of bida is red ."]
    whole, int8 = (load(tmp_path, param_dtype=d) for d in (None, "int8"))
    assert int8.trees["base"]["layers"]["mlp"]["up"]["kernel"].dtype == jnp.int8
    a, b = (clara.compress(documents) for clara in (whole, int8))
    assert 0 < np.abs(a - b).max() < 0.2 * np.abs(a).max()
    with pytest.raises(UserError, match=r"config\.model\.param_dtype='int4' is not one of"):
        load(tmp_path, param_dtype="int4")
    full = tmp_path / "full"
    save(setup_lib.create(with_options(tiny, train={"full": True})), full)
    with pytest.raises(UserError, match="trains the base, which"):
        load(full, param_dtype="int8")
    later = with_options(tiny, model={"param_dtype": "int8"})
    later = dataclasses.replace(later, stage="instruct", init_from=str(full))
    with pytest.raises(UserError, match="trained the base itself"):
        setup_lib.start(later)


def test_data_that_grew_are_told(tiny, tmp_path):
    config = with_options(tiny, train={"steps": 1}, data={"sources": "facts:40"})
    assert train(config, str(tmp_path)) == 0
    grown = with_options(config, train={"steps": 2})
    kept = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(kept.replace("40", "39"))
    with pytest.raises(UserError, match=r"began with 39 records .*now there are 40.*data.json"):
        train(grown, str(tmp_path))
    (tmp_path / "data.json").write_text(kept)
    assert train(grown, str(tmp_path)) == 0
