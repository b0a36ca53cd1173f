"""Where arrays live: one mesh over all devices of all processes, batches split over it, the rest on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices in a row, along which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Each device has its part of the first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(name: str, batch_size: int, mesh: Mesh):
    """Raises ValueError unless the batch can be split evenly."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise ValueError(f"{name}={batch_size} cannot be split over {mesh.size} devices evenly; {nearest} can")


def put_on_every_device(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that every process has, on every device of all processes."""
    return jax.make_array_from_process_local_data(replicated(mesh), array)
