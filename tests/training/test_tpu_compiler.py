"""What a TPU's compiler makes of a training step on four chips; nothing runs, and no TPU is needed."""

import math
import os
import re
import subprocess
import sys

import patience
import pytest
from tiny_runs import REPOSITORY

pytestmark = pytest.mark.slow
FC3 = (4 * 4 * 32) ** 2  # elements of its kernel

COMPILE = """
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import topologies

from repmlp_jax.models.registry import create_model
from repmlp_jax.training.sharding import make_mesh, replicated, split_batch, state_shardings
from repmlp_jax.training.step import init_state, make_step

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(fsdp=2, devices=chips)
optimizer = optax.sgd(0.1, momentum=0.9)


def make_model(key):
    sizes = dict(image_size=(8, 8), in_features=3, widths=(32,), partition_size=(4, 4), conv_kernels=(1, 3), groups=1)
    return create_model("pure_mlp", rngs=nnx.Rngs(key), **sizes)


def loss(model, batch, key):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), jnp.int32(0)


def placed(make, sharding):
    return jax.tree.map(lambda leaf: leaf.update(sharding=sharding), jax.eval_shape(make))


key = jax.random.key(0)
abstract = jax.eval_shape(lambda key: init_state(make_model(key), optimizer), key)
places = state_shardings(abstract, mesh)
state = jax.tree.map(lambda leaf, place: leaf.update(sharding=place), abstract, places)
batch = placed(lambda: dict(image=jnp.zeros((32, 8, 8, 3)), label=jnp.zeros(32, jnp.int32)), split_batch(mesh))
key = placed(lambda: jax.random.key(0), replicated(mesh))
graphdef = nnx.graphdef(nnx.eval_shape(make_model, jax.random.key(0)))
step = make_step(graphdef, optimizer, loss, batch_size=32, steps_per_epoch=10, mesh=mesh)
print(jax.jit(step, out_shardings=places).lower(state, batch, key).compile().as_text())
"""


def test_gradients_are_scattered_and_norms_exchange_one_message():
    pytest.importorskip("libtpu")
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="true",
    )
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience.seconds(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sums, scattered = {}, {}
    for computation in done.stdout.split("\n\n"):
        # What is scattered is a computation of its own; a copy of a message has the same channel.
        found = scattered if "all-reduce-scatter" in computation.split("(")[0] else sums
        for result, channel in re.findall(r"= (.*) all-reduce\(.*channel_id=(\d+)", computation):
            shapes = re.findall(r"\[([\d,]*)\]", result)
            found[channel] = max(math.prod(int(size or 1) for size in shape.split(",")) for shape in shapes)
    assert max(scattered.values(), default=0) >= FC3
    assert max(sums.values()) < FC3
    # Seven levels of norms, one message forward and one back; what is not scattered; two of the scalars.
    assert len(sums) <= 2 * 7 + 4
