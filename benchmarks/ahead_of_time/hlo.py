"""Reading the text of a compiled program: its computations, their instructions, and the arrays with their tiles."""

import dataclasses
import math
import re

BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64},
    **{"f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64},
}
# f32[8,100]{1,0:T(8,128)S(1)}: type, sides, order of the axes from the fastest on, tile, memory.
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
        text: its type and shape, as `f32[8,100]`.
        bytes: of its numbers.
        padded_bytes: that it takes in whole tiles.
        is_in_hbm: whether it lies in the device's main memory, and not in a memory on the chip.
    """

    text: str
    bytes: int
    padded_bytes: int
    is_in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        name: unique in its computation.
        opcode: "fusion", "copy", "all-reduce-start" …
        arrays: its result; several if that is a tuple.
        operands: names of instructions of the same computation.
        attributes: the rest of its line.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The operation in the model's code that it comes from; empty if the compiler made it."""
        return self._attribute(r'op_name="((?:[^"\\]|\\.)*)"').replace("\\'", "'")

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's estimate; None if it made none."""
        cycles = self._attribute(r'"estimated_cycles":"(\d+)"')
        return int(cycles) if cycles else None

    @property
    def trip_count(self) -> int:
        """How often a loop runs, if the compiler knows; 1 if not."""
        return int(self._attribute(r'"known_trip_count":\{"n":"(\d+)"') or 1)

    @property
    def channel(self) -> str:
        """Of a collective: its number in the program; empty for other instructions."""
        return self._attribute(r"channel_id=(\d+)")

    @property
    def custom_call_target(self) -> str:
        """What a custom call calls; empty for other instructions."""
        return self._attribute(r'custom_call_target="([^"]*)"')

    def called(self, *attributes: str) -> list[str]:
        """The computations that some attributes name, such as `calls` of a fusion and `body` of a loop."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return [name.strip(" %") for names in found for name in names.strip("{}").split(",")]

    def _attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: name → instructions in the order in which they run.
        entry: name of the computation that runs.
    """

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` returns.

    Raises:
        ValueError: if the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = inside = ""
    for line in text.splitlines():
        if not inside:
            if header := COMPUTATION.match(line):
                inside = header.group(2)
                computations[inside] = []
                entry = inside if header.group(1) else entry
        elif line.startswith("}"):
            inside = ""
        elif instruction := INSTRUCTION.match(line):
            computations[inside].append(_instruction(*instruction.groups()))
    if not entry:
        raise ValueError(f"the text of {len(text)} characters holds no entry computation, so it is no HLO")
    return Program(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays of a type, which may be a nested tuple."""
    return tuple(_array(*found.groups()) for found in ARRAY.finditer(text) if found.group(1) in BITS)


def _instruction(name, text):
    # The type of a tuple has spaces; that of an array has none.
    kind, rest = _in_brackets(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, rest = rest.strip().partition("(")
    operands, attributes = _in_brackets("(" + rest)
    names = tuple(re.findall(r"%([\w.-]+)", operands))
    return Instruction(name, opcode, arrays(kind), names, attributes)


def _in_brackets(text: str) -> tuple[str, str]:
    """The part of a text up to the bracket that closes its first one, and what follows."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _array(dtype, sides, order, layout):
    shape = [int(side) for side in sides.split(",") if side]
    axes = [int(axis) for axis in (order or "").split(",") if axis] or range(len(shape))[::-1]
    fastest_first = [shape[axis] for axis in axes]
    tile = re.search(r"T\(([\d,]+)\)", layout or "")
    tile_sides = [int(side) for side in tile.group(1).split(",")][::-1] if tile else []
    padded = [-(-side // multiple) * multiple for side, multiple in zip(fastest_first, tile_sides, strict=False)]
    padded += fastest_first[len(padded) :]
    memory = re.search(r"S\((\d+)\)", layout or "")
    return Array(
        text=f"{dtype}[{sides}]",
        bytes=math.prod(shape) * BITS[dtype] // 8,
        padded_bytes=math.prod(padded) * BITS[dtype] // 8,
        is_in_hbm=memory is None or memory.group(1) == "0",
    )
