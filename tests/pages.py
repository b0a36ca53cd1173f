"""Does what the pages of the docs say, in a process of its own, so that JAX is as users have it.

    python tests/pages.py

reads names of pages from its input, a line each, and answers each by a line of JSON: what went wrong, or an empty
text. The rules, which a page can be written by:

- Code fenced as `python` is run, block after block of a page in one namespace and in one empty folder. A block that
  cannot be run here begins with the comment `# Not run here:`, which says why. A block fenced as `text` right behind it
  is what it prints, but for numbers and order.
- A line `$ repmlp-jax …`, indented or fenced as `console`, is run in its turn, in a second folder that has what the
  code has written by then. The lines below it are what it prints, but for numbers and order; where there are none it
  may print anything. Other commands are not run.
- What needs a package that is not installed is left out; EXTRAS says by which word it is recognised.
- What would send something over the network is done by the modules in `standins/`.
- Files that a page takes for granted are named in GIVEN.
"""

import atexit
import contextlib
import functools
import importlib.util
import io
import itertools
import json
import logging.handlers
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
STANDINS = Path(__file__).with_name("standins")
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
EXTRAS = {"onnx": "onnxruntime", ".pth": "torch", "eqx": "equinox", "fastapi": "fastapi"}
HAS_TORCH = importlib.util.find_spec("torch") is not None
GIVEN = {
    "README.md": ["runs/digits/model", "digit.png"] + ["RepMLPNet-T224.pth"] * HAS_TORCH,
    "docs/export.md": ["runs/digits/model", "runs/digits/fused", "t224"],
    "docs/quantisation.md": ["runs/digits/fused"],
    "docs/how_to/deploy.md": ["digits.zip", "digit.png", "runs/digits/fused"],
    "docs/how_to/fuse.md": ["runs/digits/model"],
    "docs/how_to/weights.md": ["RepMLPNet-T224.safetensors"],
}
# The model of configs/digits.py; and what stands here for RepMLPNet-T224, whose weights are not at hand.
DIGITS = dict(image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3))
T224 = dict(stage_sizes=(1, 1), widths=(4, 8), partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2))


class Step(NamedTuple):
    """Something that a page does.

    Attributes:
        line: where it begins in the page, from 0.
        code: Python code, or a command, which begins with `$`.
        shown: the lines that it prints according to the page.
    """

    line: int
    code: str
    shown: list[str]


def tokens(page: str) -> list:
    """A page, parsed."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def steps(page: str) -> list[Step]:
    """What a page does from top to bottom, less what needs packages that are not here."""
    found = []
    for token, after in itertools.zip_longest(parsed := tokens(page), parsed[1:]):
        if token.type == "fence" and token.info == "python" and not token.content.startswith("# Not run here:"):
            output = after.content if after and after.type == "fence" and after.info == "text" else ""
            found.append(Step(token.map[0] + 1, token.content, list(filter(str.strip, output.splitlines()))))
        if token.type == "code_block" or (token.type == "fence" and token.info == "console"):
            found += _commands(token)
    missing = [word for word, package in EXTRAS.items() if importlib.util.find_spec(package) is None]
    return [step for step in found if not any(word in step.code for word in missing)]


def _commands(token):
    shown = []
    for line in token.content.splitlines():
        if line.startswith("$ "):
            shown = []
        elif line.strip():
            shown.append(line)
        if line.startswith("$ repmlp-jax "):
            yield Step(token.map[0], line, shown)


def run_page(page: str, folder: Path):
    """Does all that a page does; raises if something fails or a command prints something else than is shown."""
    code_folder, command_folder = folder / "code", folder / "commands"
    code_folder.mkdir()
    for name in GIVEN.get(page, []):
        copy = shutil.copytree if _given(name).is_dir() else shutil.copy
        copy(_given(name), code_folder / name)
    module = sys.modules["page"] = types.ModuleType("page")
    for step in steps(page):
        if not step.code.startswith("$"):
            os.chdir(code_folder)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                # Line numbers in tracebacks are those of the page.
                exec(compile("\n" * step.line + step.code, page, "exec"), module.__dict__)
            _check_output(step, output.getvalue().splitlines(), output.getvalue())
        else:
            shutil.copytree(code_folder, command_folder, dirs_exist_ok=True)
            os.chdir(command_folder)
            _run_command(step)


def _run_command(step):
    from typer.testing import CliRunner

    import repmlp_jax.training  # noqa: F401 - libraries that keep the stderr of when they are imported
    from repmlp_jax.cli import app

    log = logging.handlers.BufferingHandler(1000)
    logging.getLogger("repmlp_jax").addHandler(log)
    result = CliRunner().invoke(app, shlex.split(step.code, comments=True)[2:])
    logging.getLogger("repmlp_jax").removeHandler(log)
    said = result.stdout + result.stderr
    assert result.exit_code == 0, f"{step.code}\n{said}"
    printed = [*result.stdout.splitlines(), *(record.getMessage() for record in log.buffer)]
    _check_output(step, printed, said)


def _check_output(step, printed, said):
    printed = [_without_numbers(line) for line in printed]
    for line in step.shown:
        assert _without_numbers(line) in printed, f"{step.code}\ndoes not print\n{line}\nbut\n{said}"


def _without_numbers(line):
    return re.sub(r"\d[\d,.]*", "0", " ".join(line.split()))


@functools.cache
def _given(name: str) -> Path:
    """Makes a file or folder that pages take for granted; weights are random."""
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FILES[name](path)
    return path


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def _model(name):
    from cases import abstract, randomised

    from repmlp_jax import PureMLP, RepMLPNet, fuse_params
    from repmlp_jax.models.registry import MODELS

    if name == "fused":
        return fuse_params(_model("digits"))
    MODELS["RepMLPNet-T224"] = (RepMLPNet, T224)
    model_class, arguments = {"digits": (PureMLP, DIGITS), "t224": (RepMLPNet, T224)}[name]
    return randomised(abstract(model_class, **arguments))


def _about_digits():
    from repmlp_jax.data import digits

    return dict(mean=digits.MEAN, std=digits.STD, class_names=digits.CLASS_NAMES)


def _save(name, path):
    from repmlp_jax import save_model

    save_model(path, _model(name), preprocessing={} if name == "t224" else _about_digits())


def _export(path):
    from repmlp_jax import export_model

    export_model(_model("fused"), path, preprocessing=_about_digits())


def _save_pickle(path):
    import torch

    from repmlp_jax import to_torch

    torch.save({key: torch.tensor(array) for key, array in to_torch(_model("t224")).items()}, path)


def _save_safetensors(path):
    from repmlp_jax import export_torch

    export_torch(_model("t224"), path)


def _draw_digit(path):
    import cv2

    from repmlp_jax.data import digits

    images, _ = digits.load_digits()["test"]
    cv2.imwrite(str(path), images[0])


# What pages can take for granted, and what makes it.
FILES = {
    "runs/digits/model": functools.partial(_save, "digits"),
    "runs/digits/fused": functools.partial(_save, "fused"),
    "t224": functools.partial(_save, "t224"),
    "RepMLPNet-T224.pth": _save_pickle,
    "RepMLPNet-T224.safetensors": _save_safetensors,
    "digit.png": _draw_digit,
    "digits.zip": _export,
}


def main():
    """Runs pages until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what pages print is not an answer
    sys.path.insert(0, str(STANDINS))
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_page(line.strip(), Path(folder))
                failure = ""
            except (Exception, SystemExit):
                failure = traceback.format_exc()
            os.chdir(ROOT)
        print(json.dumps(failure), file=answers, flush=True)


if __name__ == "__main__":
    main()
