"""Is the library right, and how fast is it, on the GPU or TPU of this machine?

    python benchmarks/accelerator.py check speed --budget 400 --official FOLDER FOLDER --cifar cifar10.npz
    python benchmarks/accelerator.py table1 --budget 400 --cifar cifar10.npz --epochs 25 --variants "" wide_convnet

`check`: operations and their gradients against the CPU's, fused against trained at the highest precision and in
bfloat16, a run that is killed and resumed against one that is not, bit for bit, and the first `create_model` and
`fuse_params`. `speed`: forward passes, training steps, whole epochs and the rates of matrix products, beside the
official PyTorch code (the folders of `contestants.py`). `table1`: accuracies on CIFAR-10.

Each result is a line of JSON as it comes, with device, versions, command and date. What does not fit into the budget
is named. It runs from a checkout; where ml_collections and tensorboardX are missing, whole runs are left out, and with
the one file that `pack_cifar10.py` makes neither TFDS nor its readers are needed. `--quick` does every part on small
models and the digits, for one epoch, on a CPU too. The exit code is 1 if a check does not hold or something fails, and
2 for arguments that cannot be used; what is left out does not change it.
"""

import argparse
import datetime
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("check", "speed", "table1")


def main():
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all parts together")
    parser.add_argument("--quick", action="store_true", help="small models, few runs, and one epoch")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to; by default one in results/")
    parser.add_argument("--official", nargs="*", type=Path, default=[], help="folders of the official PyTorch code")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as pack_cifar10.py packs it, or a folder of TFDS datasets")
    parser.add_argument("--variants", nargs="+", help='of configs/cifar.py; by default "" and no_local, or "" if quick')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--at_once", type=int, default=4, help="runs of table1 beside each other")
    parser.add_argument("--workdir", type=Path, help="of the runs of table1; by default runs/table1")
    options = parser.parse_args()
    _complete(options, parser)
    sys.path.insert(0, str(ROOT))
    # Memory is taken as it is needed: runs in other processes share the device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # The QR of orthogonal kernels is ten times slower where several processes each wait with a thread on every core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "4")

    from on_accelerator.journal import Journal, device_kind

    name = device_kind().lower().replace(" ", "_")
    out = options.out or Path(__file__).with_name("results") / f"accelerator_{name}_{datetime.date.today()}.jsonl"
    try:
        journal = Journal(out, options.budget)
    except OSError as error:
        _refuse(parser, f"--out {out}: {error.strerror}")
    for part in (part for part in PARTS if part in options.parts):
        with journal.attempt(part, "the part as a whole"):
            _function(part)(journal, options)
    print(f"written to {out}; {journal.summary()}")
    sys.stdout.flush()
    os._exit(0 if journal.all_right() else 1)  # Compilations that were late are not waited for.


def _complete(options, parser):
    """Makes paths absolute, as runs start in another folder, refuses missing ones, and makes a quick run small."""
    options.official = [path.absolute() for path in options.official]
    options.cifar = options.cifar and options.cifar.absolute()
    options.workdir = (options.workdir or Path("runs", "table1_quick" if options.quick else "table1")).absolute()
    for path in options.official:
        if not path.is_dir():
            _refuse(parser, f"--official: there is no folder {path}")
    if options.cifar and not options.cifar.exists():
        _refuse(parser, f"--cifar: there is no file or folder {options.cifar}")
    if options.at_once < 1:
        _refuse(parser, f"--at_once must be at least 1, got {options.at_once}")
    options.variants = options.variants or ([""] if options.quick else ["", "no_local"])
    if options.quick:
        options.epochs = 1


def _function(part):
    """What does a part, imported late, as it looks for devices."""
    if part == "check":
        from on_accelerator.check import check as function
    elif part == "speed":
        from on_accelerator.speed import speed as function
    else:
        from on_accelerator.table1 import table1 as function
    return function


def _refuse(parser, message):
    parser.exit(2, f"error: {message}\n")


if __name__ == "__main__":
    main()
