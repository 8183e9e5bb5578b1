"""Scheduled HLO text as data: computations, their instructions, trip counts and bytes."""

import dataclasses
import functools
import math
import re

_DTYPES = {
    0.5: "s4 u4",
    1: "pred s8 u8 f8e4m3fn f8e5m2",
    2: "s16 u16 bf16 f16",
    4: "s32 u32 f32",
    8: "s64 u64 f64",
}
_BYTES = {name: size for size, names in _DTYPES.items() for name in names.split()}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([\w\-]+)\((.*)")

COLLECTIVES = frozenset(
    "all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all "
    "collective-permute collective-broadcast".split()
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str  # without the percent sign
    type: str  # of its result
    opcode: str  # such as `fusion`
    text: str  # operands and attributes

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.text.split("), ")[0])

    def called(self, attribute: str = "calls") -> str:
        """Name of the computation that an attribute names, empty without one."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.text)
        return match[1] if match else ""

    @property
    def branches(self) -> list[str]:
        """Names of the computations that a `conditional` chooses from."""
        several = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        if several:
            return re.findall(r"[\w.\-]+", several[1])
        two = (self.called("true_computation"), self.called("false_computation"))
        return [name for name in two if name]

    def number(self, pattern: str) -> float | None:
        """The number in the first group of a pattern in its attributes."""
        match = re.search(pattern, self.text)
        return None if match is None else float(match[1])

    @property
    def collective(self) -> str:
        """Which collective it is or starts; empty if it is none."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program's computations by name; `entry` is the name of the first."""

    computations: dict[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs; None where that is not a constant.

        The condition compares a counter with a constant, and the body adds a constant to it; loops
        that XLA has unrolled, such as windowed einsums, count in larger steps.
        """
        known = loop.number(r"known_trip_count[^\d]*(\d+)")
        if known is not None:
            return int(known)
        condition, body = loop.called("condition"), loop.called("body")
        if condition not in self.computations or body not in self.computations:
            return None
        limits = [*self._constants(condition).values()]
        for line in self.computations[condition]:
            limits += self._constants(line.called()).values()
        if not limits:
            return None
        counters = set(self._indices(condition).values())
        constants, read = self._constants(body), self._indices(body)
        steps = []
        for line in self.computations[body]:
            if line.opcode == "add" and len(line.operands) == 2:
                counter, step = line.operands
                if read.get(counter) in counters and constants.get(step, 0) > 0:
                    steps.append(constants[step])
        return math.ceil(max(limits) / max(steps, default=1))

    def first_collective(self, name: str, depth: int = 3) -> Instruction | None:
        """The first collective of a computation or of those that it calls."""
        for line in self.computations.get(name, []):
            if line.collective:
                return line
            inner = depth and self.first_collective(line.called(), depth - 1)
            if inner:
                return inner
        return None

    def _constants(self, name: str) -> dict[str, int]:
        """Values of a computation's constants; none of one that is not there."""
        values = {}
        for line in self.computations.get(name, []):
            match = re.match(r"(-?\d+)\)", line.text)
            if line.opcode == "constant" and match:
                values[line.name] = int(match[1])
        return values

    def _indices(self, name: str) -> dict[str, float | None]:
        """Which element of a tuple each of a computation's lines takes."""
        lines = self.computations[name]
        taking = [line for line in lines if line.opcode == "get-tuple-element"]
        return {line.name: line.number(r"index=(\d+)") for line in taking}


def parse(text: str) -> Module:
    """Reads what `compiled.as_text()` gives."""
    computations: dict[str, list[Instruction]] = {}
    lines: list[str] | None = None
    name = entry = ""
    for line in text.splitlines():
        if lines is None:
            if header := _HEADER.match(line):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.rstrip() == "}":
            computations[name] = [made for x in lines if (made := _instruction(x))]
            lines = None
        elif _LINE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # metadata of Pallas kernels hold line breaks
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    kind, rest = _split_type(match[2]) if match else ("", "")
    opcode = _OPCODE.match(rest)
    return Instruction(match[1], kind, opcode[1], opcode[2]) if match and opcode else None


def _split_type(text: str) -> tuple[str, str]:
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[: i + 1], text[i + 1 :].strip()
    return text, ""


def size(type_text: str) -> float:
    """Bytes of a type, summed over a tuple."""
    return sum(
        math.prod(int(d) for d in dims.split(",") if d) * _BYTES[dtype]
        for dtype, dims in _ARRAY.findall(type_text)
    )


def shape(type_text: str) -> tuple[int, ...]:
    """Dimensions of the first array of a type; (0,) for none."""
    array = _ARRAY.search(type_text)
    return tuple(int(d) for d in array[2].split(",") if d) if array else (0,)


def group_size(text: str, devices: int) -> int:
    """Devices that take part in one group of a collective."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return devices
