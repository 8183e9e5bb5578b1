"""Predicted time: the parser of scheduled HLO and the walk over it, on a program done by hand."""

import pytest

from clara_jax.aot import cost, hlo
from clara_jax.aot.chips import CHIPS, Target

# Two trips of a loop whose body computes 1500 cycles beside an all-gather of 4 devices, then 3000
# cycles; an all-reduce after it; and a Pallas call whose metadata has line breaks.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[256,128])) -> (s32[], bf16[256,128]) {
  %p = (s32[], bf16[256,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[256,128]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two), backend_config={"window_config":{"estimated_cycles":"0"}}
  %part = bf16[64,128]{1,0} bitcast(%x)
  %start = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) all-gather-start(%part), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %mul = bf16[256,128]{1,0} fusion(%x), kind=kLoop, calls=%add, backend_config={"window_config":{"estimated_cycles":"1500"}}
  %done = bf16[256,128]{1,0} all-gather-done(%start)
  %dot = bf16[256,128]{1,0} fusion(%mul, %done), kind=kOutput, calls=%add, backend_config={"window_config":{"estimated_cycles":"3000"}}
  ROOT %t = (s32[], bf16[256,128]{1,0}) tuple(%next, %dot)
}

%condition (p: (s32[], bf16[256,128])) -> pred[] {
  %p = (s32[], bf16[256,128]{1,0}) parameter(0)
  %four = s32[] constant(4)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %four), direction=LT
}

ENTRY %main (x: (s32[], bf16[256,128])) -> f32[1024] {
  %x = (s32[], bf16[256,128]{1,0}) parameter(0)
  %loop = (s32[], bf16[256,128]{1,0}) while(%x), condition=%condition, body=%body
  %q = bf16[2,4,512,64]{3,2,1,0} parameter(2)
  %segments = s32[2,512]{1,0} parameter(3)
  %splash_mha_dq.1 = bf16[2,4,512,64]{3,2,1,0} custom-call(%segments, %q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks": "512"
}}, backend_config={"custom_call_config":{"body":"TUz"}}
  %g = f32[1024]{0} parameter(1)
  ROOT %all-reduce = f32[1024]{0} all-reduce(%g), replica_groups=[4,4]<=[16], to_apply=%add
}
"""  # noqa: E501
TARGET = Target("v5e:4x4", range(16), CHIPS["v5e"], (4, 4))


def test_parser_reads_computations_and_joins_broken_lines():
    module = hlo.parse(PROGRAM)
    assert module.entry == "main"
    assert set(module.computations) == {"add", "body", "condition", "main"}
    assert [line.name for line in module.computations["main"]] == [
        "x", "loop", "q", "segments", "splash_mha_dq.1", "g", "all-reduce",
    ]  # fmt: skip
    kernel = module.computations["main"][4]
    assert kernel.operands == ["segments", "q"] and "TUz" in kernel.text


def test_trips_count_in_the_bodys_steps():
    module = hlo.parse(PROGRAM)
    loop = module.computations["main"][1]
    assert module.trips(loop) == 2
    odd = hlo.parse(PROGRAM.replace("constant(4)", "constant(5)"))
    assert odd.trips(loop) == 3
    told = hlo.parse(PROGRAM.replace("body=%body", 'body=%body, known_trip_count={"n":"7"}'))
    assert told.trips(told.computations["main"][1]) == 7
    unknown = hlo.parse(PROGRAM.replace("s32[] constant(4)", "s32[] parameter(1)"))
    assert unknown.trips(unknown.computations["main"][1]) is None


def test_a_collective_runs_beside_what_is_scheduled_until_its_end():
    found = cost.predict(hlo.parse(PROGRAM), TARGET)
    gather = 256 * 128 * 2 * 3 / 4 / 45e9  # a group of 4 has one axis of 4: one link
    reduce = 2 * 1024 * 4 * 3 / 4 / 45e9
    kernel = 3 * 2 * (2 * 4 * 512 * 64) * 512 / (197e12 / 2)
    assert gather > 1500 / 1.5e9  # so that the end waits
    assert found.compute == pytest.approx(2 * 4500 / 1.5e9 + kernel)
    assert found.interconnect == pytest.approx(2 * gather + reduce)
    assert found.seconds == pytest.approx(2 * (gather + 3000 / 1.5e9) + kernel + reduce)
    assert found.moved == {"all-gather": 2 * 256 * 128 * 2, "all-reduce": 4096}
    assert found.calls == 1 and found.unpriced == 0
    other = cost.predict(hlo.parse(PROGRAM.replace("splash_mha_dq", "my_kernel")), TARGET)
    assert other.unpriced == 1 and other.seconds < found.seconds

    slower = cost.predict(hlo.parse(PROGRAM.replace('"1500"', '"15000"')), TARGET)
    assert slower.seconds == pytest.approx(2 * 18000 / 1.5e9 + kernel + reduce)


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%small, %large}", "true_computation=%large, false_computation=%small"],
)
def test_the_dearest_branch_of_a_choice_counts(branches):
    computations = "".join(
        f"%{name} (p: f32[8]) -> f32[8] {{\n  %p = f32[8] parameter(0)\n  ROOT %f = f32[8] "
        f'fusion(%p), calls=%add, backend_config={{"estimated_cycles":"{cycles}"}}\n}}\n\n'
        for name, cycles in (("small", 150), ("large", 1500))
    )
    choice = f"  %choice = f32[8] conditional(%i, %g, %g), {branches}\n  ROOT %all"
    text = PROGRAM.replace("ENTRY", computations + "ENTRY").replace("  ROOT %all", choice)
    found, without = (cost.predict(hlo.parse(x), TARGET) for x in (text, PROGRAM))
    assert found.compute == pytest.approx(without.compute + 1e-6)
    assert found.unpriced == 0


def test_what_the_compiler_does_not_know_is_priced_by_its_bytes():
    text = PROGRAM.replace('"3000"', f'"{2**63 - 1}"')
    found = cost.predict(hlo.parse(text), TARGET)
    known = cost.predict(hlo.parse(PROGRAM), TARGET)
    moved = 3 * 256 * 128 * 2 / 819e9
    assert found.compute == pytest.approx(known.compute + 2 * (moved - 3000 / 1.5e9))


def test_loops_of_unknown_length_count_once_and_are_told():
    text = PROGRAM.replace("s32[] constant(4)", "s32[] parameter(1)")
    found = cost.predict(hlo.parse(text), TARGET)
    assert found.unpriced == 1 and found.moved["all-gather"] == 256 * 128 * 2


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=2] {'fsdp','tensor'}", 8),
        ("", 16),
    ],
)
def test_group_sizes(text, devices):
    assert hlo.group_size(text, 16) == devices


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("bf16[8,4]{1,0:T(8,128)(2,1)}", 64),
        ("(f32[2], pred[3], s8[])", 12),
        ("s4[8]", 4),
        ("token[]", 0),
    ],
)
def test_sizes(text, bytes):
    assert hlo.size(text) == bytes
