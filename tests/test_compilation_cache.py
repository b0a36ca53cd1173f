"""Compiled programs on disk: where programs keep them, and that the library sets nothing."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from cases import abstract, randomised
from test_cli import run

from repmlp_jax import PureMLP, save_model
from repmlp_jax.compilation_cache import cache_folder, keep_compiled_programs

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")


@pytest.fixture
def settings(monkeypatch):
    """JAX's settings as in a fresh process; nothing is compiled meanwhile."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    for name, value in zip(SETTINGS, (None, 1.0, True), strict=True):
        jax.config.update(name, value)
    yield lambda: tuple(getattr(jax.config, name) for name in SETTINGS)
    for name, value in before.items():
        jax.config.update(name, value)


def test_they_are_kept_in_the_users_cache_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / ".cache"
    for base, expected in ((tmp_path / "x", tmp_path / "x"), ("relative", default), ("", default)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        assert cache_folder() == expected / "repmlp_jax" / "compiled"
    keep_compiled_programs()
    assert settings() == (str(default / "repmlp_jax" / "compiled"), 0, True)


@pytest.mark.parametrize("by", ["variable", "empty variable", "setting"])
def test_what_is_already_set_stays(settings, monkeypatch, tmp_path, by):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if by == "setting":
        jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    else:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere" if by == "variable" else "")
    before = settings()
    keep_compiled_programs()
    assert settings() == before


def test_a_folder_that_cannot_be_written_is_left_alone(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    keep_compiled_programs()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a file system that is read-only
    keep_compiled_programs()
    assert settings() == (None, 1.0, True)


def test_the_command_line_keeps_none_if_told_so(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run("--no-cache", "list", "none of them").exit_code == 2
    assert settings() == (None, 1.0, False)
    jax.config.update("jax_enable_compilation_cache", True)
    run("list", "none of them")
    assert settings()[0] == str(tmp_path / "repmlp_jax" / "compiled")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_start_reads_them_and_says_nothing_of_damaged_ones(tmp_path):
    sizes = dict(image_size=(8, 8), in_features=1, widths=(8,), partition_size=(4, 4), conv_kernels=(1,))
    save_model(tmp_path / "model", randomised(abstract(PureMLP, **sizes)), preprocessing=dict(mean=(0.3,), std=(0.4,)))
    picture = Path(__file__).parents[1] / "docs" / "kernels.png"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def predict(*options):
        command = [sys.executable, "-m", "repmlp_jax", *options, "predict", str(tmp_path / "model"), str(picture)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return result.stdout

    def kept():
        return {path: path.stat().st_size for path in (tmp_path / "cache").rglob("*-cache")}

    expected = predict("--no-cache")
    assert not kept()
    assert predict() == expected
    files = kept()
    assert files
    # As a program leaves it that is killed while it writes.
    for path, size in files.items():
        os.truncate(path, size // 2)
    assert predict() == expected
    assert set(kept()) == set(files)


@pytest.mark.slow
def test_an_import_of_the_library_sets_nothing():
    code = "import jax, repmlp_jax.cli, repmlp_jax.training.loop, repmlp_jax.tasks.repeat, repmlp_jax.compilation_cache"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    command = [sys.executable, "-c", f"{code}; print(jax.config.jax_compilation_cache_dir)"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["None"]
