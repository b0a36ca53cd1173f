"""Checkpoints that an earlier version wrote, with the axes of its kernels: they are read, and runs go on from them."""

import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp
from tiny_recipe import get_config
from tiny_runs import finish, start_code
from tolerance import assert_identical
from training_parts import mesh_of

from repmlp_jax import load_model
from repmlp_jax.storage import checkpoint_format
from repmlp_jax.storage.checkpoint_format import make_record, read, read_record, write
from repmlp_jax.storage.digest import describe
from repmlp_jax.tasks import task_class
from repmlp_jax.training import train_and_evaluate
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.step import RETYPED, init_state

STORED = {"sgd": "stored_run.zip", "adamw": "stored_adamw_run.zip"}  # each killed after step 30
MERGED = {"sgd": 28, "adamw": 40}  # arrays with fewer axes than in the file

pytestmark = pytest.mark.usefixtures("as_users_have_it")


def unpack(optimizer, folder):
    """The checkpoint and the configuration of a stored run."""
    with zipfile.ZipFile(Path(__file__).with_name(STORED[optimizer])) as file:
        file.extractall(folder)
    stored = json.loads((folder / "config.json").read_text())
    config = get_config(**{name: value for name, value in stored.items() if name != "mesh"})
    return folder / "checkpoints" / "30", config


def abstract_state(config, mesh):
    task = task_class(config.task)(config, mesh, jax.random.key(1))
    optimizer, _ = make_optimizer(config, 22)
    return jax.eval_shape(lambda key: init_state(task.make_model(nnx.Rngs(key)), optimizer), jax.random.key(0))


def split_over(mesh, leaf):
    """Splits the last axis that can be split, so that no part of a kernel is in one piece in the file."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.shape["fsdp"] == 0]
    return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], "fsdp") if axes else PartitionSpec())


def path_of(at):
    return jax.tree_util.keystr(at, simple=True, separator="/")


def content(path):
    """The arrays in a checkpoint, as NumPy's."""
    with checkpoint_format._this_process_alone():
        return ocp.load(path, jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), ocp.metadata(path).metadata))


def compare_with_file(path, config, mesh) -> int:
    """Reads a checkpoint onto a mesh, compares all bits with those in the file, and counts the arrays merged."""
    placed = jax.tree.map(lambda leaf: leaf.update(sharding=split_over(mesh, leaf)), abstract_state(config, mesh))
    file = {path_of(at): array for at, array in jax.tree.leaves_with_path(content(path))}
    state = read(path, placed, RETYPED)
    arrays = dict(zip(describe(state), jax.tree.leaves(state), strict=True))
    assert arrays.keys() == file.keys()
    merged = 0
    for (name, array), leaf in zip(arrays.items(), jax.tree.leaves(placed), strict=True):
        assert (array.sharding, array.dtype) == (leaf.sharding, leaf.dtype)
        merged += array.shape != file[name].shape
        expected = file[name].reshape(array.shape).astype(leaf.dtype)  # one is retyped
        for shard in array.addressable_shards:
            assert np.asarray(shard.data).tobytes() == expected[shard.index].tobytes(), name
    return merged


@pytest.mark.parametrize(
    ("optimizer", "fsdp"),
    [
        *(("sgd", 4), ("adamw", 1)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sgd", 1), ("adamw", 4))),
    ],
)
def test_the_state_in_the_file_comes_to_any_mesh_bit_for_bit(tmp_path, optimizer, fsdp):
    path, config = unpack(optimizer, tmp_path)
    assert compare_with_file(path, config, mesh_of(fsdp, fsdp)) == MERGED[optimizer]


ON_TWO_PROCESSES = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path[:0] = ["tests", "tests/training"]
from pathlib import Path
from test_earlier_checkpoints import compare_with_file, get_config, json, mesh_of
config = json.loads(Path(sys.argv[3], "config.json").read_text())
del config["mesh"]
print(compare_with_file(Path(sys.argv[3]) / "checkpoints" / "30", get_config(**config), mesh_of(2, 2)), "merged")
"""


@pytest.mark.slow
def test_the_state_in_the_file_comes_to_two_processes(tmp_path):
    unpack("adamw", tmp_path)
    codes, outputs = finish(start_code(ON_TWO_PROCESSES, str(tmp_path), processes=2, devices=1))
    assert codes == [0, 0], outputs
    assert all(f"{MERGED['adamw']} merged" in output for output in outputs)


def rewrite(path, target, stored):
    """Writes a checkpoint as an earlier version would have, with the shapes in one that it did write."""
    record = read_record(path)
    shapes = {name: json.loads(f"[{text.partition('[')[2]}") for name, text in stored["arrays"].items()}
    state = jax.tree.map_with_path(lambda at, array: jnp.reshape(array, shapes[path_of(at)]), content(path))
    earlier = make_record(record["step"], state, record["metrics"], record["config"], record["environment"])
    del earlier["format"]
    write(target, state, earlier).result()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", STORED)
def test_a_run_resumed_from_an_earlier_format_ends_as_an_unbroken_one(tmp_path, optimizer, capsys):
    path, config = unpack(optimizer, tmp_path / "stored")
    config.steps_per_call = 5
    train_and_evaluate(ConfigDict(config), tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "resumed", ignore=shutil.ignore_patterns("4*", "model", "fused"))
    (earlier,) = tmp_path.glob("unbroken/checkpoints/40")
    rewrite(earlier, tmp_path / "resumed" / "checkpoints" / "40", read_record(path))
    train_and_evaluate(ConfigDict(config), tmp_path / "resumed")
    assert "resuming from step 40 of 44" in capsys.readouterr().out
    for name in ("model", "fused"):
        assert_identical(*(load_model(tmp_path / run / name) for run in ("resumed", "unbroken")))


def test_in_the_format_of_today_no_shape_is_changed(tmp_path):
    state, abstract = ({"kernel": jnp.zeros(shape)} for shape in ((2, 2, 3, 2), (2, 6, 2)))
    record = make_record(1, state, {}, {}, {})
    write(tmp_path / "1", state, record).result()
    abstract = jax.eval_shape(lambda: abstract)
    with pytest.raises(ValueError, match=r"different: kernel \(float32\[2,2,3,2\] in the checkpoint, float32\[2,6,2\]"):
        read(tmp_path / "1", abstract)
    write(tmp_path / "2", state, record | dict(format=1)).result()
    assert read(tmp_path / "2", abstract)["kernel"].shape == (2, 6, 2)


def test_a_newer_format_is_refused(tmp_path):
    state = {"x": jnp.zeros(3)}
    write(tmp_path / "1", state, make_record(1, state, {}, {}, {}) | dict(format=3)).result()
    with pytest.raises(ValueError, match=r"checkpoint .*/1 is of format 3; this version reads formats 1 to 2"):
        read(tmp_path / "1", jax.eval_shape(lambda: state))
