"""What `import repmlp_jax` brings along and how long it takes, each time in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import repmlp_jax

# What only one task needs: pictures, datasets, checkpoints, files of PyTorch, export, the command line.
FOR_ONE_TASK = {
    *("matplotlib", "tensorflow_datasets", "tensorflow", "grain", "sklearn", "cv2", "PIL"),
    *("orbax", "tensorboardX", "ml_collections", "torch", "onnx", "onnxruntime", "typer"),
}

# Processor time, so that what else the machine does makes no difference.
TIMED = """
import time
start = time.process_time()
import repmlp_jax
print(time.process_time() - start)
"""


def output_of(program):
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout


# It is not installed, as in a checkout.
IMPORTED = """
import importlib.metadata as metadata
from_name = metadata.Distribution.from_name

def find(name):
    if name.replace("-", "_") == "repmlp_jax":
        raise metadata.PackageNotFoundError(name)
    return from_name(name)

metadata.Distribution.from_name = find
import sys, repmlp_jax
print(*{name.partition('.')[0] for name in sys.modules})
import repmlp_jax.plots
print(*sys.modules)
import repmlp_jax.cli, repmlp_jax.deploy.program, repmlp_jax.storage.models
print(repmlp_jax.__version__)
"""


def test_import_leaves_out_what_only_one_task_needs_pictures_need_no_pyplot_and_a_checkout_no_installation():
    first, with_plots, version = map(str.split, output_of(IMPORTED).splitlines())
    assert "flax" in first
    assert not set(first) & FOR_ONE_TASK
    assert "matplotlib.figure" in with_plots
    assert "matplotlib.pyplot" not in with_plots
    assert version == [repmlp_jax.__version__]


@pytest.mark.slow
def test_import_takes_less_than_three_seconds():
    assert min(float(output_of(TIMED)) for _ in range(3)) < 3


def test_version_is_a_semantic_one_and_that_of_the_citation():
    numbers = repmlp_jax.__version__.split(".")
    assert len(numbers) == 3
    assert all(number.isdecimal() for number in numbers)
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert f"\nversion: {repmlp_jax.__version__}\n" in citation


def test_every_public_name_is_there_and_in_order():
    names = repmlp_jax.__all__
    assert names == sorted(names)
    assert all(hasattr(repmlp_jax, name) for name in names)
