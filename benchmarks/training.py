"""How many images a second are trained, beside the same net in PyTorch?

    python benchmarks/training.py --official FOLDER FOLDER

One step is forward, cross-entropy, backward and SGD with momentum, from the same weights on the same images, whose
losses are compared before anything is timed. (Gradients are compared by the tests, in float64: in float32 those of a
ResNet with random weights differ by some per cent, whoever computes them.) The steps are timed in turn in one
process. The folders are those of `contestants.py`; needs torch.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from contestants import official
from flax import nnx
from measure import interleaved, record
from nets import ours

from repmlp_jax.compilation_cache import keep_compiled_programs
from repmlp_jax.training import sharding
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.step import init_state, make_step

BATCH_SIZES = {"pure_mlp": 128, "RepMLP-Res50-bottleneck-224": 8, "RepMLPNet-T224": 8}
LEARNING_RATE, MOMENTUM = 0.01, 0.9
TOLERANCE = 1e-4  # of the loss, after dozens of layers in float32


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", nargs="+", required=True, help="folders of the official code")
    parser.add_argument("--models", nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--name", default="training", help="of the file in results/")
    options = parser.parse_args()
    keep_compiled_programs()
    measured = {name: measure(name, options) for name in options.models}
    print("recorded:", record(options.name, measured))


def measure(name: str, options) -> dict:
    """Seconds of a step, ours and PyTorch's, and images a second."""
    model = ours(name)
    random = np.random.default_rng(1)
    batch_size = BATCH_SIZES[name]
    images = random.standard_normal((batch_size, *model.input_shape), np.float32)
    labels = random.integers(0, 10, batch_size)
    net = official(name, model, options.official)
    steps = {"ours": our_step(model, images, labels), "official": torch_step(net, images, labels)}
    losses = {form: float(step()) for form, step in steps.items()}
    if not np.isclose(losses["ours"], losses["official"], rtol=TOLERANCE, atol=0):
        raise ValueError(f"{name}: the losses of the first step differ: {losses}")
    seconds = interleaved(steps, options.runs)
    ratio = seconds["official"]["median"] / seconds["ours"]["median"]
    for form, row in seconds.items():
        print(
            f"{name:30} batch {batch_size:4}  {form:10} {row['median']:8.3f} s a step ({row['minimum']:.3f} to "
            f"{row['maximum']:.3f})  {batch_size / row['median']:8.1f} images/s"
        )
    print(f"{name:30} official : ours {ratio:.2f}", flush=True)
    return dict(batch_size=batch_size, seconds=seconds, official_to_ours=ratio, losses=losses)


def our_step(model, images, labels):
    """A function that does a training step and gives its loss."""
    model.train()
    mesh = sharding.make_mesh()
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    def loss(model, batch, key):
        logits = model(batch["image"])
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        return cross_entropy(logits, targets).mean(), jnp.zeros((), jnp.int32)

    # An epoch of one step: the totals are the loss of the last step.
    one_step = make_step(nnx.graphdef(model), optimizer, loss, batch_size=len(images), steps_per_epoch=1, mesh=mesh)
    state = init_state(model, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    state = sharding.put_state(state, shardings)
    compiled = jax.jit(one_step, donate_argnums=0, out_shardings=shardings)
    batch = sharding.put_batch(dict(image=images, label=labels.astype(np.int32)), mesh)
    key = jax.random.key(0)

    def step():
        nonlocal state
        state = compiled(state, batch, key)
        return state.totals.loss / len(images)

    return step


def torch_step(net, images, labels):
    """A function that does the same step in PyTorch and gives its loss."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(x), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    main()
