"""The pictures in the pages, drawn whenever the pages are built (the README has a copy of `kernels`)."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from repmlp_jax import RepMLP, create_model, fuse_params, fuse_report, plots
from repmlp_jax.data import augment, load_dataset
from repmlp_jax.fusing.algebra import fold_norm, scale_and_shift

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from speed_pictures import draw_roofline, draw_speeds  # noqa: E402

EPOCHS, BATCH_SIZE = 4, 128


@functools.cache
def trained_block() -> RepMLP:
    """A RepMLP block of eight channels, after four epochs on the handwritten digits."""
    rngs = nnx.Rngs(0)
    block = RepMLP(
        1,
        8,
        image_size=(8, 8),
        partition_size=(8, 8),
        conv_kernels=(1, 3, 5),
        rngs=rngs,
    )
    train(block, rngs=rngs)
    return block


def train(*layers: Callable, rngs: nnx.Rngs):
    """Trains layers from one to eight channels on the handwritten digits."""
    digits = load_dataset("digits")
    images, labels = digits.train
    net = nnx.Sequential(
        *layers,
        nnx.relu,
        lambda x: x.reshape(len(x), -1),
        nnx.Linear(8 * 8 * 8, 10, rngs=rngs),
    )
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer, images, labels):
        def loss(net):
            logits = net(augment.normalise(images, digits.mean, digits.std))
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        optimizer.update(net, nnx.grad(loss)(net))

    batches = len(labels) // BATCH_SIZE
    for step in range(EPOCHS * batches):
        batch = slice(step % batches * BATCH_SIZE, (step % batches + 1) * BATCH_SIZE)
        train_step(net, optimizer, images[batch], labels[batch])


class Branches(nnx.Module):
    """What a RepVGG block adds: a 3×3 convolution, a 1×1 convolution and the identity, each with its norm."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.large = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.small = nnx.Conv(features, features, (1, 1), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(features, rngs=rngs) for _ in range(3)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum of the branches."""
        large, small, identity = self.norms
        return large(self.large(x)) + small(self.small(x)) + identity(x)


def three_kernels(channel: int = 5) -> Figure:
    """The kernels of a RepVGG block from a channel to itself, with their norms, and that of the fused convolution."""
    rngs = nnx.Rngs(0)
    block = Branches(8, rngs=rngs)
    train(nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.relu, block, rngs=rngs)
    fused = fuse_params(block, jnp.zeros((1, 8, 8, 8)))
    scale, _ = scale_and_shift(block.norms[2])
    large, _ = fold_norm(block.large.kernel[...], block.norms[0])
    small, _ = fold_norm(block.small.kernel[...], block.norms[1])
    parts = {
        "3×3 convolution": large[..., channel, channel],
        "1×1 convolution": jnp.pad(small[..., channel, channel], 1),
        "identity": jnp.pad(scale[None, None, channel], 1),
        "fused convolution": fused.large.kernel[..., channel, channel],
    }
    largest = max(float(abs(part).max()) for part in parts.values())
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, (name, part), sign in zip(
        figure.subplots(1, 4), parts.items(), ("", "+", "+", "="), strict=True
    ):
        axes.imshow(part, cmap=plots.SIGNED, vmin=-largest, vmax=largest)
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(
            -0.13,
            0.5,
            sign,
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=24,
        )
        for (row, column), number in np.ndenumerate(np.asarray(part)):
            colour = (
                "0.6"
                if number == 0
                else "white"
                if abs(number) > largest / 2
                else "black"
            )
            axes.text(
                column,
                row,
                f"{number:.2f}" if number else "0",
                ha="center",
                va="center",
                color=colour,
            )
    return figure


def kernels() -> Figure:
    """Figure 5 of the paper."""
    return plots.fc3_kernels(trained_block(), (3, 4))


def receptive_fields() -> Figure:
    """What three output pixels of the fused block see."""
    return plots.receptive_fields(trained_block(), [(0, 0), (3, 4), (7, 7)])


def report() -> Figure:
    """What fusing does to the paper's pure MLP."""
    return plots.fuse_bars(
        fuse_report(nnx.eval_shape(lambda: create_model("pure_mlp", rngs=nnx.Rngs(0)))),
        depth=2,
    )


def results(name: str) -> dict:
    """What a benchmark has recorded, without where and when."""
    recorded = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    return {key: value for key, value in recorded.items() if key != "provenance"}


def inference() -> Figure:
    """Images a second of each form of each model. The newest results of the ResNets are in a file of their own."""
    return draw_speeds(results("inference") | results("inference_resnets"))


def roofline() -> Figure:
    """Each part of four fused models under the roofline."""
    models = results("roofline")
    limits = models.pop("machine's limits")
    return draw_roofline(
        models, limits["multiply-accumulates a second"], limits["bytes a second"]
    )


# Name of the file → what draws it.
PICTURES = {
    "identity.png": plots.identity_trick,
    "inference.png": inference,
    "kernels.png": kernels,
    "receptive_fields.png": receptive_fields,
    "report.png": report,
    "roofline.png": roofline,
    "three_kernels.png": three_kernels,
}
