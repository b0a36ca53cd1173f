"""The devices that programs are compiled for, none of which has to be there."""

import dataclasses
import math
import os

import numpy as np


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        platform: "tpu" or "cuda".
        name: what its maker calls it.
        rates: dtype → multiplications and additions a second at their peak, in the precision that JAX chooses.
        bandwidth: bytes a second of its main memory.
        clock: cycles a second, by which its matrix units reach their peak; None if its compiler estimates none.
        topology: the smallest that the compiler knows; empty for GPUs, of which there may be any number.
        package: to install.
        modules: one of them is there if it is installed.
    """

    platform: str
    name: str
    rates: dict[str, float]
    bandwidth: float
    clock: float | None
    topology: str
    package: str
    modules: tuple[str, ...]


def _tpu(name, rate, bandwidth, clock, topology):
    # float32 is multiplied as bfloat16 at JAX's default precision.
    return Target("tpu", name, {"float32": rate, "bfloat16": rate}, bandwidth, clock, topology, "jax[tpu]", ("libtpu",))


TARGETS = {
    "v5e": _tpu("TPU v5e", 197e12, 819e9, 1.5e9, "v5e:2x2"),
    "v6e": _tpu("TPU v6e", 918e12, 1640e9, 1.75e9, "v6e:2x2"),
    # float32 as TF32.
    "h100": Target(
        platform="cuda",
        name="H100",
        rates={"float32": 494e12, "bfloat16": 989e12},
        bandwidth=3.35e12,
        clock=None,
        topology="",
        package="jax-cuda12-plugin[with-cuda]",
        modules=("jax_cuda12_plugin",),
    ),
}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # libtpu asks no server of a cloud which TPU this is, and takes this one's word.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
# Triton's choice of tiles for a product is measured on the device.
OF_GPUS = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
# A GpuTargetConfigProto as text.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def prepare(target: Target) -> None:
    """Sets the environment of this process; JAX must not have been imported."""
    os.environ.update(ENVIRONMENT | (OF_GPUS if target.platform == "cuda" else {}))


def devices(target: Target, chips: str) -> np.ndarray:
    """Descriptions of the devices of a mesh such as "4x4"; "1" is one chip.

    Raises:
        RuntimeError: if the compiler for the target is not installed, or knows no such mesh.
    """
    from jax.experimental import topologies

    if target.platform == "cuda":
        count = math.prod(map(int, chips.split("x")))
        # Of one process on one host.
        description = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
    else:
        name = target.topology if chips == "1" else f"{target.topology.partition(':')[0]}:{chips}"
        description = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return np.array(description.devices[:1] if chips == "1" else description.devices)
