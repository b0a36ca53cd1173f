"""What is in the wheel: the package as it lies in the tree, whole, and nothing else.

That it runs in an environment of its own takes minutes to see, most of them to install JAX and the rest:

    python -m pip wheel --no-deps --wheel-dir dist . && python -m venv empty && empty/bin/pip install dist/*.whl
    empty/bin/repmlp-jax list
"""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from repmlp_jax import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools leaves folders in the tree that it builds from."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "repmlp_jax", source / "repmlp_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata_of(wheel):
    return wheel.read(f"repmlp_jax-{__version__}.dist-info/METADATA").decode()


def test_it_holds_the_package_whole_and_no_test(wheel):
    package = {path for path in (ROOT / "repmlp_jax").rglob("*") if path.suffix in (".py", ".typed")}
    expected = {str(path.relative_to(ROOT)) for path in package}
    assert "repmlp_jax/py.typed" in expected
    assert "repmlp_jax/tasks/classification.py" in expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_it_is_for_any_machine(wheel):
    assert Path(wheel.filename).name == f"repmlp_jax-{__version__}-py3-none-any.whl"


def test_it_says_what_it_needs_and_brings_its_command_and_licence(wheel):
    needed = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata_of(wheel), re.MULTILINE)
    assert sorted(needed) == sorted(PROJECT["dependencies"])
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata_of(wheel)
    info = f"repmlp_jax-{__version__}.dist-info"
    assert b"repmlp-jax = repmlp_jax.cli:main" in wheel.read(f"{info}/entry_points.txt")
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
