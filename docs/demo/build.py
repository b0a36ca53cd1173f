"""Builds the page on which one draws a digit: a folder of static files that any web server serves.

    python docs/demo/build.py                       # trains configs/digits.py first, in a minute
    python docs/demo/build.py runs/digits/model     # or takes a trained model
    python -m http.server --directory docs/demo/built

Needs the extras [train] and [onnx], of which the latter exports the net as it was trained and fused, and npm, which
brings onnxruntime-web.
"""

import argparse
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from flax import nnx
from matplotlib.colors import to_hex

from repmlp_jax import RepMLP, export_onnx, fuse_report, plots
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.data.digits import CLASS_NAMES
from repmlp_jax.plots.palette import MAGNITUDES, ZERO
from repmlp_jax.storage.models import SavedModel, load
from repmlp_jax.storage.whole_folder import whole_folder
from repmlp_jax.training.command_line import report_errors
from repmlp_jax.training.recipe_file import load_recipe

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "configs" / "digits.py"
RUNTIME = "onnxruntime-web@1.30.0"
# File of the package → its name beside the page. Some web servers do not know .mjs.
WASM = "ort-wasm-simd-threaded.wasm"
RUNTIME_FILES = {"ort.wasm.bundle.min.mjs": "onnxruntime.js", WASM: WASM}
FORMS = "trained", "fused"
ABOUT = "about.json"
BUILDER = "docs/demo/build.py"  # so that its folders are known
IMAGE_SHAPE = (8, 8, 1)


def main():
    """Builds the folder that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        help="folder of a trained model; without: one is trained",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "built",
        help="folder to build; by default docs/demo/built",
    )
    options = parser.parse_args()
    with report_errors():
        build(options.out, options.model)
        print(
            f"built: {options.out}; see it by: python -m http.server --directory {options.out}"
        )


def build(out: Path, model_folder: Path | None = None):
    """Writes the page with a saved model, or with one that is trained first; the folder appears whole or not at all.

    Raises:
        FileExistsError: if `out` is anything else than an empty folder, or one that this function wrote.
        FileNotFoundError: if there is no npm, or no saved model in the folder.
        PermissionError: if `out` cannot be written.
        TypeError: if the model is fused.
        ValueError: if the model is not one of the digits with a RepMLP block, or npm cannot get onnxruntime-web.
    """
    out = out.absolute()
    check_may_write(out)
    with tempfile.TemporaryDirectory() as scratch:
        saved = (
            None if model_folder is None else checked(load(model_folder), model_folder)
        )
        runtime = fetch_runtime(Path(scratch))
        saved = saved or train(Path(scratch))
        with whole_folder(out, lambda: check_may_write(out)) as folder:
            for file in (*runtime, *(HERE / "page").iterdir()):
                shutil.copy(file, folder)
            for form in FORMS:
                file, fuse = folder / f"{form}.onnx", form == "fused"
                export_onnx(
                    saved.model, file, preprocessing=saved.preprocessing, fuse=fuse
                )
            (folder / ABOUT).write_text(json.dumps(about(saved)))


def check_may_write(out: Path):
    """Refuses what may not be replaced, or cannot be written; raises as `build` does."""
    if os.path.lexists(out) and not (
        out.is_dir() and not out.is_symlink() and is_own(out)
    ):
        raise FileExistsError(
            f"{out} is nothing that {BUILDER} built, and is left as it is: choose another"
        )
    parent = next(parent for parent in out.parents if parent.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise PermissionError(
            f"{out} cannot be built: {parent} is not a folder that can be written; choose another"
        )


def is_own(folder: Path) -> bool:
    """Whether a folder is empty, or was written by `build`."""
    if not any(folder.iterdir()):
        return True
    try:
        return json.loads((folder / ABOUT).read_text())["built_by"] == BUILDER
    except (OSError, ValueError, TypeError, KeyError):
        return False


def fetch_runtime(scratch: Path) -> list[Path]:
    """Gets onnxruntime-web from npm, which runs no script for it; returns the files that the page needs."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm, which brings {RUNTIME}, is not installed: install Node.js, which has it"
        )
    got = subprocess.run(
        [npm, "pack", "--silent", RUNTIME], cwd=scratch, capture_output=True, text=True
    )
    if got.returncode:
        raise ValueError(
            f"npm cannot get {RUNTIME}: {' '.join(got.stderr.split()) or f'exit status {got.returncode}'}"
        )
    with tarfile.open(scratch / got.stdout.split()[-1]) as package:
        for name, copy in RUNTIME_FILES.items():
            with (scratch / copy).open("wb") as file:
                shutil.copyfileobj(package.extractfile(f"package/dist/{name}"), file)
    return [scratch / copy for copy in RUNTIME_FILES.values()]


def train(scratch: Path) -> SavedModel:
    """Trains the digits' recipe."""
    from repmlp_jax.training import train_and_evaluate

    train_and_evaluate(load_recipe(str(RECIPE)), str(scratch / "run"))
    return load(scratch / "run" / "model")


def checked(saved: SavedModel, folder: Path) -> SavedModel:
    """Refuses a saved model that the page cannot show; raises as `build` does."""
    model, names = saved.model, saved.preprocessing.get("class_names")
    if model.input_shape != IMAGE_SHAPE or names != list(CLASS_NAMES):
        raise ValueError(
            f"{folder} holds a {type(model).__name__} for images {model.input_shape} and classes {names}; the page "
            f"needs one for images {IMAGE_SHAPE} and classes 0 to 9, as configs/digits.py trains it"
        )
    parts_of_first_block(model)
    return saved


def parts_of_first_block(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parts of the kernel of the first block's FC3, as `plots.fc3_parts` has them."""
    blocks = [
        node
        for _, node in nnx.iter_graph(model)
        if isinstance(node, RepMLP | FusedRepMLP)
    ]
    maps = [block.partitioning.image_size for block in blocks]
    if maps[:1] != [IMAGE_SHAPE[:2]]:
        raise ValueError(
            f"the page needs a net whose first RepMLP block has a map of 8×8, as each pixel of the digit is one of "
            f"the map; the maps of this {type(model).__name__}'s blocks are {maps}"
        )
    return plots.fc3_parts(blocks[0])


def about(saved: SavedModel) -> dict:
    """What the page has to know of the net: its preprocessing, its costs, and the kernel of its first block's FC3."""
    parts = parts_of_first_block(saved.model)
    # Over all pairs of channels, as in `plots.receptive_fields`: (input row, input column, output row, output column).
    kernels = {
        name: np.sqrt(np.square(part).mean((0, 3, 6))) for name, part in parts.items()
    }
    colours = matplotlib.colormaps[MAGNITUDES](np.linspace(0, 1, 64))
    return {
        "built_by": BUILDER,
        "mean": saved.preprocessing.get("mean", [0])[0],
        "std": saved.preprocessing.get("std", [1])[0],
        "macs": dict(zip(FORMS, fuse_report(saved.model).macs, strict=True)),
        "kernels": {name: kernel.tolist() for name, kernel in kernels.items()},
        "colours": [to_hex(colour) for colour in colours],
        "zero": to_hex(ZERO),
    }


if __name__ == "__main__":
    main()
