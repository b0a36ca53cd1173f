"""What a compiled program costs, as far as its text says: estimated cycles, bytes, copies, collectives.

The estimates are the compiler's own. They compare forms of one program; nothing was executed. Not every instruction has
one: on TPUs reshapes to other tiles and transfers beside the computation have none.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from ahead_of_time.hlo import Array, Instruction, Program

PRODUCTS, REDUCTIONS, COPIES, COLLECTIVES = "products and convolutions", "reductions", "copies and casts", "collectives"
GATHERS, REST = "gathers and scatters", "elementwise and others"
ACROSS_CHIPS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Attributes that name computations which run, besides `calls` of fusions.
RUNS = ("body", "to_apply", "branch_computations", "true_computation", "false_computation")
# What a kind is told by, the first that fits.
MARKS = {
    PRODUCTS: {"convolution", "dot"},
    GATHERS: {"gather", "scatter"},
    REDUCTIONS: {"reduce", "reduce-window", "select-and-scatter"},
    COLLECTIVES: {*ACROSS_CHIPS},  # The last, as a collective may run within the fusion of something else.
}
# Nothing is computed by these, and nothing moves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id", "iota"),
}
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "MoveToHost", "MoveToDevice")
# These only bring numbers to another place, order or type.
MOVES = {
    *("fusion", "copy", "convert", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice"),
    *("concatenate", "pad", "broadcast", "reverse", "async", *FREE),
}
# These read no more than they write.
SLICES = {"fusion", "slice", "dynamic-slice", *FREE}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one instruction costs, over all times that it runs.

    Attributes:
        instruction: the instruction; the one that waits, if it runs beside others.
        kind: a key of `MARKS`, "copies and casts", or the rest.
        cycles: estimated, or None.
        bytes: read from and written to the main memory.
        padded_bytes: these in whole tiles.
        times: that it runs.
    """

    instruction: Instruction
    kind: str
    cycles: int | None
    bytes: int
    padded_bytes: int
    times: int


def costs(program: Program) -> list[Cost]:
    """The costs of all instructions that run; a fusion counts as one, and all branches of a choice count."""
    return [_cost(program, *place) for place in _running(program, program.entry, 1)]


def parameters(program: Program, prefixes: tuple[str, ...]) -> list[Array]:
    """The arrays of the program's arguments whose paths start with one of the prefixes."""
    instructions = program.computations[program.entry]
    return [
        array
        for instruction in instructions
        if instruction.opcode == "parameter" and instruction.op_name.startswith(prefixes)
        for array in instruction.arrays
    ]


def collectives(program: Program) -> dict[str, dict[str, int]]:
    """Kind of collective → how many run, and the bytes of the arrays that they sum, gather or scatter."""
    found: dict[str, dict[str, int]] = {}
    seen = set()

    def add(computation, times):
        here = {instruction.name: instruction for instruction in program.computations[computation]}
        for instruction in here.values():
            kind = instruction.opcode.removesuffix("-start")
            # Parts of one collective, spread over several fusions, have its channel.
            channel = instruction.channel or instruction.name
            if kind in ACROSS_CHIPS and (kind, channel) not in seen:
                seen.add((kind, channel))
                row = found.setdefault(kind, dict(count=0, bytes=0))
                row["count"] += times
                row["bytes"] += times * _whole_bytes(here, instruction)
            for inner in instruction.called("calls", *RUNS):
                if kind not in ACROSS_CHIPS:
                    add(inner, times * instruction.trip_count)

    add(program.entry, 1)
    return dict(sorted(found.items()))


def _whole_bytes(here, collective) -> int:
    given = [array.bytes for name in collective.operands if name in here for array in here[name].arrays]
    taken = [array.bytes for array in collective.arrays]
    if collective.opcode.endswith("-start"):  # Its result holds the operands, too.
        return max(max(given, default=0), max(taken, default=0))
    return max(sum(given), sum(taken))


def summary(found: list[Cost], clock: float | None, bandwidth: float, dearest: int = 8) -> dict:
    """Estimated milliseconds and bytes, as a whole, by kind, and of the instructions that cost most.

    Args:
        found: of `costs`.
        clock: cycles a second; None if there are no estimates, and shares are of bytes.
        bandwidth: bytes a second of the main memory.
        dearest: number of instructions to name, where those that are alike count as one.
    """

    def weight(cost):
        return cost.padded_bytes if clock is None else cost.cycles or 0

    def milliseconds(cycles):
        return None if clock is None else cycles / clock * 1e3

    def share(part):
        return sum(map(weight, part)) / total if total else 0.0

    total = sum(map(weight, found))
    by_kind = collections.defaultdict(list)
    for cost in found:
        by_kind[cost.kind].append(cost)
    plain, padded = sum(cost.bytes for cost in found), sum(cost.padded_bytes for cost in found)
    without = [cost for cost in found if cost.cycles is None]
    return dict(
        estimated_ms=milliseconds(sum(cost.cycles or 0 for cost in found)),
        traffic=_padding(plain, padded) | dict(ms_at_bandwidth=padded / bandwidth * 1e3),
        kernels=sum(cost.times for cost in found),
        shares_of="bytes" if clock is None else "estimated time",
        copies_share=share(by_kind[COPIES]),
        kinds={
            kind: dict(
                share=share(part),
                ms=milliseconds(sum(cost.cycles or 0 for cost in part)),
                kernels=sum(cost.times for cost in part),
                padded_bytes=sum(cost.padded_bytes for cost in part),
            )
            for kind, part in sorted(by_kind.items(), key=lambda item: -share(item[1]))
            if part
        },
        dearest=[
            dict(
                share=share(part),
                ms=milliseconds(sum(cost.cycles or 0 for cost in part)),
                kind=part[0].kind,
                kernels=sum(cost.times for cost in part),
                padded_bytes=sum(cost.padded_bytes for cost in part),
                instruction=part[0].instruction.name,
                output=_output(part[0]),
                op_name=part[0].instruction.op_name,
            )
            for part in sorted(_alike(found), key=lambda part: -sum(map(weight, part)))[:dearest]
        ],
        without_estimate=dict(
            kernels=sum(cost.times for cost in without), padded_bytes=sum(cost.padded_bytes for cost in without)
        ),
    )


def _alike(found: list[Cost]) -> list[list[Cost]]:
    """Instructions of one kind with outputs of one shape, from the same operation of blocks of several numbers."""
    groups = collections.defaultdict(list)
    for cost in found:
        groups[cost.kind, _output(cost), re.sub(r"\d+", "", cost.instruction.op_name)].append(cost)
    return list(groups.values())


def _output(cost):
    return " ".join(array.text for array in cost.instruction.arrays[:2])


def padding(found: list[Array]) -> dict:
    """Bytes of arrays, in whole tiles, too, and their ratio."""
    return _padding(sum(array.bytes for array in found), sum(array.padded_bytes for array in found))


def _padding(plain, padded):
    return dict(bytes=plain, padded_bytes=padded, padded_over_plain=padded / plain if plain else 1.0)


def _running(program: Program, computation: str, times: int) -> Iterator[tuple[dict, Instruction, int]]:
    """Yields the instructions that run with those of their computation by name, and how often they run."""
    here = {instruction.name: instruction for instruction in program.computations[computation]}
    for instruction in here.values():
        # Loops and branches run; what a fusion calls is part of it, and what a reduction applies of that.
        if instruction.opcode in ("while", "call", "conditional"):
            for inner in instruction.called(*RUNS):
                yield from _running(program, inner, times * instruction.trip_count)
            continue
        is_free = instruction.opcode in FREE or instruction.custom_call_target in FREE_CALLS
        # What runs beside others counts once, where its result is waited for.
        if not is_free and not instruction.opcode.endswith("-start"):
            yield here, instruction, times


def _cost(program, here, instruction, times):
    start = here[instruction.operands[0]] if instruction.opcode.endswith("-done") else instruction
    opcodes = _inside(program, start) | {instruction.opcode.removesuffix("-done")}
    sources = [here[name] for name in start.operands if name in here]
    read = [array for source in sources for array in source.arrays if array.is_in_hbm]
    # Of a library's call only the first result is one; the others are its scratch memory.
    results = instruction.arrays[:1] if _is_product_of_a_library(start) else instruction.arrays
    written = [array for array in results if array.is_in_hbm]
    if instruction.opcode in ("copy-done", "slice-done") or opcodes <= SLICES:
        read = list(instruction.arrays) if read else []  # As much is read as is written, to whichever memory.
    cycles = [part.estimated_cycles for part in {id(start): start, id(instruction): instruction}.values()]
    known = [part for part in cycles if part is not None]
    return Cost(
        instruction=dataclasses.replace(instruction, attributes=start.attributes),
        kind=PRODUCTS if _is_product_of_a_library(start) else _kind(opcodes),
        cycles=times * sum(known) if known else None,
        bytes=times * sum(array.bytes for array in (*read, *written)),
        padded_bytes=times * sum(array.padded_bytes for array in (*read, *written)),
        times=times,
    )


def _inside(program, instruction) -> set[str]:
    """The opcodes that an instruction consists of, within fusions, too."""
    found = {instruction.opcode}
    for name in instruction.called("calls"):
        for inner in program.computations.get(name, ()):
            found |= _inside(program, inner)
    return {opcode.removesuffix("-start").removesuffix("-done") for opcode in found}


def _is_product_of_a_library(instruction: Instruction) -> bool:
    """Whether an instruction calls a matrix product or a convolution of cuBLAS or cuDNN."""
    return any(name in instruction.custom_call_target for name in ("cublas", "cudnn"))


def _kind(opcodes: set[str]) -> str:
    for kind, marks in MARKS.items():
        if opcodes & marks:
            return kind
    return COPIES if opcodes <= MOVES else REST
