"""The library without its extras: what works, and what is said of the rest."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from repmlp_jax import extras

# In a process of its own, where no module of the extra can be imported.
WITHOUT_EXTRAS = """
import json, sys
from repmlp_jax.extras import EXTRAS
sys.modules |= dict.fromkeys(EXTRAS["train"][1])

import jax
from flax import nnx
import repmlp_jax

sizes = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(3,))
model = repmlp_jax.PureMLP(**sizes, rngs=nnx.Rngs(0))
model.eval()
assert "norm folded into fc1" in str(repmlp_jax.fuse_report(model))
fused = repmlp_jax.fuse_params(model)
x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
assert abs(fused(x) - model(x)).max() < 1e-4
repmlp_jax.save_model("model", model, preprocessing=dict(mean=[0.5], std=[0.5]))
assert (repmlp_jax.load_model("model")(x) == model(x)).all()
assert repmlp_jax.data_configuration("model").mean == (0.5,)
missing = {}
for name in repmlp_jax.__all__:
    try:
        getattr(repmlp_jax, name)
    except ModuleNotFoundError as error:
        missing[name] = str(error)

from typer.testing import CliRunner
from repmlp_jax.cli import app

results = {}
for line in sys.stdin.read().splitlines():
    result = CliRunner().invoke(app, line.split())
    results[line] = result.exit_code, result.stdout, result.stderr
print(json.dumps([missing, results]))
"""
WITH_THE_CORE = {
    "list pure_mlp": "pure_mlp",
    "info": '[train] not installed: pip install "repmlp_jax[train]"',
    "summary model": "norm folded into fc1",
    "fuse model fused": "outputs for a random image are equal",
    "export fused fused.zip": "saved: fused.zip",
    "quantise fused in_int8": "saved: in_int8",
}
WITH_AN_EXTRA = ["train digits", "evaluate fused --dataset digits", "predict fused x.png", "plot identity x.png"]
SAID = 'is not installed. For training, datasets, predictions and plots run pip install "repmlp_jax[train]"'


@pytest.mark.slow
def test_without_extras_the_core_works_and_the_rest_names_the_extra(tmp_path):
    commands = "\n".join([*WITH_THE_CORE, *WITH_AN_EXTRA])
    program = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(program, cwd=tmp_path, input=commands, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing, results = json.loads(done.stdout)
    assert list(missing) == ["train_and_evaluate"]
    assert SAID in missing["train_and_evaluate"]
    for line, expected in WITH_THE_CORE.items():
        code, output, errors = results[line]
        assert code == 0, errors
        assert expected in " ".join(output.split())
    for line in WITH_AN_EXTRA:
        code, output, errors = results[line]
        assert (code, output) == (2, "")
        assert errors.startswith("error: ")
        assert errors.endswith(f"{SAID}\n")
        assert errors.count("\n") == 1


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_packages_of_an_extra_bring_its_modules(extra):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    packages = {re.split("[>;]", one)[0].lower().replace("_", "-") for one in project["optional-dependencies"][extra]}
    brought = packages_distributions()
    for module in set(extras.EXTRAS[extra][1]) & set(brought):
        assert packages & {package.lower().replace("_", "-") for package in brought[module]}, module


def test_a_module_of_no_extra_is_missing_as_elsewhere():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'nowhere_to_be_found'$"), extras.name_extra():
        import nowhere_to_be_found  # noqa: F401
