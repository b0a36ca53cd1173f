"""The blocks under test: every edge of RepMLP's arguments in a small size, filled with random numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax import RepMLP
from repmlp_jax.models.randomness import abstract, seeded

PLAIN = dict(in_features=4, out_features=4, image_size=(6, 6), partition_size=(3, 3), conv_kernels=(1, 3), groups=2)
CASES = {
    "plain": PLAIN,
    "height is not width": PLAIN | dict(image_size=(8, 6), partition_size=(2, 6), conv_kernels=(1, 3, 5)),
    "more outputs": PLAIN | dict(in_features=2, out_features=6),
    "fewer outputs": PLAIN | dict(in_features=8, out_features=2),
    "one partition": PLAIN | dict(partition_size=(6, 6)),
    "no convolutions": PLAIN | dict(conv_kernels=()),
    "one group": PLAIN | dict(groups=1),
    "groups are channels": PLAIN | dict(groups=4),
    "kernel exceeds partition": PLAIN | dict(partition_size=(3, 2), conv_kernels=(3, 7)),
    "partitions of one pixel": PLAIN | dict(image_size=(2, 3), partition_size=(1, 1)),
    "reduction": PLAIN | dict(reduction=3),
    "padded": PLAIN | dict(image_size=(7, 5), partition_size=(3, 3), pad=True),
}


# Most of a test's time is compilation, and without optimisation that takes half. What is tested in float32,
# and the training, is compiled as users have it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def randomised(model: nnx.Module, seed: int = 0) -> nnx.Module:
    """A model, which may be abstract, with random weights and statistics, so no norm is an identity."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1], leaf.shape
        if isinstance(leaf, nnx.RngState):
            return leaf
        if name == "batches":
            array = random.integers(1, 9, shape)
        elif name == "var":
            array = random.uniform(0.5, 2, shape)
        elif name == "kernel":
            array = random.normal(0, 0.2, shape)
        else:
            array = random.normal(0, 0.5, shape) + (name == "scale")
        return leaf.replace(jnp.asarray(array, leaf.dtype))

    graphdef, state = nnx.split(seeded(model))
    drawn = [(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(drawn))


ABSTRACT = {}


def build(make, seed: int = 0, **options) -> nnx.Module:
    """A randomised model, in float64 unless told otherwise; its own initialisation is never computed."""
    options = dict(param_dtype=jnp.float64) | options
    # The abstract model, which takes longer to build than to fill, is never changed.
    known = repr((make, options, jax.config.jax_enable_x64))
    if known not in ABSTRACT:
        # All are kept, so that nothing else gets the address of one.
        ABSTRACT[known] = abstract(make, **options), make, options
    return randomised(ABSTRACT[known][0], seed)


def build_block(name: str = "plain", seed: int = 0, **options) -> RepMLP:
    """The randomised block of a case."""
    return build(RepMLP, seed, **CASES[name], **options)


def random_array(*shape, seed: int = 0) -> np.ndarray:
    """Normal numbers in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def random_input(model, batch: int = 2, seed: int = 1, dtype=jnp.float64):
    """Images of the size that a model takes."""
    return jnp.asarray(random_array(batch, *model.input_shape, seed=seed), dtype)


@quick_jit
def apply(model, x):
    """The model's output, compiled."""
    return model(x)


@nnx.jit
def train(model, x):
    """The model's output in training mode, compiled; the model's statistics are updated."""
    return nnx.view(model, use_running_average=False)(x)


def evaluate(model, x):
    """The model's output in evaluation mode."""
    model = nnx.clone(model)
    model.eval()
    return apply(model, x)
