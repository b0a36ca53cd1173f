"""How much memory does a training state take on each device, by model and mesh?

    JAX_NUM_CPU_DEVICES=8 JAX_PLATFORMS=cpu python benchmarks/memory.py [--tpu]

Computed from shapes alone (`jax.eval_shape`), for meshes that need not exist; and measured for those that do, by adding
up the parts that lie on a device. `--tpu` asks a TPU's compiler (`pip install libtpu`; no TPU is needed) what eight
chips would need, where arrays are padded to whole tiles. Activations come on top, and grow with the batch.
"""

import argparse
import math
import os

import jax
from flax import nnx
from jax.experimental import topologies
from measure import record

from repmlp_jax.models.registry import create_model
from repmlp_jax.training import default_config, sharding
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.step import init_state

MEBI = 2**20


def main():
    """Computes, measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=[
            "RepMLP-Res50-light-224-g8-16",
            "RepMLP-Res50-bottleneck-224-g4-8",
            "RepMLPNet-T224",
            "RepMLPNet-B224",
            "RepMLPNet-L256",
        ],
    )
    parser.add_argument("--measured", nargs="*", default=["RepMLPNet-T224"], help="models to make for real, too")
    parser.add_argument("--tpu", action="store_true", help="compile for eight chips of a TPU v5e, too")
    options = parser.parse_args()
    chips = tpu_chips() if options.tpu else None
    rows = {}
    for name in options.models:
        config = default_config()
        config.optimizer = "adamw" if name.startswith("RepMLPNet") else "sgd"
        optimizer, _ = make_optimizer(config, 1000)

        def make_state(key, name=name, optimizer=optimizer):
            return init_state(create_model(name, rngs=nnx.Rngs(key)), optimizer)

        abstract = jax.eval_shape(make_state, jax.random.key(0))
        rows[name] = dict(optimizer=config.optimizer)
        for fsdp in (1, 2, 4, 8):
            if jax.device_count() % fsdp:
                continue
            mesh = sharding.make_mesh(fsdp=fsdp)
            shardings = sharding.state_shardings(abstract, mesh)
            row = dict(computed=mebibytes(jax.tree.map(part_of, abstract, shardings)))
            if name in options.measured:
                state = jax.jit(make_state, out_shardings=shardings)(jax.random.key(0))
                row["measured"] = mebibytes(jax.tree.map(lambda array: nbytes(array.addressable_shards[0].data), state))
                del state
            if chips:
                row["compiled"] = compiled(abstract, sharding.make_mesh(fsdp=fsdp, devices=chips))
            rows[name][f"fsdp={fsdp}"] = row
            print(name, config.optimizer, f"fsdp={fsdp}", row)
    print("recorded:", record("memory", rows))


def tpu_chips():
    """Eight chips to compile for; libtpu finds none in this machine and is told not to look for any."""
    os.environ |= dict(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="true",
    )
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


def compiled(abstract, mesh) -> float:
    """Mebibytes of a state on each device of a TPU, as the arguments of a compiled program."""
    placed = jax.tree.map(
        lambda leaf, place: leaf.update(sharding=place), abstract, sharding.state_shardings(abstract, mesh)
    )
    program = jax.jit(lambda state: state, donate_argnums=0).lower(placed).compile()
    return round(program.memory_analysis().argument_size_in_bytes / MEBI, 1)


def part_of(leaf, place) -> int:
    """Bytes of an array on one device."""
    return math.prod(place.shard_shape(leaf.shape)) * itemsize(leaf.dtype)


def nbytes(array) -> int:
    """Bytes of an array, a PRNG key included."""
    return math.prod(array.shape) * itemsize(array.dtype)


def itemsize(dtype) -> int:
    """Bytes of an element; a key of JAX's default kind has eight."""
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def mebibytes(sizes) -> float:
    """Their sum."""
    return round(sum(jax.tree.leaves(sizes)) / MEBI, 1)


if __name__ == "__main__":
    main()
