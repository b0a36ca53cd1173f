"""Mean and variance of a batch that may be split over devices, which then exchange one message."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float

# More takes longer to sum over devices than a second message.
LARGEST_EXCHANGE = 2**17  # elements


def mean_and_variance(x: Float[Array, "..."], axes: tuple[int, ...]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The mean and the biased variance over `axes`, which are kept with size 1.

    Under a mesh (`jax.sharding.use_abstract_mesh`) the first of the axes that is longer than 1 is taken for the batch,
    alone or as the major part, split over all devices. They exchange one message if it is small enough, otherwise two.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch = next((axis for axis in axes if x.shape[axis] != 1), axes[0])
    is_split = mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto} and x.shape[batch] % mesh.size == 0
    features = math.prod(size for axis, size in enumerate(x.shape) if axis not in axes)
    if is_split and mesh.size * features <= LARGEST_EXCHANGE:
        return _of_parts(x, axes, batch, mesh.size)
    return _of_whole(x, axes)


def _of_whole(x, axes):
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _of_parts(x, axes, batch, parts):
    """From mean and variance of each device's part: the variance of the whole would have to wait for its mean.

    Sums of squares need no mean, but lose the variance beside a large one.
    """
    x = x.reshape(*x.shape[:batch], parts, -1, *x.shape[batch + 1 :])
    means, variances = _of_whole(x, tuple(axis if axis < batch else axis + 1 for axis in axes))
    # All devices get all means from a sum with zeros: XLA joins sums, also those of other norms, but no gathers.
    others = (*range(batch), *range(batch + 2, x.ndim))
    means = jnp.where(jnp.expand_dims(jnp.eye(parts, dtype=bool), others), means, 0).sum(batch)
    return of_all(means, variances.squeeze(batch + 1), batch)


def of_all(means: Array, variances: Array, axis: int) -> tuple[Array, Array]:
    """Mean and variance of all values, from those of equally many along `axis`, which is kept with size 1."""
    mean = means.mean(axis, keepdims=True)
    # Two means, as those of the variances must not wait for what makes the means known to all devices.
    return mean, variances.mean(axis, keepdims=True) + jnp.square(means - mean).mean(axis, keepdims=True)


@_of_parts.defjvp
def _(axes, batch, parts, primals, tangents):
    """Without the part of the mean in the change of the variance: it is 0, and would be summed over the devices."""
    (x,), (change,) = primals, tangents
    mean, variance = _of_parts(x, axes, batch, parts)
    return (mean, variance), (
        change.mean(axes, keepdims=True),
        (2 * (x - mean) * change).mean(axes, keepdims=True),
    )
