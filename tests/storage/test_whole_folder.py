"""Folders and files that are replaced as a whole, by processes that are killed at any instant."""

import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from repmlp_jax.storage.partial import partial_path
from repmlp_jax.storage.whole_file import whole_file
from repmlp_jax.storage.whole_folder import put_back, whole_folder

KILLS = 8
REPOSITORY = Path(__file__).parents[2]
CALLS = "mkdir", "rename", "replace", "rmdir", "unlink", "fsync"


class Killed(BaseException):
    """The process does nothing more, nor does it clean up."""


@pytest.fixture
def kill_at(monkeypatch):
    """Kills this process, as far as the disk can tell, before its call of the given number to change the disk."""

    def kill(instant):
        calls = itertools.count()

        def mortal(real):
            def call(*arguments, **options):
                if next(calls) >= instant:
                    raise Killed
                return real(*arguments, **options)

            return call

        for name in CALLS:
            monkeypatch.setattr(os, name, mortal(getattr(os, name)))

    return kill


def write_folder(path, text):
    with whole_folder(path, lambda: None) as folder:
        (folder / "one").write_text(text)
        (folder / "two").write_text(text)


def write_file(path, text):
    with whole_file(path, overwrite=True) as file:
        file.write_text(text)


def content(path):
    """The text at a path: that of a folder's files, which have to be two of one writing."""
    if not path.is_dir():
        return path.read_text()
    one, two = sorted(path.iterdir())
    assert one.read_text() == two.read_text()
    return one.read_text()


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_killed_at_any_instant_the_old_or_the_new_one_is_whole(tmp_path, monkeypatch, kill_at, write):
    found = []
    for instant in itertools.count():
        path = tmp_path / str(instant) / "saved"
        write(path, "old")
        kill_at(instant)
        try:
            write(path, "new")
            killed = False
        except Killed:
            killed = True
        monkeypatch.undo()
        missing = not path.exists()
        put_back(path)
        found.append((content(path), missing))
        write(path, "next")
        assert content(path) == "next"
        assert [child.name for child in path.parent.iterdir()] == ["saved"]
        if not killed:
            break
    texts = [text for text, _ in found]
    assert texts == sorted(texts, key=["old", "new"].index)
    assert set(texts) == {"old", "new"}
    # No system call replaces a folder that is not empty, so there are instants at which it has to be put back.
    assert any(missing for _, missing in found) == (write is write_folder)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_the_old_or_the_new_folder(tmp_path):
    program = """
import itertools, sys
from pathlib import Path
from repmlp_jax.storage.whole_folder import put_back, whole_folder

path = Path(sys.argv[1])
put_back(path)
for number in itertools.count(int(sys.argv[2])):
    with whole_folder(path, lambda: None) as folder:
        (folder / "one").write_text(str(number))
        (folder / "two").write_text(str(number))
    print(number, flush=True)
"""
    path, last = tmp_path / "saved", 0
    for kill in range(KILLS):
        command = [sys.executable, "-c", program, str(path), str(last + 1)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        first = int(process.stdout.readline())
        time.sleep(0.0037 * kill)
        process.kill()
        process.wait()
        last = max([first, *map(int, process.stdout)])
        put_back(path)
        assert int(content(path)) in (last, last + 1)
        assert len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_a_write_that_fails_leaves_the_old_one_alone(tmp_path, monkeypatch, write):
    write(tmp_path / "saved", "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "saved", "new")
    assert content(tmp_path / "saved") == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["saved"]


def test_a_reader_may_put_the_old_folder_back_while_it_is_being_replaced(tmp_path, monkeypatch):
    path = tmp_path / "saved"
    write_folder(path, "old")
    rename, seen = os.rename, []

    def interrupted(source, target):
        if target == path and not seen:
            seen.append(source)
            put_back(path)
            assert content(path) == "old"
        return rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    write_folder(path, "new")
    assert seen
    assert content(path) == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["saved"]


def test_a_write_puts_the_old_folder_back_before_it_clears_what_is_left(tmp_path):
    path = tmp_path / "saved"
    partial = tmp_path / f"saved.partial.01234567.{os.getpid()}.{socket.gethostname()}"
    write_folder(partial / "replaced", "old")
    write_folder(partial / "new", "new")
    with pytest.raises(KeyboardInterrupt), whole_folder(path, lambda: None):
        raise KeyboardInterrupt
    assert content(path) == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_was_removed_after_it_was_replaced_does_not_come_back(tmp_path, monkeypatch):
    path = tmp_path / "saved"
    write_folder(path, "old")
    monkeypatch.setattr("repmlp_jax.storage.partial._remove", lambda path: None)
    write_folder(path, "new")
    assert len(list(tmp_path.glob("saved.partial.*/replaced"))) == 1
    path.rename(tmp_path / "elsewhere")
    put_back(path)
    assert not path.exists()


def test_only_what_processes_that_have_ended_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, path = socket.gethostname(), tmp_path / "saved"
    running = [f"saved.partial.01234567.{os.getppid()}.{here}", "saved.partial.01234567.1.another-host"]
    others = [f"{name}.{ended.pid}.{here}" for name in ("saved.partial.notes", "unsaved.partial.01234567")]
    left = [f"saved.partial.01234567.{number}.{here}" for number in (ended.pid, os.getpid())]
    for name in (*running, *others, *left):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f"saved.partial.89abcdef.{ended.pid}.{here}").touch()
    with partial_path(path) as writing:
        writing.mkdir()
        write_file(path, "new")  # as another thread of this process
        assert writing.exists()
    assert {child.name for child in tmp_path.iterdir()} == {"saved", *running, *others}


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_written_has_the_rights_that_the_umask_gives(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "parent" / "folder", "new")
        with whole_file(tmp_path / "file", overwrite=False) as partial:
            save_file({"x": np.zeros(1)}, partial)  # safetensors asks for 0600
    finally:
        os.umask(before)

    def rights(path):
        return path.stat().st_mode & 0o777

    assert rights(tmp_path / "file") == rights(tmp_path / "parent" / "folder" / "one") == file
    assert rights(tmp_path / "parent") == rights(tmp_path / "parent" / "folder") == folder


def test_a_file_replaces_no_folder_device_or_link_unasked(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, overwrite, error, message in [
        ("folder", True, IsADirectoryError, "is a folder; choose the path of a file"),
        ("pipe", True, FileExistsError, "is a device, pipe or socket; choose the path of a file"),
        ("link", False, FileExistsError, "link exists; pass overwrite=True to replace it"),
    ]:
        with pytest.raises(error, match=message), whole_file(tmp_path / name, overwrite):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"^{tmp_path} is not writable"), whole_file(tmp_path / "file", False):
        pass
    assert not list(tmp_path.iterdir())
