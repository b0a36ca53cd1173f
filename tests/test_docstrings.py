"""The examples in docstrings: they run as a user runs them, and print what stands there."""

import doctest
import importlib
from pathlib import Path

import pytest

import repmlp_jax

PACKAGE = Path(repmlp_jax.__file__).parent
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text()]
# What a user meets first. (Exports and files of PyTorch are shown on the pages, which run, too.)
MAIN = {
    *("RepMLP", "RepMLPNetBlock", "conv_to_fc", "create_model", "from_torch", "fuse_params", "fuse_report"),
    *("list_models", "load_model", "quantise_params", "register_model", "register_savable", "save_model"),
}


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
@pytest.mark.usefixtures("as_users_have_it")
def test_the_examples_print_what_stands_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed, "the difference is printed above"


def test_the_main_names_have_examples():
    assert not [name for name in MAIN if ">>> " not in getattr(repmlp_jax, name).__doc__]
