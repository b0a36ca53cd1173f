"""Our nets as they are measured: in evaluation mode, with random norms, or with the step that trains them."""

import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax import create_model
from repmlp_jax.data import augment
from repmlp_jax.fusing.host import host
from repmlp_jax.training import sharding
from repmlp_jax.training.feed import ResidentFeed
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.step import init_state, make_step

# Those that are measured unless others are asked for.
NETS = (
    "pure_mlp",
    "RepMLP-Res50-light-224",
    "RepMLP-Res50-bottleneck-224",
    "RepMLPNet-T224",
    "RepMLPNet-B224",
)
RECIPE = types.SimpleNamespace(
    optimizer="sgd",
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    clip_norm=0.0,
    schedule="cosine",
    epochs=100,
    warmup_epochs=0.0,
)


def ours(name: str, **arguments) -> nnx.Module:
    """One of our models in evaluation mode, with random norms, so that folding them makes a difference."""
    with jax.default_device(host()):
        return with_random_norms(create_model(name, rngs=nnx.Rngs(0), **arguments))


def with_random_norms(model: nnx.Module) -> nnx.Module:
    """A model in evaluation mode, with random scales and statistics in its norms."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        ranges = dict(mean=(-0.1, 0.1), var=(0.5, 1.5), scale=(0.5, 1.5))
        if path[-1] not in ranges:
            return leaf
        return leaf.replace(random.uniform(*ranges[path[-1]], leaf.shape).astype(leaf.dtype))

    graphdef, state = nnx.split(model)
    drawn = [(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    model = nnx.merge(graphdef, jax.device_put(nnx.from_flat_state(drawn), jax.devices()[0]))
    model.eval()
    return model


def in_bfloat16(model: nnx.Module) -> nnx.Module:
    """The model with its parameters in bfloat16, computing in bfloat16."""
    model = nnx.clone(model)
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and hasattr(module, "dtype"):
            module.dtype = jnp.bfloat16
    state = jax.tree.map(
        lambda array: array.astype(jnp.bfloat16) if array.dtype == jnp.float32 else array, nnx.state(model)
    )
    nnx.update(model, state)
    return model


def jax_forward(model: nnx.Module, images: np.ndarray) -> Callable:
    """A function that applies the compiled model to NHWC images."""
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    x = jnp.asarray(images)
    return lambda: forward(state, x)


def training_steps(
    model: nnx.Module, batch_size: int, *, steps: int = 1, examples: int = 1024, compiler_options=None
) -> Callable:
    """A function that does steps of SGD with momentum on random images, resident as those of CIFAR-10 are.

    Args:
        model: it is trained whatever its mode is, and stays as it is.
        batch_size: images of a step.
        steps: of a call, which on accelerators are a loop on the device.
        examples: of the dataset.
        compiler_options: of XLA, for these steps alone.
    """
    model = nnx.view(model, use_running_average=False, deterministic=False, raise_if_not_found=False)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    random = np.random.default_rng(0)
    dataset = dict(
        image=random.integers(0, 256, (examples, *model.input_shape), np.uint8),
        label=random.integers(0, 10, examples, np.int32),
    )
    feed = ResidentFeed(dataset, batch_size, jax.random.key(1), mesh)
    steps_per_epoch = feed.examples // batch_size
    optimizer, _ = make_optimizer(RECIPE, steps_per_epoch)

    def loss(model, batch, key):
        images = augment.crop_and_flip(key, batch["image"], padding=4, flipped=True)
        channels = images.shape[-1]
        logits = model(augment.normalise(images, (0.5,) * channels, (0.25,) * channels))
        right = jnp.sum(jax.lax.argmax(logits, 1, jnp.int32) == batch["label"], dtype=jnp.int32)
        return cross_entropy(logits, jax.nn.one_hot(batch["label"], logits.shape[-1])).mean(), right

    one_step = make_step(
        nnx.graphdef(model), optimizer, loss, batch_size=batch_size, steps_per_epoch=steps_per_epoch, mesh=mesh
    )
    state = jax.jit(lambda model: init_state(model, optimizer))(model)
    shardings = sharding.state_shardings(state, mesh)
    train_steps = feed.make_train_steps(one_step, shardings)
    if compiler_options:
        train_steps = jax.jit(train_steps, donate_argnums=0, compiler_options=compiler_options)
    order = jax.device_put(np.arange(examples, dtype=np.int32), sharding.replicated(mesh))
    state, key = sharding.put_state(state, shardings), jax.random.key(0)

    def train():
        nonlocal state
        state = train_steps(state, feed.dataset, order, key, steps)
        return state

    return train
