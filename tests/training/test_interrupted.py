import json
import shutil
import signal

import pytest
from tiny_recipe import get_config
from tiny_runs import finish, run, saved_steps, start, wait_for_checkpoint, wait_until
from tolerance import assert_identical

from repmlp_jax import load_model
from repmlp_jax.storage.checkpoint_format import read_record

pytestmark = pytest.mark.slow
FINAL_STEP = 44


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing interrupts. No test may write to it."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = run(workdir)
    assert code == 0, output
    return workdir


def record(workdir, step=FINAL_STEP):
    """What a checkpoint says of its arrays and scores; the configurations differ in how often one is made."""
    found = read_record(workdir / "checkpoints" / str(step))
    del found["config"]
    return found


def assert_same_end(workdir, undisturbed):
    """The same bits in every array of the last checkpoint and of the models, and the same rows."""
    assert record(workdir) == record(undisturbed)
    for name in ("model", "fused"):
        assert_identical(load_model(workdir / name), load_model(undisturbed / name))
    assert (workdir / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    # Killed before it could remove old ones and with nothing left to train, a run leaves them there.
    assert saved_steps(workdir)[-2:] == saved_steps(undisturbed)
    expected = {path.name for path in undisturbed.iterdir()}
    assert {path.name for path in workdir.iterdir()} == expected


def test_the_undisturbed_run(undisturbed):
    lines = (undisturbed / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [["epoch", "step"], ["1", "22"], ["2", "44"]]
    assert saved_steps(undisturbed) == [40, 44]


def test_killed_at_any_instant_it_ends_the_same(undisturbed, tmp_path):
    def it_trains():
        """Each process makes a file of events right before it trains; until then what is there is of another's."""
        return len(list((tmp_path / "tensorboard").glob("*"))) > trained_before

    def a_save_is_under_way():
        return saved_steps(tmp_path)[-1:] >= [30] and list((tmp_path / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    instants = {
        "before the first checkpoint": lambda: (tmp_path / "config.json").exists(),
        "in the first epoch": lambda: saved_steps(tmp_path)[-1:] >= [10],
        "as the first row is written": lambda: (tmp_path / "metrics.csv").exists(),
        "while a checkpoint is being written": a_save_is_under_way,
        "at its end": lambda: saved_steps(tmp_path)[-1:] == [FINAL_STEP],
    }
    for name, instant in instants.items():
        trained_before = len(list((tmp_path / "tensorboard").glob("*")))
        processes = start(tmp_path)
        if name != "before the first checkpoint":
            wait_until(it_trains, processes)
        wait_until(instant, processes)
        processes[0].kill()
        (code,), _ = finish(processes)
        assert code == -signal.SIGKILL
    steps = saved_steps(tmp_path)
    code, output = run(tmp_path)
    assert code == 0, output
    # With nothing left to train it fuses and saves.
    assert steps[-1] == FINAL_STEP
    assert f"resuming from step {steps[-1]} of {FINAL_STEP}" in output
    assert_same_end(tmp_path, undisturbed)


# 22 steps are an epoch: its last look is the only one, and then its row must not be missing.
@pytest.mark.parametrize(
    ("number", "steps_per_call", "checkpoint_every_steps"),
    [(signal.SIGTERM, 1, 5), (signal.SIGTERM, 22, 0), (signal.SIGINT, 1, 5)],
    ids=["SIGTERM", "SIGTERM in the last step of an epoch", "Ctrl-C"],
)
def test_sigterm_and_ctrl_c_save_first(undisturbed, tmp_path, number, steps_per_call, checkpoint_every_steps):
    arguments = [
        f"--config.steps_per_call={steps_per_call}",
        f"--config.checkpoint_every_steps={checkpoint_every_steps}",
    ]
    processes = start(tmp_path, *arguments)
    if checkpoint_every_steps:
        # A save waits for the one before: the run is not past step 10 then.
        wait_for_checkpoint(tmp_path, 5, processes)
    else:
        # It is made once SIGTERM is heard, right before the first step.
        wait_until((tmp_path / "tensorboard").exists, processes)
    processes[0].send_signal(number)
    (code,), (output,) = finish(processes)
    assert code == 128 + number, output
    (stopped,) = saved_steps(tmp_path)[-1:]
    assert f"{number.name}: step {stopped} is saved; the same command resumes from it" in output
    assert (stopped % 22 == 0) == (steps_per_call == 22)

    code, output = run(tmp_path, *arguments)
    assert code == 0, output
    assert f"resuming from step {stopped} of {FINAL_STEP}" in output
    # Digests and metrics alone: the checkpoints in between are others, and so is config.json.
    assert record(tmp_path) == record(undisturbed)
    assert (tmp_path / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()


def with_a_flipped_bit(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1 << 3
    return bytes(changed)


def test_the_checkpoint_before_a_damaged_one_is_used(undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    last = workdir / "checkpoints" / str(FINAL_STEP)
    files = [path for path in last.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(with_a_flipped_bit(largest.read_bytes()))
    code, output = run(workdir)
    assert code == 0, output
    assert output.count(f"checkpoint {last} is damaged: ") == 1
    assert f"resuming from step 40 of {FINAL_STEP}" in output
    assert (workdir / "checkpoints" / "damaged" / str(FINAL_STEP)).is_dir()
    assert_same_end(workdir, undisturbed)


def test_a_checkpoint_of_another_model_is_named_with_its_differences(undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    config = get_config(model="pure_mlp_no_global", model_arguments=get_config().model_arguments)
    config.model_arguments.param_dtype = "bfloat16"
    # What it says there is not enough: the checkpoints hold their own.
    (workdir / "config.json").write_text(json.dumps(json.loads(config.to_json())))
    before = sorted(workdir.rglob("*"))
    recipe = tmp_path / "other_recipe.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({json.loads(config.to_json())!r})\n"
    )
    code, output = run(workdir, f"--config={recipe}")
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {workdir}/checkpoints/40 holds a run of another configuration: ")
    assert "model is 'pure_mlp_no_global' now and 'pure_mlp' there" in line
    assert "'param_dtype': 'bfloat16'" in line
    assert "Traceback" not in output
    assert sorted(workdir.rglob("*")) == before
