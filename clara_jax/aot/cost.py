"""Predicted time of a TPU program: the compiler's own cycle estimates, and its collectives.

`cost_analysis()` counts the body of a loop once and does not price the interconnect. So this walks
the scheduled program: cycles of every fusion, times the trips of the loops around it; collectives
by bytes over the links that their group has. A collective that was started runs beside what is
scheduled until its end, which waits for it. Pallas kernels carry no estimate: attention is priced
by its matmuls at half of the peak. Nothing here was checked on a TPU: trust ratios.
"""

import dataclasses
import math
from collections import Counter

from clara_jax.aot.chips import Target
from clara_jax.aot.hlo import Instruction, Module, group_size, shape, size

_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast copy-start copy-done slice-start "
    "slice-done after-all partition-id replica-id iota opt-barrier".split()
)
_CYCLES = r'"estimated_cycles":"(\d+)"'
_UNKNOWN = 1e15  # cycles; some fusions that gather int8 weights are said to take 2**63
# Matmuls of queries' size by all keys, in each kernel of the TPU's attention.
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
# How often a collective moves (n - 1) / n of its bytes in a group of n, or which share once.
_ROUNDS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
_SHARES = {"all-to-all": 0.25, "ragged-all-to-all": 0.25}
_KERNEL_SHARE = 0.5  # of the peak


@dataclasses.dataclass
class Cost:
    """Seconds and bytes of a computation on one device."""

    seconds: float = 0.0  # with collectives beside the computation where the schedule has them so
    compute: float = 0.0  # of which it computes
    interconnect: float = 0.0  # of collectives, whether or not something is computed meanwhile
    moved: Counter[str] = dataclasses.field(default_factory=Counter)  # bytes of collectives by kind
    calls: int = 0  # Pallas kernels
    # loops of unknown length, counted once, and kernels and choices of unknown work
    unpriced: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds another, which runs `times` times after this."""
        self.seconds += times * other.seconds
        self.compute += times * other.compute
        self.interconnect += times * other.interconnect
        self.moved += Counter({kind: times * n for kind, n in other.moved.items()})
        self.calls += times * other.calls
        self.unpriced += other.unpriced


def predict(module: Module, target: Target) -> Cost:
    """The cost of one run of a program on a TPU topology."""
    return _Walk(module, target).cost(module.entry)


class _Walk:
    def __init__(self, module: Module, target: Target) -> None:
        assert target.chip is not None  # `local` is not predicted
        self.module, self.target, self.chip = module, target, target.chip
        self.known: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.known:
            self.known[name] = self._computation(name)
        return self.known[name]

    def _computation(self, name: str) -> Cost:
        cost, types = Cost(), {}
        link_free = 0.0  # when the interconnect has done what was started so far
        ends: dict[str, float] = {}
        for line in self.module.computations[name]:
            types[line.name] = line.type
            read = sum(size(types.get(operand, "")) for operand in line.operands)
            moving = self._collective(line)
            if _is_end(line):
                for started in (*line.operands, line.name.replace("done", "start")):
                    cost.seconds = max(cost.seconds, ends.get(started, 0.0))
            elif moving is not None:
                seconds = self._move(cost, moving, read if moving is line else None)
                link_free = max(link_free, cost.seconds) + seconds
                if _is_start(line):
                    ends[line.name] = link_free
                else:
                    cost.seconds = link_free
            elif line.opcode == "while":
                trips = self.module.trips(line)
                cost.unpriced += trips is None
                cost.add(self.cost(line.called("body")), trips or 1)
            elif line.opcode == "conditional":
                branches = [self.cost(name) for name in line.branches]
                cost.unpriced += not branches
                cost.add(max(branches, key=lambda branch: branch.seconds, default=Cost()))
            elif line.opcode == "call":
                cost.add(self.cost(line.called("to_apply")))
            elif line.opcode not in _FREE:
                seconds = self._compute(cost, line, read, types)
                cost.compute += seconds
                cost.seconds += seconds
        cost.seconds = max(cost.seconds, link_free)
        return cost

    def _collective(self, line: Instruction) -> Instruction | None:
        """The collective that a line is, or that the fusion it starts holds."""
        if line.collective:
            return line
        return self.module.first_collective(line.called()) if _is_start(line) else None

    def _move(self, cost: Cost, line: Instruction, read: float | None) -> float:
        """Seconds of a collective, entered in `cost`."""
        n = group_size(line.text, len(self.target.devices))
        written = size(line.type)
        kind = line.collective
        if kind == "all-gather":
            total = max(written - (read or 0) if line.opcode.endswith("start") else written, 0)
        elif kind == "reduce-scatter":
            total = read if read else written * n
        else:
            total = read if read else written
        factor = _ROUNDS[kind] * (n - 1) / n if kind in _ROUNDS else _SHARES.get(kind)
        bandwidth = self.chip.link if factor is None else self._bandwidth(n)
        seconds = total * (1 if factor is None else factor) / bandwidth
        cost.moved[kind] += int(total)
        cost.interconnect += seconds
        return seconds

    def _bandwidth(self, devices: int) -> float:
        """Bytes a second into a chip of a group of devices, over the axes that the group spans."""
        links, spanned = 0, 1
        for axis in sorted((a for a in self.target.axes if a > 1), reverse=True):
            if spanned >= devices:
                break
            spanned *= axis
            links += 2 if axis >= self.chip.wraps else 1
        return self.chip.link * max(links, 1)

    def _compute(self, cost: Cost, line: Instruction, read: float, types: dict[str, str]) -> float:
        chip = self.chip
        cycles = line.number(_CYCLES)
        if "tpu_custom_call" in line.text:
            cost.calls += 1
            matmuls = [n for name, n in _KERNELS.items() if line.name.startswith(name)]
            cost.unpriced += not matmuls
            work = 0.0
            if matmuls:
                # Queries are the largest operand, [.., T, C].
                queries = max((shape(types.get(name, "")) for name in line.operands), key=math.prod)
                work = matmuls[0] * 2 * math.prod(queries) * queries[-2]
            moved = size(line.type) + read
            return max(work / (chip.flops * _KERNEL_SHARE), moved / chip.bandwidth)
        if cycles is None or cycles > _UNKNOWN:  # whatever has no estimate reads and writes
            return (size(line.type) + read) / chip.bandwidth
        return cycles / chip.clock


def _is_start(line: Instruction) -> bool:
    return line.opcode.endswith("-start") or (line.opcode == "fusion" and "start" in line.name)


def _is_end(line: Instruction) -> bool:
    if line.opcode == "fusion":
        return "done" in line.name
    return line.opcode.endswith("-done") and line.opcode not in _FREE
