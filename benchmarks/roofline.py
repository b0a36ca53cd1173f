"""What share of the machine does each part of a fused model reach?

    python benchmarks/roofline.py --models pure_mlp RepMLPNet-T224 --batch_size 8

Every module of a fused model is timed by itself on an input of its size. Its multiply-accumulates at the measured
rate of a matrix product, or its bytes (weights, input and output) at the measured bandwidth of memory, whichever
takes longer, are the time that it cannot beat; the share is that time over the measured one. What the whole forward
pass takes beyond its parts are the copies and the elementwise work between them.
"""

import argparse
import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import RESULTS, interleaved, matmul_rate, memory_bandwidth, record
from nets import jax_forward, ours
from speed_pictures import draw_roofline

from repmlp_jax import fuse_params
from repmlp_jax.blocks.repmlp import FusedGlobalPerceptron, FusedRepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, Gate
from repmlp_jax.compilation_cache import keep_compiled_programs
from repmlp_jax.fusing.macs import count_macs
from repmlp_jax.fusing.report import inputs_of


class NoGate(nnx.Module):
    """Leaves FC3's output as it is, so that FC3 is timed without the gate."""

    def __call__(self, x):
        """One."""
        return jnp.ones((), x.dtype)


def main():
    """Measures, prints, draws and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=("pure_mlp", "RepMLP-Res50-light-224", "RepMLP-Res50-bottleneck-224", "RepMLPNet-T224"),
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--pure_mlp_batch_size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    keep_compiled_programs()
    rate, bandwidth = matmul_rate(), memory_bandwidth()
    print(f"matrix product {rate / 1e9:.1f} G multiply-accumulates/s, memory {bandwidth / 1e9:.1f} GB/s")
    measured = {}
    for name in options.models:
        batch_size = options.pure_mlp_batch_size if name == "pure_mlp" else options.batch_size
        measured[name] = measure(name, batch_size, options.runs, rate, bandwidth)
    limits = {"multiply-accumulates a second": rate, "bytes a second": bandwidth}
    draw_roofline(measured, rate, bandwidth).savefig(RESULTS / "roofline.png", dpi=120)
    print("recorded:", record("roofline", {"machine's limits": limits, **measured}))


def measure(name: str, batch_size: int, runs: int, rate: float, bandwidth: float) -> dict:
    """Seconds, multiply-accumulates and bytes by kind of part, and of the whole forward pass."""
    model = fuse_params(ours(name))
    shape = (batch_size, *model.input_shape)
    whole = time_of(model, shape, runs)
    parts = collections.defaultdict(lambda: dict(seconds=0.0, macs=0, bytes=0, least_seconds=0.0, modules=0))
    for kind, module, input_shape in modules_with_inputs(model, shape):
        seconds = time_of(module, input_shape, runs)
        macs, traffic = cost(module, input_shape)
        row = parts[kind]
        row["seconds"] += seconds
        row["macs"] += macs
        row["bytes"] += traffic
        row["least_seconds"] += max(macs / rate, traffic / bandwidth)
        row["modules"] += 1
    for row in parts.values():
        row["share_of_roofline"] = row["least_seconds"] / row["seconds"]
        row["share_of_matmul_rate"] = row["macs"] / row["seconds"] / rate
        row["share_of_bandwidth"] = row["bytes"] / row["seconds"] / bandwidth
    least = sum(row["least_seconds"] for row in parts.values())
    elsewhere = whole - sum(row["seconds"] for row in parts.values())
    print(f"{name}, batch {batch_size}: {whole * 1e3:.1f} ms, least {least * 1e3:.1f} ms ({least / whole:.0%})")
    for kind, row in sorted(parts.items(), key=lambda item: -item[1]["seconds"]):
        print(
            f"  {kind:20} {row['seconds'] * 1e3:8.2f} ms  {row['share_of_roofline']:5.0%} of the roofline  "
            f"{row['share_of_matmul_rate']:5.0%} of the matmul rate  {row['share_of_bandwidth']:5.0%} of the bandwidth"
        )
    print(f"  {'elsewhere':20} {elsewhere * 1e3:8.2f} ms", flush=True)
    return dict(
        batch_size=batch_size,
        seconds=whole,
        least_seconds=least,
        share_of_roofline=least / whole,
        seconds_elsewhere=elsewhere,
        parts=dict(parts),
    )


def modules_with_inputs(model: nnx.Module, shape: tuple[int, ...]):
    """Yields (kind, module, the shape that it is called with) for each module that multiplies."""
    blocks = modules_of(model, shape, (FusedRepMLP, FusedRepMLPNetBlock))
    for _, module, input_shape in blocks:
        without = nnx.clone(module)
        if isinstance(module, FusedRepMLP):
            without.global_perceptron = nnx.data(None)
        else:
            without.gate = NoGate()
        yield "FC3", without, input_shape
        yield from (
            ("Global Perceptron", part, inner)
            for _, part, inner in modules_of(module, input_shape, (FusedGlobalPerceptron, Gate))
        )
    inside = {id(node) for _, block, _ in blocks for _, node in nnx.iter_graph(block)}
    for path, module, input_shape in modules_of(model, shape, (nnx.Conv, nnx.Linear)):
        if id(module) not in inside:
            yield _kind(path, module), module, input_shape


def modules_of(model: nnx.Module, shape: tuple[int, ...], classes) -> list[tuple]:
    """The outermost modules of some classes with their paths and the shapes that they are called with."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    modules = dict(nnx.iter_graph(model))
    inputs = inputs_of(model, images, lambda node: isinstance(node, classes))
    return [(path, modules[path], x.shape) for path, x in inputs.items()]


def time_of(module: nnx.Module, shape: tuple[int, ...], runs: int) -> float:
    """Median seconds of a module's compiled forward pass."""
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    return interleaved({"forward": jax_forward(module, images)}, runs)["forward"]["median"]


def cost(module: nnx.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-accumulates, and bytes of the weights, the input and the output."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    output = nnx.eval_shape(lambda module, x: module(x), module, image)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(module)))
    macs = count_macs(lambda module, x: module(x), module, image)
    return macs, weights + 4 * (math.prod(shape) + output.size)


def _kind(path, module):
    if isinstance(module, nnx.Linear):
        return "classifier"
    if path[0] in ("stem", "embedding", "halvings"):
        return "stem"
    return "FFN" if path[-1] in ("fc1", "fc2") or (path[0] == "stages" and len(path) == 3) else "convolutions"


if __name__ == "__main__":
    main()
