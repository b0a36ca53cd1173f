"""Computing on the host's CPU what runs once and takes an accelerator too long to compile."""

import itertools
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding


def host() -> jax.Device | None:
    """The CPU device of this process; None, for JAX's default device, if JAX_PLATFORMS excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def transformed_on_host(transform: Callable[[nnx.Module], nnx.Module], model: nnx.Module) -> nnx.Module:
    """Computes `transform(model)` on the host if the model is on one accelerator, and puts the result back there.

    An accelerator takes longer to compile one of the hundreds of operations than the host takes for all of them, and
    the result has the same bits as for a model on the CPU. Models that are traced, abstract, or spread over devices are
    transformed in place.

    Args:
        transform: a pure function from model to model.
        model: any NNX module; it is not changed.
    """
    variables = (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable))
    if not any(_accelerator_of(variable.get_value()) for variable in itertools.islice(variables, 1)):
        return transform(model)  # The usual case, which needs no further checks.
    graphdef, state = nnx.split(model)
    arrays, structure = jax.tree.flatten(state)
    accelerators = {_accelerator_of(array) for array in arrays}
    (accelerator,) = accelerators if len(accelerators) == 1 else (None,)
    if accelerator is None or host() is None:
        return transform(model)
    numbers = [array for array in arrays if not is_key(array)]
    # All at once, since each separate transfer would wait for the one before.
    on_host = jax.device_put(jax.device_get(numbers), host())
    if any(isinstance(array, jax.core.Tracer) for array in on_host):
        return transform(model)  # A traced function does not move arrays.
    copies = iter(on_host)
    there = jax.tree.unflatten(structure, [array if is_key(array) else next(copies) for array in arrays])
    with jax.default_device(host()):
        graphdef, state = nnx.split(transform(nnx.merge(graphdef, there)))
    arrays, structure = jax.tree.flatten(state)
    back = {id(copy): array for copy, array in zip(on_host, numbers, strict=True)}
    new = [array for array in arrays if id(array) not in back and not is_key(array)]
    if any(array.committed for array in numbers):
        placed = jax.device_put(new, accelerator)
    else:
        with jax.default_device(accelerator):
            placed = jax.device_put(jax.device_get(new))
    back |= {id(array): put for array, put in zip(new, placed, strict=True)}
    return nnx.merge(graphdef, jax.tree.unflatten(structure, [back.get(id(array), array) for array in arrays]))


def is_key(array) -> bool:
    """Whether an array holds random keys."""
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _accelerator_of(array) -> jax.Device | None:
    """The single accelerator that holds an array; None if the array is elsewhere, traced or abstract."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    if not isinstance(array.sharding, SingleDeviceSharding):
        return None
    return array.device if is_accelerator(array.device) else None


def is_accelerator(device: jax.Device) -> bool:
    """Whether a device is not a CPU."""
    return device.platform != "cpu"
