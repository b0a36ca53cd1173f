"""How long does a training step of the pure MLP take, and how much faster is the fused model?

    python benchmarks/cifar_step.py

The step is timed beside the same step with XLA's own grouped convolution, the forward pass trained beside fused.
Ratios are of medians, measured in turn in one process.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from measure import interleaved, matmul_rate, record
from nets import ours, training_steps

from repmlp_jax import fuse_params
from repmlp_jax.compilation_cache import keep_compiled_programs
from repmlp_jax.fusing.macs import count_macs


def build(grouped_convolution=None):
    """The pure MLP; with another function for its convolutions if one is given."""
    model = ours("pure_mlp")
    if grouped_convolution is not None:
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = grouped_convolution
    return model


def main():
    """Measures, prints ratios and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--skip_naive", action="store_true", help="leave out XLA's own grouped convolution")
    options = parser.parse_args()
    keep_compiled_programs()

    random = np.random.default_rng(0)
    model = build()
    steps = {"step": training_steps(model, options.batch_size)}
    if not options.skip_naive:
        steps["naive step"] = training_steps(build(lax.conv_general_dilated), options.batch_size)
    measured = {"training": interleaved(steps, options.runs)}

    forward = jax.jit(lambda model, x: model(x))
    fused = fuse_params(model)
    for size in (1, options.batch_size):
        x = jnp.asarray(random.normal(size=(size, 32, 32, 3)), jnp.float32)
        np.testing.assert_allclose(forward(model, x), forward(fused, x), rtol=0, atol=1e-4)
        measured[f"forward, batch {size}"] = interleaved(
            {"trained": lambda x=x: forward(model, x), "fused": lambda x=x: forward(fused, x)}, 3 * options.runs
        )

    rate = matmul_rate()
    image = jax.ShapeDtypeStruct((options.batch_size, 32, 32, 3), jnp.float32)
    macs = {name: count_macs(lambda m, x: m(x), m, image) for name, m in (("trained", model), ("fused", fused))}
    measured["matmul limit"] = {
        "multiply-accumulates a second": rate,
        "step, seconds": 3 * macs["trained"] / rate,
        f"fused forward, batch {options.batch_size}, seconds": macs["fused"] / rate,
    }
    for name, rows in measured.items():
        if name == "matmul limit":
            print(f"matmul limit: {rows}")
            continue
        reference = next(iter(rows.values()))["median"]
        for which, row in rows.items():
            print(
                f"{name:20} {which:12} median {row['median']:8.4f} s  ({row['minimum']:.4f} to {row['maximum']:.4f}, "
                f"{row['runs']} runs)  {row['median'] / reference:6.2f} × {next(iter(rows))}"
            )
    print("written to", record("cifar_step", measured))


if __name__ == "__main__":
    main()
