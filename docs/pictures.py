"""The pictures in the pages, drawn whenever the pages are built (the README has a copy of `kernels`)."""

import functools

import optax
from flax import nnx
from matplotlib.figure import Figure

from repmlp_jax import RepMLP, create_model, fuse_report, plots
from repmlp_jax.data import augment, load_dataset

EPOCHS, BATCH_SIZE = 4, 128


@functools.cache
def trained_block() -> RepMLP:
    """A RepMLP block of eight channels, after four epochs on the handwritten digits."""
    digits = load_dataset("digits")
    images, labels = digits.train
    rngs = nnx.Rngs(0)
    block = RepMLP(1, 8, image_size=(8, 8), partition_size=(8, 8), conv_kernels=(1, 3, 5), rngs=rngs)
    net = nnx.Sequential(block, nnx.relu, lambda x: x.reshape(len(x), -1), nnx.Linear(8 * 8 * 8, 10, rngs=rngs))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer, images, labels):
        def loss(net):
            logits = net(augment.normalise(images, digits.mean, digits.std))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        optimizer.update(net, nnx.grad(loss)(net))

    batches = len(labels) // BATCH_SIZE
    for step in range(EPOCHS * batches):
        batch = slice(step % batches * BATCH_SIZE, (step % batches + 1) * BATCH_SIZE)
        train_step(net, optimizer, images[batch], labels[batch])
    return net.layers[0]


def kernels() -> Figure:
    """Figure 5 of the paper."""
    return plots.fc3_kernels(trained_block(), (3, 4))


def receptive_fields() -> Figure:
    """What three output pixels of the fused block see."""
    return plots.receptive_fields(trained_block(), [(0, 0), (3, 4), (7, 7)])


def report() -> Figure:
    """What fusing does to the paper's pure MLP."""
    return plots.fuse_bars(fuse_report(nnx.eval_shape(lambda: create_model("pure_mlp", rngs=nnx.Rngs(0)))), depth=2)


# Name of the file → what draws it.
PICTURES = {
    "identity.png": plots.identity_trick,
    "kernels.png": kernels,
    "receptive_fields.png": receptive_fields,
    "report.png": report,
}
