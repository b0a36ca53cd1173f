"""Runs the notebooks as they are, on a CPU, and saves them with their outputs.

python notebooks/save.py  # all; or: python notebooks/save.py train_on_tpu

It also writes the address of the repository, as pyproject.toml has it, into their badges and first cells.
"""

import base64
import copy
import io
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/"
# Types of the data of outputs.
PICTURE, TABLE, TEXT = "image/png", "text/html", "text/plain"
WIDGET = "application/vnd.jupyter.widget-view+json"


def read(name: str) -> NotebookNode:
    """A notebook as it is saved."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def repository() -> str:
    """The address of the repository in pyproject.toml; "" as long as it is not known."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    return project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"].rstrip("/")


def badge(name: str, address: str) -> str:
    """The link to the notebook in Colab; to Colab's search in GitHub if the address of the repository is not known."""
    place = f"{address.removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb" if address else ""
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB}{place})"


def addressed(name: str, notebook: NotebookNode) -> NotebookNode:
    """The notebook with the repository's address in its badge and in its first cell of code."""
    address = repository()
    title, *_ = notebook.cells
    title.source = re.sub(r"\[!\[Open in Colab\].*", lambda _: badge(name, address), title.source)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = re.sub(r'(?m)^repository = ".*?"', lambda _: f'repository = "{address}"', first.source)
    return notebook


def run(notebook: NotebookNode, folder: Path, seconds: float) -> NotebookNode:
    """Runs all cells in a folder, each with a limit of seconds, and replaces their outputs."""
    metadata = copy.deepcopy(notebook.metadata)
    # Outputs are those of a CPU as users have it, whatever is set for this process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore:IProgress not found"}
    client = NotebookClient(
        notebook,
        timeout=int(seconds),
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    notebook.metadata = metadata  # without the version of Python and the state of widgets
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                data = output.get("data", {})
                if data.keys() & {PICTURE, TABLE}:
                    data.pop(TEXT, None)  # which may have addresses in memory
                if PICTURE in data:
                    data[PICTURE] = _of_256_colours(data[PICTURE])
    return notebook


def _of_256_colours(picture: str) -> str:
    """A picture in a third of the bytes."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(256).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def texts(notebook: NotebookNode) -> list[str]:
    """For each cell of code what it prints and returns, without what depends on the machine.

    Numbers with a decimal point are left out, such as scores and rounding errors, and in cells tagged "measured" all
    numbers; whole numbers elsewhere are counts, which are the same everywhere. Lines in brackets, which a training
    prints if its scores waver, are left out, too.
    """
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data = [{TEXT: output.get("text", "")} | output.get("data", {}) for output in cell.outputs]
            text = "\n".join(re.sub("<.*?>", " ", one.get(TABLE, "")) + one[TEXT] for one in data)
            text = re.sub(r"(?m)^ +\(.*\)$", "", text)
            measured = "measured" in cell.metadata.get("tags", [])
            text = re.sub(r"\d[\d,]*" + ("" if measured else r"(?=\.\d|e[+-]\d)") + r"(\.\d+)?(e[+-]\d+)?", "#", text)
            found.append(" ".join(text.split()))
    return found


def pictures(notebook: NotebookNode) -> int:
    """The number of pictures in the outputs."""
    return sum(PICTURE in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(addressed(name, read(name)), Path(folder), seconds=600)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"saved: notebooks/{name}.ipynb with {pictures(notebook)} pictures")
