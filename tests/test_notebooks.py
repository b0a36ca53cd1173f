"""The notebooks: saved with the outputs of a run from top to bottom, which is repeated here."""

import re
import sys
from pathlib import Path

import nbformat
import patience
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.append(str(FOLDER))
import save  # noqa: E402

LARGEST = 1_500_000  # bytes of all notebooks
# Name → the pictures that it shows at least, and numbers of its text with the largest that they may be.
NOTEBOOKS = {
    "fuse_your_own_repvgg": (3, {"largest difference of a logit": 1e-4}),
    "official_weights": (4, {"largest difference of a logit": 1e-5, "exported and fused differ by": 1e-5}),
    "repmlp_in_ten_minutes": (7, {"largest difference": 1e-4, "largest difference of a logit": 1e-4}),
    "train_on_tpu": (2, {"largest difference of an output": 1e-4}),
}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.get("text", "") for cell in code(notebook) for output in cell.outputs)


def check(name, notebook):
    """Checks what has to hold for the saved outputs and for new ones."""
    pictures, largest = NOTEBOOKS[name]
    assert save.pictures(notebook) == pictures
    for text, limit in largest.items():
        found = re.findall(rf"{text} ([0-9.]+e-[0-9]+)", printed(notebook))
        assert found, text
        assert max(map(float, found)) < limit
    assert not [output for cell in code(notebook) for output in cell.outputs if output.get("name") == "stderr"]


def test_there_are_no_others():
    assert set(save.NAMES) == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_saved_with_the_outputs_of_all_its_cells(name):
    notebook = save.read(name)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    check(name, notebook)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"[^\w.~](/(home|root|tmp|usr|work)/| at 0x)", text), "a path or an address of the machine"
    assert "OWNER" not in text
    assert not re.search(r"--constraint|jax(lib)?==", text), "it pins the runtime's JAX"


def test_all_notebooks_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.ipynb")) < LARGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_badge_and_its_first_cell_have_the_repositorys_address(name):
    notebook = save.read(name)
    assert save.badge(name, save.repository()) in notebook.cells[0].source
    assert f'repository = "{save.repository()}"' in code(notebook)[0].source
    assert save.addressed(name, save.read(name)) == notebook


def test_a_badge_opens_the_notebook_where_the_account_is_known():
    badge = save.badge("train_on_tpu", "https://github.com/someone/repmlp_jax")
    assert badge.endswith(
        "(https://colab.research.google.com/github/someone/repmlp_jax/blob/main/notebooks/train_on_tpu.ipynb)"
    )


def test_the_first_code_cell_is_the_same_everywhere():
    first = [code(save.read(name))[0] for name in NOTEBOOKS]
    assert len({cell.source for cell in first}) == 1


def test_what_depends_on_the_machine_is_not_compared():
    def texts(text, **metadata):
        output = nbformat.v4.new_output("stream", text=text)
        return save.texts(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output], metadata=metadata)])
        )

    assert texts("1,234 parameters,  98.33% right, error 1.5e-07\n") == ["1,234 parameters, #% right, error #"]
    assert texts("epoch 1\n   (scores waver)\n") == ["epoch 1"]
    assert texts("1,234 images/s, 2e-3 s", tags=["measured"]) == ["# images/s, # s"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_run_has_the_saved_outputs(name, tmp_path):
    saved = save.texts(save.read(name))
    notebook = save.run(save.read(name), tmp_path, patience.seconds(300))
    check(name, notebook)
    assert save.texts(notebook) == saved, f"save the new outputs by: python notebooks/save.py {name}"
