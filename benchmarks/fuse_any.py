"""What does fuse_params do to nets that know nothing of it, and how fast are they afterwards?

    python benchmarks/fuse_any.py

The nets are those of `convnets.py`, with random norms. Both forward passes are compiled and run in turn. Finding and
folding is timed in a process of its own, at its first call, which compiles the folding.
"""

import argparse
import json
import subprocess
import sys
import time

import jax
import numpy as np
from convnets import CONVNETS, image_batch
from flax import nnx
from measure import interleaved, record
from nets import jax_forward, with_random_norms

from repmlp_jax import fuse_params, fuse_report


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=tuple(CONVNETS), choices=CONVNETS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=(1,))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="how often the medians are taken, for their spread")
    parser.add_argument("--only_fuse", action="store_true", help="only fuse the first model, and print the seconds")
    options = parser.parse_args()
    if options.only_fuse:
        print(json.dumps(seconds_of_fusing(options.models[0])))
        return
    measured = {}
    for name in options.models:
        measured[name] = row = measure(name, options)
        print(f"{name}: {json.dumps(row, indent=1)}", flush=True)
    print("recorded:", record("fuse_any", measured))


def measure(name: str, options) -> dict:
    """What is folded, the difference, the seconds of fusing, and for each batch size both forward passes."""
    model = net(name)
    example = image_batch(1)
    fused = fuse_params(model, example)
    report = fuse_report(model, example)
    row = dict(
        norms=[count(one, nnx.BatchNorm) for one in (model, fused)],
        convolutions=[count(one, nnx.Conv) for one in (model, fused)],
        parameters=report.parameters,
        macs=report.macs,
        seconds_of_fusing=[in_a_new_process(name) for _ in range(options.repeats)],
    )
    for size in options.batch_sizes:
        images = np.random.default_rng(size).standard_normal(image_batch(size).shape, np.float32)
        calls = dict(before=jax_forward(model, images), after=jax_forward(fused, images))
        if size == 1:
            row["largest_difference"] = difference(calls["before"](), calls["after"]())
        rounds = [interleaved(calls, options.runs) for _ in range(options.repeats)]
        ratios = [seconds["before"]["median"] / seconds["after"]["median"] for seconds in rounds]
        middle = int(np.argsort(ratios)[len(ratios) // 2])
        row[f"batch_{size}"] = rounds[middle] | dict(ratio=ratios[middle], ratios=sorted(ratios))
    return row


def net(name: str) -> nnx.Module:
    """One of the nets in evaluation mode."""
    return with_random_norms(CONVNETS[name](rngs=nnx.Rngs(0)))


def count(model: nnx.Module, kind: type) -> int:
    """How many modules of a class a model holds."""
    return sum(isinstance(node, kind) for _, node in nnx.iter_graph(model))


def difference(outputs, others) -> float:
    """The largest difference, of the largest output."""
    return float(abs(others - outputs).max() / abs(outputs).max())


def seconds_of_fusing(name: str) -> float:
    """How long the first call of `fuse_params` in a process takes."""
    model = net(name)
    begin = time.perf_counter()
    jax.block_until_ready(nnx.state(fuse_params(model, image_batch(1))))
    return time.perf_counter() - begin


def in_a_new_process(name: str) -> float:
    """`seconds_of_fusing` in a process of its own."""
    command = [sys.executable, __file__, "--models", name, "--only_fuse"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
