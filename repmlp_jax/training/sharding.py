"""Sharding: one mesh over all devices of all processes, with split batches and replicated or split weights."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from repmlp_jax.fusing.host import is_key

# Splitting a smaller array saves little memory and costs a message each time it is gathered.
SMALLEST_TO_SPLIT = 2**14  # elements


def make_mesh(data: int = 0, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh of all devices, (data, fsdp): batches are split over both axes, parameters over `fsdp`.

    Args:
        data: number of rows; 0: as many as there are devices for.
        fsdp: devices that share one copy of the parameters and of the optimizer's state (fully sharded data
            parallelism); 1: every device has its own copy.
        devices: devices of the mesh; None: all.

    Raises:
        ValueError: if the mesh does not have exactly one place for each device.
    """
    count = len(devices) if devices is not None else jax.device_count()
    if fsdp < 1 or data < 0 or (data or max(1, count // fsdp)) * fsdp != count:
        works = ", ".join(f"({count // size}, {size})" for size in range(1, count + 1) if count % size == 0)
        raise ValueError(f"mesh (data={data}, fsdp={fsdp}) does not fit {count} devices; use one of {works}")
    shape = (data or count // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2)


def platform_of(mesh: Mesh) -> str:
    """The platform that programs for this mesh are compiled for: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: each device has a part of the first axis."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """The sharding of each array of a training state: large arrays are split over `fsdp`, others are replicated.

    Of the axes that `fsdp` divides the first is split whose parts a TPU's tiles pad least: padding takes memory, and
    parts of tiles are not scattered. A parameter and its optimizer state have the same shape, so they have the same
    sharding.
    """
    parts = mesh.shape.get("fsdp", 1)

    def sharding_of(leaf):
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % parts == 0]
        if parts == 1 or not axes or math.prod(leaf.shape) < SMALLEST_TO_SPLIT:
            return replicated(mesh)

        def padded_part(axis):
            return padded_size([size // parts if at == axis else size for at, size in enumerate(leaf.shape)])

        return NamedSharding(mesh, PartitionSpec(*[None] * min(axes, key=padded_part), "fsdp"))

    return jax.tree.map(sharding_of, abstract_state)


def padded_size(shape: Sequence[int]) -> int:
    """Elements that an array takes on a TPU, where tiles of (8, 128) cover its last two axes."""
    *major, rows, columns = (1, 1, *shape)
    return math.prod(major) * -(-rows // 8) * 8 * -(-columns // 128) * 128


def gathered(parameters: Any, mesh: Mesh) -> Any:
    """The parameters whole on every device, where they are used; their gradients are split like the parameters.

    So compilers sum and scatter gradients. A sharding constraint alone would want its gradient, too, on every device.
    """
    shardings = state_shardings(parameters, mesh)

    @jax.custom_vjp
    def gather(parameters):
        return lax.with_sharding_constraint(parameters, replicated(mesh))

    def scatter(_, gradients):
        return (lax.with_sharding_constraint(gradients, shardings),)

    gather.defvjp(lambda parameters: (gather(parameters), None), scatter)
    return gather(parameters)


def check_batch_size(name: str, batch_size: int, mesh: Mesh):
    """Raises ValueError unless the batch can be split evenly."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise ValueError(f"{name}={batch_size} cannot be split over {mesh.size} devices evenly; {nearest} can")


def rounded_up(batch_size: int, mesh: Mesh) -> int:
    """The nearest batch size from this one on that can be split evenly."""
    return -(-batch_size // mesh.size) * mesh.size


def put_on_every_device(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts an array that every process has on every device of all processes."""
    return jax.make_array_from_process_local_data(replicated(mesh), array)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a batch, of which every process has its part, over all devices of all processes."""
    return {name: jax.make_array_from_process_local_data(split_batch(mesh), part) for name, part in batch.items()}


def put_state(state: Any, shardings: Any) -> Any:
    """Puts the arrays of a state that every process has on the devices, with their shardings."""
    return jax.tree.map(_put_from_here, state, shardings)


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays on every device, whether they are split over the mesh or every process has them."""
    is_on_mesh = all(getattr(leaf.sharding, "mesh", None) == mesh for leaf in jax.tree.leaves(tree))
    put = _move if is_on_mesh else _put_from_here
    return jax.tree.map(lambda array: put(array, replicated(mesh)), tree)


def on_this_process(tree: Any) -> Any:
    """Gathers arrays and puts them whole on one device of this process."""

    def whole(array):
        if not array.is_fully_replicated:
            array = _move(array, replicated(array.sharding.mesh))
        return array.addressable_data(0)

    return jax.tree.map(whole, tree)


def _put_from_here(array, sharding):
    """Puts an array that every process has on devices, some of which may belong to other processes."""
    if is_key(array):  # `device_put` does not spread random keys over processes.
        return _as_key(array, _put_from_here(jax.random.key_data(array), sharding))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _move(array, sharding):
    """Gives an array of the mesh another sharding on it."""
    if is_key(array):
        return _as_key(array, _move(jax.random.key_data(array), sharding))
    return jax.device_put(array, sharding)


def _as_key(like, data):
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
