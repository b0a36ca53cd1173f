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

from repmlp_jax import fuse_params
from repmlp_jax.data import augment, cifar10
from repmlp_jax.macs import count_macs
from repmlp_jax.models import create_model
from repmlp_jax.training import default_config, sharding
from repmlp_jax.training.feed import ResidentFeed
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.step import init_state, make_step


def build(grouped_convolution=None):
    """The pure MLP; with another function for its convolutions if one is given."""
    model = nnx.jit(lambda: create_model("pure_mlp", rngs=nnx.Rngs(0)))()
    if grouped_convolution is not None:
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = grouped_convolution
    return model


def training_step(model, config, dataset, mesh):
    """A function that does one training step."""
    feed = ResidentFeed(dataset, config.batch_size, jax.random.key(1), mesh)
    steps_per_epoch = feed.examples // config.batch_size
    optimizer, _ = make_optimizer(config, steps_per_epoch)

    def loss(model, batch, key):
        images = augment.crop_and_flip(key, batch["image"], padding=config.crop_padding, flipped=config.flip)
        logits = model(augment.normalise(images, cifar10.MEAN, cifar10.STD))
        right = jnp.sum(logits.argmax(1) == batch["label"], dtype=jnp.float32)
        return cross_entropy(logits, jax.nn.one_hot(batch["label"], 10)).mean(), right

    graphdef = nnx.graphdef(model)
    one_step = make_step(
        graphdef, optimizer, loss, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch, mesh=mesh
    )
    state = init_state(model, optimizer)
    places = sharding.placement(state, mesh)
    train_steps = feed.compile(one_step, jax.random.key(0), places)
    state = sharding.put_state(state, places)

    def step():
        nonlocal state
        state = train_steps(state, 0, 1)
        return state

    return step


def main():
    """Measures, prints ratios and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--skip_naive", action="store_true", help="leave out XLA's own grouped convolution")
    options = parser.parse_args()

    config = default_config()
    config.batch_size = options.batch_size
    mesh = sharding.make_mesh()
    random = np.random.default_rng(0)
    dataset = dict(
        image=random.integers(0, 256, (1024, 32, 32, 3), np.uint8), label=random.integers(0, 10, 1024, np.int32)
    )
    model = build()
    steps = {"step": training_step(model, config, dataset, mesh)}
    if not options.skip_naive:
        steps["naive step"] = training_step(build(lax.conv_general_dilated), config, dataset, mesh)
    measured = {"training": interleaved(steps, options.runs)}

    forward = jax.jit(lambda model, x: model(x))
    model.eval()
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
