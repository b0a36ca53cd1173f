"""How long does fusing a model take, and how much memory, beside the official conversion of the same model?

    python benchmarks/fusing.py --official FOLDER FOLDER

The official code converts the RepMLP blocks, and in ResNets the other norms; `fuse_params` folds all norms. Ours is
timed twice: the first call of a process, which compiles, and later ones. Peak memory is what a process holds at most
during its first call, beyond what it held before. The folders are those of `contestants.py`; needs torch; both use all
cores.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time

import jax
from contestants import convert, official
from flax import nnx
from measure import peak_memory, record, summary
from nets import NETS, ours

from repmlp_jax import fuse_params


def main():
    """Measures, prints ratios and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", nargs="+", required=True, help="folders of the official code")
    parser.add_argument("--models", nargs="+", default=(*NETS, "RepMLPNet-L256"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--first_call_of", choices=("ours", "official"), help="only do this once, and print JSON")
    options = parser.parse_args()
    if options.first_call_of:
        print(json.dumps(first_call(options.first_call_of, options.models[0], options.official)))
        return
    measured = {}
    for name in options.models:
        measured[name] = row = measure(name, options)
        print(
            f"{name:30} official {row['official']['median']:.2f} s, ours {row['later_calls']['median']:.2f} s: "
            f"{row['official_to_later_calls']:.1f}; first call {row['first_call']['median']:.2f} s: "
            f"{row['official_to_first_call']:.1f}; peak memory {row['peak_bytes']['official'] / 2**20:.0f} : "
            f"{row['peak_bytes']['ours'] / 2**20:.0f} MiB",
            flush=True,
        )
    print("recorded:", record("fusing", measured))


def measure(name: str, options) -> dict:
    """Seconds of both conversions and their ratios, and the peak memory of each."""
    model = ours(name)
    seconds = interleaved_with_the_official(name, model, options)
    firsts = {which: [in_a_new_process(which, name, options) for _ in range(3)] for which in ("ours", "official")}
    first = summary([row["seconds"] for row in firsts["ours"]])
    official = seconds["official"]["median"]
    return dict(
        official=seconds["official"],
        later_calls=seconds["ours"],
        first_call=first,
        official_to_later_calls=official / seconds["ours"]["median"],
        official_to_first_call=official / first["median"],
        peak_bytes={which: statistics.median(row["peak_bytes"] for row in rows) for which, rows in firsts.items()},
    )


def interleaved_with_the_official(name, model, options) -> dict:
    """Seconds of both, in turn; the official one is given a new copy each time, since some of it works in place."""
    net = official(name, model, options.official)
    times = {"ours": [], "official": []}
    for _ in range(options.runs + 1):
        for which, conversion in (("ours", fuse), ("official", convert)):
            given = model if which == "ours" else copy.deepcopy(net)
            begin = time.perf_counter()
            conversion(given)
            times[which].append(time.perf_counter() - begin)
    return {which: summary(seconds[1:]) for which, seconds in times.items()}


def first_call(which: str, name: str, folders: list[str]) -> dict:
    """Seconds and peak bytes of one conversion in a process that has done none before."""
    model = ours(name)
    conversion, given = (fuse, model) if which == "ours" else (convert, official(name, model, folders))
    begin = time.perf_counter()
    peak = peak_memory(lambda: conversion(given))
    return dict(seconds=time.perf_counter() - begin, peak_bytes=peak)


def in_a_new_process(which: str, name: str, options) -> dict:
    """What `first_call` gives in a process of its own."""
    command = [sys.executable, __file__, "--official", *options.official, "--models", name, "--first_call_of", which]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def fuse(model):
    """Ours, waited for."""
    return jax.block_until_ready(nnx.state(fuse_params(model)))


if __name__ == "__main__":
    main()
