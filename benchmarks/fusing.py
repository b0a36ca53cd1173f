"""How long does fusing a model take, beside the official conversion of the same model?

    python benchmarks/fusing.py --official PATH_OF_THE_OFFICIAL_REPOSITORY --models RepMLPNet-T224 RepMLPNet-L256

The official repository's `locality_injection` converts the RepMLP blocks; `fuse_params` folds all other norms, too.
Ours is timed twice: the first call of a process, which compiles, and later ones. Needs torch; both use all cores.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
from flax import nnx
from measure import interleaved, record

from repmlp_jax import create_model, fuse_params


def main():
    """Measures, prints ratios and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="folder that holds the official repmlpnet.py")
    parser.add_argument("--models", nargs="+", default=["RepMLPNet-T224", "RepMLPNet-L256"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--first_call", metavar="MODEL", help="only time the first call for this model, and print it")
    options = parser.parse_args()
    if options.first_call:
        print(first_call(options.first_call))
        return
    measured = {}
    for name in options.models:
        model = build(name)
        official = official_conversion(options.official, name, options.runs)
        later = interleaved({"fuse_params": lambda model=model: nnx.state(fuse_params(model))}, options.runs)
        first = [first_call_of_a_new_process(options, name) for _ in range(3)]
        later = later["fuse_params"]
        measured[name] = dict(
            official=official,
            first_call=dict(median=statistics.median(first), minimum=min(first), maximum=max(first), runs=len(first)),
            later_calls=later,
            official_to_first_call=official["median"] / statistics.median(first),
            official_to_later_calls=official["median"] / later["median"],
        )
        print(f"{name}: official {official['median']:.2f} s", end="")
        for which in ("first_call", "later_calls"):
            print(f", {which} {measured[name][which]['median']:.2f} s", end="")
        print(f", ratios {measured[name]['official_to_first_call']:.1f}, {official['median'] / later['median']:.1f}")
    print("recorded:", record("fusing", measured))


def build(name):
    """A model with any weights and statistics; their values do not matter here."""
    model = nnx.jit(lambda: create_model(name, rngs=nnx.Rngs(0)))()
    jax.block_until_ready(nnx.state(model))
    return model


def first_call(name) -> float:
    """Seconds of the first call, compilation included."""
    model = build(name)
    start = time.perf_counter()
    jax.block_until_ready(nnx.state(fuse_params(model)))
    return time.perf_counter() - start


def first_call_of_a_new_process(options, name) -> float:
    """Seconds of `first_call` where nothing has been compiled before."""
    command = [sys.executable, __file__, "--official", str(options.official), "--first_call", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def official_conversion(folder, name, runs) -> dict:
    """Seconds of the official conversion, each time of a new model, since it works in place."""
    sys.path.insert(0, str(folder))
    import repmlpnet
    import torch

    make = getattr(repmlpnet, f"create_{name.replace('-', '_')}")

    def seconds():
        model = make(deploy=False).eval()
        start = time.perf_counter()
        with torch.no_grad():
            model.locality_injection()
        return time.perf_counter() - start

    seconds()
    times = [seconds() for _ in range(runs)]
    return dict(median=statistics.median(times), minimum=min(times), maximum=max(times), runs=runs)


if __name__ == "__main__":
    main()
