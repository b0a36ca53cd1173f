import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import patience
import pytest
from cases import random_array
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tolerance import assert_identical

from repmlp_jax.storage.checkpoint_format import CheckpointError
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.digest import digests

REPOSITORY = Path(__file__).parents[2]


def make_state(seed=0):
    values = jnp.asarray(random_array(30, 40, seed=seed), jnp.float32)
    model = nnx.state(nnx.BatchNorm(3, rngs=nnx.Rngs(seed)))
    return {
        "step": jnp.int32(seed),
        "float32": values,
        "bfloat16": values.astype(jnp.bfloat16),
        "float64": values.astype(jnp.float64),
        "int8": jnp.arange(5, dtype=jnp.int8),
        "bool": values[0] > 0,
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed), 3),
        "model": model,
        "optimizer": optax.adamw(1e-3).init(model),
    }


def abstract(state):
    return jax.eval_shape(lambda: state)


def test_round_trip_is_bit_equal(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(7, state)
        step, restored = checkpoints.restore(abstract(state))
    assert step == 7
    assert_identical(restored, state)
    step, restored = Checkpoints(tmp_path).restore(abstract(state), step=7)
    assert_identical(restored, state)


def test_latest_two_and_best_are_kept(tmp_path):
    state = {"x": jnp.zeros(3)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None
        for step, score in enumerate([0.1, 0.9, 0.3, None, float("nan"), 0.9, None, None]):
            checkpoints.save(step, state, {} if score is None else {"test_accuracy": score})
    for opened in (checkpoints, Checkpoints(tmp_path)):
        assert opened.steps() == [1, 6, 7]
        assert opened.best_step() == 1
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, state, {"test_accuracy": np.float64(0.95)})
    assert checkpoints.steps() == [7, 8]


def test_a_checkpoint_is_on_the_disk_before_an_older_one_is_removed(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def remember(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    removed = []
    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(shutil, "rmtree", lambda path: removed.append((path.name, set(synced))))
    with Checkpoints(tmp_path, latest=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.zeros(3)})
    ((name, before),) = removed
    assert name == "1"
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "2", *(tmp_path / "2").rglob("*"))} <= before


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_a_checkpoint_as_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(1, {"x": jnp.zeros(3)})
    finally:
        os.umask(before)
    for path in (tmp_path / "checkpoints", *(tmp_path / "checkpoints").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask


def test_the_state_may_be_donated_while_it_is_being_saved(tmp_path):
    increase = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.full((1000, 1000), 5.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x})
        for _ in range(10):
            x = increase(x)
        _, restored = checkpoints.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    assert (restored["x"] == 5).all()


def test_a_saved_step_stays_as_it_is(tmp_path, caplog):
    state = make_state(0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(1, state)
        assert not caplog.records
        checkpoints.save(1, make_state(1))
        assert "holds another state and stays as it is" in caplog.text
        assert checkpoints.steps() == [1]
        assert_identical(checkpoints.restore(abstract(state))[1], state)


def test_a_missing_step_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
        with pytest.raises(ValueError, match=r"no checkpoint of step 2 .* there are \[1\]"):
            checkpoints.restore(abstract({"x": jnp.zeros(3)}), step=2)


def test_other_arrays_are_one_error_that_lists_them(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 3), jnp.float32)}, "same": jnp.zeros(())})
    wanted = {"b": {"c": jnp.zeros((2, 3), jnp.bfloat16)}, "d": jnp.zeros(3), "same": jnp.zeros(())}
    with pytest.raises(ValueError, match="holds other arrays than the state") as error:
        checkpoints.restore(abstract(wanted))
    assert str(error.value).endswith(
        "only in the checkpoint: a; only in the state: d; "
        "different: b/c (float32[2,3] in the checkpoint, bfloat16[2,3] in the state)"
    )


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1), {"test_accuracy": 0.5})
        checkpoints.save(2, make_state(2), {"test_accuracy": 0.6})
    return folder


def flip(file, place):
    content = bytearray(file.read_bytes())
    if content:
        content[int(place * (len(content) - 1))] ^= 1 << 3
        file.write_bytes(content)


DAMAGES = {
    "bit flipped early": lambda file: flip(file, 0.25),
    "bit flipped in the middle": lambda file: flip(file, 0.5),
    "bit flipped late": lambda file: flip(file, 0.9),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
}


# Orbax leaves the tasks of the other arrays behind when reading one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=[] if "middle" in name else pytest.mark.slow) for name in DAMAGES],
)
def test_damage_to_any_file_never_gives_wrong_values(two_saved, tmp_path, caplog, damage):
    files = [path.relative_to(two_saved) for path in sorted((two_saved / "2").rglob("*")) if path.is_file()]
    assert len(files) > 6
    steps = set()
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two_saved, folder)
        DAMAGES[damage](folder / file)
        caplog.clear()
        step, state = Checkpoints(folder).restore(abstract(make_state()))
        assert_identical(state, make_state(step))
        warnings = [record.getMessage() for record in caplog.records if record.name == "repmlp_jax"]
        assert (step, len(warnings)) in {(2, 0), (1, 1)}
        if step == 1:
            assert warnings[0].startswith(f"checkpoint {folder}/2 is damaged: ")
            assert len(warnings[0]) < 600
            assert "\n" not in warnings[0]
            assert Checkpoints(folder).steps() == [1]
            assert (folder / "damaged" / "2").is_dir()
        steps.add(step)
    assert 1 in steps


def data_file(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_warning_names_the_array(tmp_path, caplog):
    state = {"small": jnp.zeros(3), "big": jnp.asarray(random_array(100, 100))}
    for damage, message in [("bit flipped in the middle", "wrong values in big"), ("truncated", "array big")]:
        folder = tmp_path / message
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, state)
            checkpoints.save(2, state)
        DAMAGES[damage](data_file(folder / "2"))
        assert checkpoints.restore(abstract(state))[0] == 1
        assert message in caplog.text


def test_a_damaged_step_can_be_saved_again(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    DAMAGES["bit flipped in the middle"](data_file(tmp_path / "2"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[0] == 1
        assert checkpoints.best_step() == 1
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
        assert checkpoints.best_step() == 1
    step, state = Checkpoints(tmp_path).restore(abstract(make_state()))
    assert step == 2
    assert_identical(state, make_state(2))


def test_a_step_with_unreadable_metadata_is_replaced(two_saved, tmp_path, caplog):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2))
    assert "replacing it" in caplog.text
    assert checkpoints.restore(abstract(make_state()))[0] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_whole_is_an_error_and_stays_one(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    for step in "12":
        DAMAGES["truncated"](data_file(tmp_path / step))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be read:\n.*/2 is damaged: .*/1 is damaged"):
            Checkpoints(tmp_path).restore(abstract(make_state()))
    with pytest.raises(CheckpointError, match="/1 is damaged"):
        Checkpoints(tmp_path).restore(abstract(make_state()), step=1)


def test_what_a_killed_save_leaves_is_removed(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    leftover = tmp_path / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "2", leftover)
    with Checkpoints(tmp_path) as checkpoints:
        assert not leftover.exists()
        assert checkpoints.restore(abstract(make_state()))[0] == 2
        checkpoints.save(3, make_state(3))
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("5", "5 holds step 2"),
        ("007", "007 is not a name of a checkpoint"),
        ("٢", "٢ is not a name of a checkpoint"),
        ("9", "9 is not a folder"),
    ],
)
def test_what_no_run_saved_under_its_name_is_refused(two_saved, tmp_path, name, message):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    if name == "9":
        (tmp_path / name).write_text("a file")
    else:
        shutil.copytree(tmp_path / "2", tmp_path / name)
    with pytest.raises(ValueError, match="under its name: ") as error:
        Checkpoints(tmp_path)
    assert str(error.value) == f"{tmp_path} holds what no run saved under its name: {message}. Move it elsewhere"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_restored(tmp_path, caplog, value):
    good, bad = ({"kernel": jnp.full((2, 3), 1, jnp.bfloat16).at[1, 1].set(one)} for one in (1, value))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, good)
        checkpoints.save(2, bad)
        step, state = checkpoints.restore(abstract(good))
        assert_identical(state, good)
        message = f"{tmp_path}/2 is damaged: it holds values that are NaN or infinite: kernel (1 of 6)"
        assert message in caplog.text
        assert checkpoints.steps() == [step] == [1]


def test_saved_on_eight_devices_restored_on_two_and_on_one(tmp_path):
    values = {"x": jnp.arange(64.0).reshape(16, 4), "key": jax.random.split(jax.random.key(0), 8)}

    def sharding(count):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        return NamedSharding(mesh, PartitionSpec("data"))

    def wanted(count):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(count)), values)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(values, sharding(8)))
        for count in (8, 2, 1):
            _, restored = checkpoints.restore(wanted(count))
            assert_identical(restored, values)
            assert all(x.sharding == sharding(count) for x in jax.tree.leaves(restored))
            assert digests(restored) == digests(values)
        _, restored = checkpoints.restore(abstract(values))
        assert_identical(restored, values)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.checkpoint_format import CheckpointError

def make_state(step):
    return {"step": jnp.int32(step), "x": jax.random.normal(jax.random.key(step), (400, 500))}

abstract = jax.eval_shape(make_state, 0)
"""


def start(program, *arguments):
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_at_any_instant_it_resumes(tmp_path):
    program = """
checkpoints = Checkpoints(sys.argv[1])
step, state = checkpoints.restore(abstract) or (0, make_state(0))
assert (state["x"] == make_state(step)["x"]).all()
print("resumed", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, make_state(step), {"test_accuracy": -step})
    print("saving", step, flush=True)
"""
    last = 0
    for number in range(6):
        process = start(program, tmp_path)
        # A library may have something to say before.
        lines = iter(process.stdout.readline, "")
        resumed = int(next(line for line in lines if line.startswith("resumed")).split()[1])
        # When a save starts the one before is complete, so at most one announced step is lost.
        assert resumed >= last - 1
        # The first announcements are waited for, however slow the machine is; then it is killed within some save.
        announced = (int(line.split()[1]) for line in lines if line.startswith("saving"))
        last = [next(announced) for _ in range(3)][-1]
        time.sleep(0.037 * number)
        process.kill()
        last = max([last, *announced])
        process.wait()
    assert last > 6
    assert not list(Checkpoints(tmp_path).folder.glob("*tmp*"))


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error(tmp_path):
    process = start(
        """
import resource, pytest
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, make_state(1))
checkpoints.wait()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
for _ in range(2):
    with pytest.raises(CheckpointError) as error:
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
    print(error.value)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert checkpoints.restore(abstract)[0] == 1
checkpoints.save(2, make_state(2))
step, state = checkpoints.restore(abstract)
assert step == 2 and (state["x"] == make_state(2)["x"]).all()
""",
        tmp_path,
    )
    output = process.communicate()[0]
    assert process.returncode == 0, output
    errors = [
        line for line in output.splitlines() if line.startswith(f"checkpoint {tmp_path}/2 could not be written: ")
    ]
    assert len(errors) == 2
    assert "Traceback" not in output
    assert errors[0].endswith("; the last one is that of step 1")
    assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_agree_on_a_damaged_one(tmp_path):
    program = """
from jax.sharding import NamedSharding, PartitionSpec
from pathlib import Path
folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(coordinator_address=f"localhost:{port}", num_processes=2, process_id=process)
mesh = jax.make_mesh((4,), ("data",))
shardings = {"x": NamedSharding(mesh, PartitionSpec("data")), "step": NamedSharding(mesh, PartitionSpec())}
make_sharded = jax.jit(make_state, out_shardings=shardings)
abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
same = jax.jit(lambda a, b: (a["x"] == b["x"]).all() & (a["step"] == b["step"]))

with Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(abstract) is None
    for step in range(5):
        checkpoints.save(step, make_sharded(step), {"test_accuracy": -step})
    checkpoints.save(4, make_sharded(4))
    step, state = checkpoints.restore(abstract)
    assert step == 4 and same(state, make_sharded(4)) and state["x"].sharding == shardings["x"]
    assert checkpoints.steps() == [0, 3, 4], checkpoints.steps()

if process == 0:
    files = Path(folder, "4", "state", "ocdbt.process_1", "d").iterdir()
    damaged = max(files, key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:1000])
with Checkpoints(folder) as checkpoints:
    step, state = checkpoints.restore(abstract)
    assert step == 3 and same(state, make_sharded(3))
    checkpoints.save(4, make_sharded(4))
    assert checkpoints.restore(abstract)[0] == 4
print("done")
"""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [start(program, tmp_path, port, process) for process in range(2)]
    outputs = [process.communicate(timeout=patience.seconds(120))[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert "done\n" in output
        assert "/4 is damaged: " in output
