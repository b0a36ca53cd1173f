"""The README and the docs: their code runs, their commands print what is shown, their links lead somewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, steps, tokens

import repmlp_jax
from repmlp_jax.cli import app, plot
from repmlp_jax.training import default_config

# Less than three seconds each.
QUICK = ["docs/faq.md"]


def param(page):
    return pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow)


@pytest.fixture(scope="module")
def runner():
    """The process in which pages are run, see `pages.py`."""
    # Nearly all of the time goes into compiling, and this halves it.
    environment = os.environ | dict(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    command = [sys.executable, Path(__file__).with_name("pages.py")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("page", [param(page) for page in PAGES if steps(page)])
def test_what_a_page_says_works(page, runner):
    print(page, file=runner.stdin, flush=True)
    answer = runner.stdout.readline()
    assert answer, f"the process that ran {page} ended"
    if failure := json.loads(answer):
        pytest.fail(failure, pytrace=False)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    inline = [child for token in tokens(page) for child in token.children or []]
    links = [token.attrs[name] for token in inline for name in ("href", "src") if name in token.attrs]
    files = [link.partition("#")[0] for link in links if "://" not in link]
    drawn = [ROOT / "docs" / "pictures" / name for name in pictures()] if page.startswith("docs/") else []
    missing = [file for file in files if not (folder / file).exists() and (folder / file).resolve() not in drawn]
    assert not missing


def pictures():
    """The names of the pictures that are drawn when the docs are built."""
    return list(module("pictures").PICTURES)


def module(name):
    """A module in the folder of the docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: repmlp_jax\.(?:\w+\.)*(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert not {name for name in repmlp_jax.__all__ if not name.startswith("__")} - set(shown)


def test_the_docs_describe_every_command():
    commands = [line for line in module("tables").commands().splitlines() if line.startswith("## ")]
    registered = [*app.registered_commands, *plot.registered_commands]
    assert len(commands) == len(registered)
    assert "## repmlp-jax plot kernels" in commands


def test_the_docs_describe_every_field_of_a_recipe():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", module("tables").fields(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(default_config())


def test_the_picture_of_speeds_shows_the_results_that_the_page_names():
    pictures = module("pictures")
    drawn = {
        axes.get_title(): sorted(round(bar.get_width(), 6) for bar in axes.patches)
        for axes in pictures.inference().axes
    }
    for file in ("inference", "inference_resnets"):
        for name, batches in pictures.results(file).items():
            for batch, rows in batches.items() if isinstance(batches, dict) else ():
                if not batch.startswith("batch") or (file == "inference" and "Res50" in name):
                    continue
                count = int(batch.split()[1])
                speeds = sorted(round(count / row["median"], 6) for row in rows["seconds"].values())
                assert drawn[f"{name}\n{batch}"] == speeds


def test_no_share_in_the_roofline_is_above_the_whole():
    legends = [axes.get_legend() for axes in module("pictures").roofline().axes]
    for legend in legends:
        shares = [int(re.search(r"(\d+)%", text.get_text())[1]) for text in legend.get_texts()]
        assert 97 <= sum(shares) <= 103  # rounded


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_code_fits_beside_the_menus_of_the_site(page):
    code = [token for token in tokens(page) if token.type == "fence" and token.info == "python"]
    assert not [line for token in code for line in token.content.splitlines() if len(line) > 88]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/performance")])
def test_tables_of_speeds_have_at_most_six_columns(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    assert all(row.count("|") <= 7 for row in rows)
