"""Mean and variance of a batch that may be split over devices, which then exchange one message."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float

from repmlp_jax.blocks.operations import by_platform

# More takes longer to sum over devices than a second message.
LARGEST_EXCHANGE = 2**17  # elements


def mean_and_variance(
    x: Float[Array, "..."], axes: tuple[int, ...], near: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The mean and the biased variance over `axes`, which are kept with size 1.

    Under a mesh (`jax.sharding.use_abstract_mesh`) the first of the axes that is longer than 1 is taken for the batch,
    alone or as the major part, split over all devices. They exchange one message if it is small enough, otherwise two.

    Args:
        x: the values.
        axes: over which the statistics are computed.
        near: a guess of the mean, in the statistics' shape and dtype. The result hardly depends on it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch = next((axis for axis in axes if x.shape[axis] != 1), axes[0])
    is_split = mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto} and x.shape[batch] % mesh.size == 0
    features = math.prod(size for axis, size in enumerate(x.shape) if axis not in axes)
    parts = mesh.size if is_split and mesh.size * features <= LARGEST_EXCHANGE else 1
    return _statistics(x, lax.stop_gradient(near), axes, batch, parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _statistics(x, near, axes, batch, parts):
    """From mean and variance of each device's part: the variance of the whole would have to wait for its mean."""
    if parts == 1:
        return _of_part(x, near, axes)
    x = x.reshape(*x.shape[:batch], parts, -1, *x.shape[batch + 1 :])
    axes_of_part = tuple(axis if axis < batch else axis + 1 for axis in axes)
    means, variances = _of_part(x, jnp.expand_dims(near, batch), axes_of_part)
    # All devices get all means from a sum with zeros: XLA joins sums, also those of other norms, but no gathers.
    others = (*range(batch), *range(batch + 2, x.ndim))
    means = jnp.where(jnp.expand_dims(jnp.eye(parts, dtype=bool), others), means, 0).sum(batch)
    return of_all(means, variances.squeeze(batch + 1), batch)


@_statistics.defjvp
def _(axes, batch, parts, primals, tangents):
    """Without the part of the mean in the change of the variance, a sum over all values that is 0."""
    (x, near), (change, _) = primals, tangents
    mean, variance = _statistics(x, near, axes, batch, parts)
    x, change = (values.astype(near.dtype) for values in (x, change))
    return (mean, variance), (
        change.mean(axes, keepdims=True),
        (2 * (x - mean) * change).mean(axes, keepdims=True),
    )


@functools.partial(jax.jit, static_argnums=2)
def _of_part(x, near, axes):
    """Accelerators read bfloat16 once, while they compute it: a second time takes as long as what computes it.

    Sums of squares lose the variance beside a large mean, but in float32 no more of it than rounding the values to
    bfloat16 does.
    """
    in_one, in_two = (functools.partial(form, axes=axes) for form in (_in_one_pass, _in_two_passes))
    return by_platform(x, near, cpu=in_two, default=in_one) if x.dtype == jnp.bfloat16 else in_two(x, near)


def _in_two_passes(x, near, axes):
    x = x.astype(near.dtype)
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


def _in_one_pass(x, near, axes):
    x = x.astype(near.dtype) - near
    mean, square = (values.mean(axes, keepdims=True) for values in (x, jnp.square(x)))
    return near + mean, jnp.maximum(square - jnp.square(mean), 0)


def of_all(means: Array, variances: Array, axis: int) -> tuple[Array, Array]:
    """Mean and variance of all values, from those of equally many along `axis`, which is kept with size 1."""
    mean = means.mean(axis, keepdims=True)
    # Two means, as those of the variances must not wait for what makes the means known to all devices.
    return mean, variances.mean(axis, keepdims=True) + jnp.square(means - mean).mean(axis, keepdims=True)
