"""What does the compiler for a TPU or a GPU make of our programs? It needs no such device.

    python benchmarks/compile_for.py v5e                                   # the table: minutes to an hour
    python benchmarks/compile_for.py v5e --rows pure_mlp:128:fused:float32 RepMLPNet-T224:8:fused:bfloat16
    python benchmarks/compile_for.py v6e --quick                           # small models
    python benchmarks/compile_for.py --compare OLD.jsonl NEW.jsonl

Programs are compiled ahead of time from shapes alone, and their text is read: the estimated time, the padding of tiles,
copies, collectives, and the instructions that cost most. The estimates are the compiler's own and serve for ratios of
one program to another; nothing is executed. On TPUs they leave out reshapes to other tiles, and transfers that run
beside the computation, so bytes over bandwidth stand beside them. For GPUs there are no estimates: kernels and bytes
are counted.

A row is MODEL:BATCH:WHAT:DTYPE, for several chips with MESH:fsdpN, as `pure_mlp:2048:step:float32:4x4:fsdp4`. WHAT is
`fused` or `trained`, the forward pass in evaluation mode, `int8`, that of a fused model with weights in int8, or
`step`, a training step by the recipe in `configs/`.
DTYPE is `float32`, `bfloat16`, which keeps parameters in float32, or `bfloat16_parameters`, which does not.

The compiler comes with a plugin of JAX, best in an environment beside the usual one, as the plugin looks for its device
whenever JAX starts:

    python -m venv aot && aot/bin/pip install -r requirements.txt "jax[tpu]"    # v5e, v6e
    python -m venv aot && aot/bin/pip install -r requirements.txt "jax-cuda12-plugin[with-cuda]"    # h100: 5.5 GB

Each result is a line of JSON in `results/compile_for_TARGET.jsonl`, written as it comes; a row that was there is
replaced. The exit code is 1 if a row could not be compiled, or with `--compare` if something grew by more than 5 %,
and 2 for arguments that cannot be used.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from ahead_of_time.changes import changes, read
from ahead_of_time.rows import QUICK, TABLE, row
from ahead_of_time.targets import TARGETS, prepare

ROOT = Path(__file__).resolve().parents[1]
ESTIMATED = "estimated by the compiler, for ratios of one program to another; nothing was executed"
COUNTED = "counted in what the compiler made; nothing was executed"


def main():
    """Compiles the rows, prints, records and draws; or compares two files."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="instead of the table")
    parser.add_argument("--quick", action="store_true", help="a few small models instead of the table")
    parser.add_argument("--out", type=Path, help="file of JSON lines; by default one in results/")
    parser.add_argument("--hlo", type=Path, help="folder for the text of each compiled program")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="print what changed")
    options = parser.parse_args()
    try:
        if options.compare:
            sys.exit(compare(*map(read, options.compare)))
        sys.exit(compile_rows(options))
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


def compare(old: dict[str, dict], new: dict[str, dict]) -> int:
    """Prints what changed, and returns whether anything is worse."""
    return any([is_worse for line, is_worse in changes(old, new) if not print(line)])


def compile_rows(options) -> int:
    """Compiles the rows one after another, and returns whether any failed.

    Raises:
        ValueError: if there is no such target or row, or no compiler for it.
    """
    if options.target is None:
        raise ValueError(f"for which device? one of {', '.join(TARGETS)}")
    if options.rows and options.quick:
        raise ValueError("--rows and --quick both choose rows; small models are rows too: 'small pure_mlp:8:…'")
    rows = [row(name) for name in options.rows] if options.rows else QUICK if options.quick else TABLE
    target = TARGETS[options.target]
    if not any(importlib.util.find_spec(name) for name in target.modules):
        raise ValueError(f"{target.name} needs {target.package}, best in an environment of its own; see --help")
    out = options.out or ROOT / "benchmarks" / "results" / f"compile_for_{options.target}.jsonl"
    sys.path.insert(0, str(ROOT))
    prepare(target)

    from ahead_of_time.picture import draw
    from ahead_of_time.report import measure, printed, record

    title = f"{target.name}: {COUNTED if target.clock is None else ESTIMATED}"
    print(title)
    failed = 0
    for each in rows:
        found = measure(each, options.target, options.hlo)
        record(out, found)
        print(printed(found), flush=True)
        failed += "failed" in found
    if compiled := {name: found for name, found in read(out).items() if "failed" not in found}:
        draw(compiled, title).savefig(out.with_suffix(".png"), dpi=120)
    print(f"written to {out}")
    return failed > 0


if __name__ == "__main__":
    main()
