"""The notebooks: kept without outputs, opened by their badge, and run from top to bottom with small settings."""

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path

import nbformat
import numpy as np
import patience
import pytest
from nbclient import NotebookClient

from repmlp_jax.data.cifar10 import CLASS_NAMES

FOLDER = Path(__file__).parents[1] / "notebooks"
DATASETS = Path(os.environ.get("TFDS_DATA_DIR", FOLDER.parents[1] / "shared" / "tensorflow_datasets"))
NAMES = ("repmlp_in_ten_minutes", "train_on_tpu", "official_weights")

# What stands in for the cell that is tagged "parameters".
TEN_MINUTES = """
import jax
digits_epochs = 2
digits_net = dict(widths=(4,), conv_kernels=(3,))
cifar10_epochs = 1
cifar10_batch_size = 250
cifar10_net = dict(widths=(4,), conv_kernels=(3,))
timed_images = 2
"""
TRAIN = """
run = "digits"
recipe = dict(
    model_arguments=dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(3,)),
    dataset="digits", epochs=2, batch_size=128, crop_padding=1, flip=False, eval_batch_size=360,
)
"""
WEIGHTS = """
weights = ""
model_name = "RepMLPNet-T224"
model_arguments = dict(
    stage_sizes=(1, 1), widths=(4, 8), partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2),
    num_classes=10, in_features=1, patch_size=(2, 2),
)
pictures = []
dataset = "digits"
timed_images = 2
"""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def run(notebook, parameters, folder, **environment):
    """Runs a notebook in a folder of its own; returns what its cells printed, and how many pictures they drew."""
    (cell,) = tagged(notebook, "parameters")
    cell.source = parameters
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=int(patience.seconds(300)), kernel_name="python3", resources=where)
    # Compiling is most of the work at these sizes, and making the code fast is most of that.
    client.execute(env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return printed, pictures


def number_after(text, printed):
    (found,) = re.findall(rf"{text} ([0-9.e+-]+)", printed)
    return float(found)


def prepare_some_of_cifar10(folder):
    """Prepares the first 1,000 and 200 examples of CIFAR-10 as the whole is: from an archive like the real one."""
    import tensorflow_datasets as tfds

    from repmlp_jax.data.prepare_cifar10 import ARCHIVE_FOLDER, TEST_FILES, TRAIN_FILES, VERSION, prepare_cifar10

    contents = {"batches.meta.txt": "\n".join(CLASS_NAMES).encode()}
    for split, names in (("train", TRAIN_FILES), ("test", TEST_FILES)):
        source = tfds.data_source(f"cifar10:{VERSION}", split=split, data_dir=DATASETS, download=False)
        for part, name in enumerate(names):
            examples = source.__getitems__(range(200 * part, 200 * (part + 1)))
            records = [[one["label"], *one["image"].transpose(2, 0, 1).ravel()] for one in examples]
            contents[name] = np.array(records, np.uint8).tobytes()
    archive = folder / "downloads" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{ARCHIVE_FOLDER}/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    prepare_cifar10(folder, size=archive.stat().st_size, sha256=sha256)


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert all(cell.execution_count is None for cell in code)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NAMES)
def test_its_badge_opens_it_in_colab(name):
    where = re.findall(
        r"\(https://colab\.research\.google\.com/github/(.*?)/blob/main/(.*?)\)", read(name).cells[0].source
    )
    assert where == [("OWNER/repmlp_jax", f"notebooks/{name}.ipynb")]


def test_the_first_code_cell_installs_the_library_alike():
    first = [next(cell for cell in read(name).cells if cell.cell_type == "code") for name in NAMES]
    assert len({cell.source for cell in first}) == 1
    assert first[0].metadata.tags == ["install"]
    assert "git+https://github.com/OWNER/repmlp_jax" in first[0].source


@pytest.mark.slow
def test_repmlp_in_ten_minutes(tmp_path):
    notebook = read("repmlp_in_ten_minutes")
    has_cifar10 = (DATASETS / "cifar10").is_dir()
    if has_cifar10:
        prepare_some_of_cifar10(tmp_path)
    else:
        notebook.cells = [cell for cell in notebook.cells if "cifar10" not in cell.metadata.get("tags", [])]
    printed, pictures = run(notebook, TEN_MINUTES, tmp_path, TFDS_DATA_DIR=str(tmp_path))
    assert number_after("largest output [0-9.]+, largest difference", printed) < 1e-5
    assert number_after("largest difference of a logit", printed) < 1e-5
    assert "same class for 360 of 360 images" in printed
    assert pictures == (7 if has_cifar10 else 5)
    assert not (tmp_path / "runtime.txt").exists(), "it installed what is there"
    if not has_cifar10:
        pytest.skip(f"all but the cells of CIFAR-10 ran: they need it in {DATASETS} (or set TFDS_DATA_DIR)")


@pytest.mark.slow
def test_train_on_tpu(tmp_path):
    printed, pictures = run(read("train_on_tpu"), TRAIN, tmp_path, JAX_NUM_CPU_DEVICES="2")
    assert "{'data': 2, 'fsdp': 1} 64 of 128 images on each device" in printed
    assert "steps that are saved: 11 22" in printed
    assert "same scores: True" in printed
    assert pictures == 1
    assert (tmp_path / "runs" / "digits" / "fused").is_dir()


@pytest.mark.slow
def test_official_weights(tmp_path):
    printed, pictures = run(read("official_weights"), WEIGHTS, tmp_path)
    assert number_after("largest difference of a logit", printed) < 1e-5
    assert number_after("exported and fused differ by", printed) < 1e-5
    assert "one image alone: (1, 10)" in printed
    assert "identical: True" in printed
    scores = re.findall(r"(?:trained|fused): \{.*?'accuracy': ([0-9.]+)", printed)
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert pictures == 2
