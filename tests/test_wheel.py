"""What is in the wheel and in the source distribution, and what an index shows of them.

That the wheel runs in an environment of its own takes minutes to see, most of them to install JAX and the rest:

    python -m pip wheel --no-deps --wheel-dir dist . && python -m venv empty && empty/bin/pip install dist/*.whl
    empty/bin/repmlp-jax list
"""

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from repmlp_jax import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = "https://github.com/someone/repmlp_jax"
# What is in the repository beside the package.
BESIDE = (".ci", ".github", "benchmarks", "configs", "docs", "notebooks", "tests")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and a source distribution, built from a copy that knows where its repository is."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in ("repmlp_jax", *BESIDE):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "built"))
    for path in [*ROOT.glob("*.*"), ROOT / ".gitignore", ROOT / "LICENSE"]:
        if path.is_file():
            shutil.copy(path, source)
    (source / "runs").mkdir()
    (source / "runs" / "mine.csv").write_text("mine")
    settings = (ROOT / "pyproject.toml").read_text()
    address = re.compile('^repository = ".*"$', re.MULTILINE)
    assert address.search(settings)
    (source / "pyproject.toml").write_text(address.sub(f'repository = "{REPOSITORY}"', settings))
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=source, check=True)
    return folder


@pytest.fixture
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata_of(wheel):
    return wheel.read(f"repmlp_jax-{__version__}.dist-info/METADATA").decode()


def test_the_wheel_holds_the_package_whole_the_recipes_and_no_test(wheel):
    package = {path for path in (ROOT / "repmlp_jax").rglob("*") if path.suffix in (".py", ".typed")}
    expected = {str(path.relative_to(ROOT)) for path in package}
    assert "repmlp_jax/py.typed" in expected
    assert "repmlp_jax/tasks/classification.py" in expected
    expected |= {f"repmlp_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_finds_its_recipes(wheel, tmp_path):
    wheel.extractall(tmp_path)
    program = "from repmlp_jax.training.recipe_file import recipes; print(*recipes().values(), sep=chr(10))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert f"{tmp_path}/repmlp_jax/configs/digits.py" in done.stdout.splitlines(), done.stderr


def test_the_wheel_is_for_any_machine(wheel):
    assert Path(wheel.filename).name == f"repmlp_jax-{__version__}-py3-none-any.whl"


def test_the_wheel_says_what_it_needs_and_brings_its_command_and_licence(wheel):
    needed = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata_of(wheel), re.MULTILINE)
    assert sorted(needed) == sorted(PROJECT["dependencies"])
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata_of(wheel)
    info = f"repmlp_jax-{__version__}.dist-info"
    assert b"repmlp-jax = repmlp_jax.cli:main" in wheel.read(f"{info}/entry_points.txt")
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_an_index_shows_links_to_the_repository(wheel):
    shown = metadata_of(wheel)
    assert f"Project-URL: Repository, {REPOSITORY}\n" in shown
    assert "Project-URL: Documentation, https://someone.github.io/repmlp_jax/\n" in shown
    assert f"]({REPOSITORY}/raw/HEAD/docs/kernels.png)" in shown
    assert f"]({REPOSITORY}/blob/HEAD/CONTRIBUTING.md)" in shown
    assert "OWNER" not in shown
    _, _, readme = shown.partition("\n\n")
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", readme) == []


def test_the_source_distribution_holds_what_the_tests_need_and_nothing_of_yours(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kinds = ("*.py", "*.md", "*.json", "*.zip", "*.ipynb", "*.png", "*.yml", "constrain*", "run")
    needed = {path for folder in BESIDE for kind in kinds for path in (ROOT / folder).rglob(kind)}
    needed = {str(path.relative_to(ROOT)) for path in needed if "built" not in path.parts}
    needed |= {"train.py", "README.md", "CHANGELOG.md", "mkdocs.yml", "requirements.txt", ".pre-commit-config.yaml"}
    assert needed - names == set()
    assert not [name for name in names if name.startswith("runs") or "__pycache__" in name]


def test_the_docs_have_the_addresses_of_the_metadata(wheel, tmp_path, monkeypatch):
    config = pytest.importorskip("mkdocs.config.defaults", reason="needs the extra [docs]").MkDocsConfig()
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks = importlib.import_module("hooks")
    settings = '[tool.hatch.metadata.hooks.custom]\nrepository = "{}"'
    config.docs_dir = str(tmp_path / "docs")
    (tmp_path / "pyproject.toml").write_text(settings.format(""))
    assert hooks.on_config(config).repo_url is None
    (tmp_path / "pyproject.toml").write_text(settings.format(REPOSITORY))
    hooks.on_config(config)
    assert f"Project-URL: Repository, {config.repo_url}\n" in metadata_of(wheel)
    assert f"Project-URL: Documentation, {config.site_url}\n" in metadata_of(wheel)
