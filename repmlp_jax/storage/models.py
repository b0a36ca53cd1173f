"""Saved models: a folder that holds the model's class, arguments and weights, so that it can be rebuilt."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.fuse import check_concrete, check_module, fuse_params
from repmlp_jax.listing import listed
from repmlp_jax.local_path import local_path
from repmlp_jax.models.arguments import arguments_from_text
from repmlp_jax.models.precision import check_precision
from repmlp_jax.models.randomness import abstract
from repmlp_jax.models.registry import MODELS
from repmlp_jax.models.state import arrays_of, load_state
from repmlp_jax.quantisation.quantise import quantisation, quantise_params
from repmlp_jax.storage import earlier_formats
from repmlp_jax.storage.digest import describe, digests
from repmlp_jax.storage.preprocessing import check_preprocessing_of
from repmlp_jax.storage.whole_folder import put_back, whole_folder
from repmlp_jax.version import versions

FORMAT = 3
DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
SHARED = {"format", "model", "arguments", "fused", "preprocessing", "arrays", "versions"}
# Format → its entries: format 1 has a digest of every array, later ones have one of the file of weights.
CONTENTS = {1: SHARED | {"digests"}, 2: SHARED | {"weights_sha256"}, 3: SHARED | {"weights_sha256"}}


def save_model(path: str | Path, model: nnx.Module, *, preprocessing: dict | None = None, overwrite: bool = False):
    """Saves a trained, fused or quantised model of `list_models()` in a folder that `load_model` reads.

    The folder is written as a whole: a process that is killed while it replaces a model leaves the old one or the new
    one, which the next `save_model` or `load_model` puts back to `path` where necessary. What the killed process had
    written, `<path>.partial.*`, is removed by the next `save_model` to `path` on the same machine.

    Args:
        path: the folder; missing parents are created.
        model: the model, as its class, `fuse_params` or `quantise_params` returned it, with finite weights.
        preprocessing: saved as JSON with the model: mean and std of the channels, class names, see
            `check_preprocessing`.
        overwrite: replace the folder if it is empty, or `save_model` wrote it and nothing was added. Anything else,
            a link included, is never replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off, or is nothing that may be replaced.
        TypeError: if the model is not one of `list_models()`, or its modules were changed after it was built; as
            `check_preprocessing`.
        ValueError: if weights or statistics are NaN or infinite, the preprocessing does not fit the model, or `path` is
            no path of this machine.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import create_model, fuse_params, load_model, save_model
        >>> small = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
        >>> model = create_model("pure_mlp", **small, rngs=nnx.Rngs(0))
        >>> save_model("fused", fuse_params(model))
        >>> load_model("fused").input_shape
        (8, 8, 3)
    """
    path = local_path(path).absolute()
    put_back(path)
    check_may_write(path, overwrite)
    check_module(model, "save_model")
    check_concrete(model, "save_model")
    is_fused, arrays = _is_fused(model), arrays_of(model)
    check_finite(arrays, f"this {type(model).__name__}")
    description = {
        "format": FORMAT,
        "model": type(model).__name__,
        "arguments": json.loads(getattr(model, "arguments", "{}")),
        "fused": is_fused,
        "quantised": quantisation(model),
        "preprocessing": preprocessing or {},
        "arrays": describe(arrays),
        "versions": versions(),
    }
    check_preprocessing_of(model, preprocessing)
    with whole_folder(path, lambda: check_may_write(path, overwrite)) as folder:
        save_file({name: np.asarray(array) for name, array in arrays.items()}, folder / WEIGHTS)
        description["weights_sha256"] = _sha256(folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(description | {"sha256": _seal(description)}, indent=1))
        shutil.copymode(folder / DESCRIPTION, folder / WEIGHTS)  # safetensors lets nobody else read its files.


def load_model(path: str | Path) -> nnx.Module:
    """Reads a model that `save_model` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no saved model.
        ValueError: if it is damaged, of a newer format or a class that is not registered, holds weights that are NaN or
            infinite, or needs 64 bits, which JAX has turned off.

    Examples:
        >>> from repmlp_jax import load_model
        >>> load_model("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: .../nowhere holds no model.json: it is no folder that save_model wrote
    """
    return load(path).model


class SavedModel(NamedTuple):
    """A saved model and its preprocessing.

    Attributes:
        model: in evaluation mode.
        preprocessing: as passed to `save_model`: mean and std of the channels, class names.
    """

    model: nnx.Module
    preprocessing: dict


def load(path: str | Path) -> SavedModel:
    """Reads a model and its preprocessing; raises as `load_model` does."""
    path = local_path(path).absolute()
    while True:
        put_back(path)
        before = _identity(path)
        try:
            return _load(path)
        except (ValueError, FileNotFoundError):
            # A model that is replaced meanwhile is read from its beginning.
            if before == _identity(path):
                raise


def _identity(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _load(path: Path) -> SavedModel:
    description = _read_description(path)
    model_class = _model_classes()[description["model"]]
    described = [array.partition("[")[0] for array in description["arrays"].values()]
    check_precision([*described, description["arguments"].get("dtype")], f"the model in {path}")
    try:
        abstract = _abstract(
            model_class, json.dumps(description["arguments"]), description["fused"], description.get("quantised")
        )
    except Exception as error:
        raise ValueError(f"{path} is damaged: {description['model']} does not take its arguments ({error})") from error
    wanted = arrays_of(abstract)
    is_earlier = description["format"] in earlier_formats.MODELS
    expected = earlier_formats.as_stored(wanted, description["arrays"]) if is_earlier else wanted
    if describe(expected) != description["arrays"]:
        raise ValueError(f"{path} is damaged: its arrays are not those of the {description['model']} that it names")
    if not (path / WEIGHTS).is_file():  # a pipe might never end
        raise ValueError(f"{path} is damaged: its weights cannot be read (there is no file {WEIGHTS})")
    try:
        arrays = {name: jnp.asarray(array) for name, array in load_file(path / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: its weights cannot be read ({error})") from error
    if description["format"] == 1:
        found = digests(arrays)
        changed = [name for name, digest in description["digests"].items() if digest != found.get(name)]
    else:
        changed = [] if _sha256(path / WEIGHTS) == description["weights_sha256"] else [WEIGHTS]
    if changed or describe(arrays) != description["arrays"]:
        raise ValueError(f"{path} is damaged: {listed(changed) or WEIGHTS} does not hold what was saved")
    check_finite(arrays, str(path))
    if is_earlier:
        arrays = {name: array.reshape(wanted[name].shape) for name, array in arrays.items()}
    model = load_state(abstract, arrays, str(path))
    model.eval()
    return SavedModel(model, description["preprocessing"])


def check_may_write(path: Path, overwrite: bool):
    """Refuses what `save_model` would not write to; raises FileExistsError as it does."""
    if not os.path.lexists(path):
        return
    if found := _not_ours(path):
        raise FileExistsError(
            f"{path} {found}: save_model replaces only an empty folder, or one that it wrote; choose another path"
        )
    if not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")


def _not_ours(path: Path) -> str:
    """What is at a path, in words, if `save_model` did not write it; an empty folder counts as written by it."""
    if path.is_symlink():
        return f"is a link to {path.readlink()}"
    if not path.is_dir():
        return "is a file"
    if path.samefile("."):
        return "is the current folder"
    found = sorted(child.name for child in path.iterdir())
    others = [name for name in found if name not in (DESCRIPTION, WEIGHTS) or not (path / name).is_file()]
    if others:
        return f"holds {listed(others, shown=3)}"
    try:
        ours = not found or {"format", "sha256"} <= dict(json.loads((path / DESCRIPTION).read_bytes())).keys()
    except (OSError, ValueError, TypeError):
        ours = False
    return "" if ours else f"holds {' and '.join(found)}, which save_model did not write"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(description: dict) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _read_description(path):
    if not (path / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{path} holds no {DESCRIPTION}: it is no folder that save_model wrote")
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        found = description["format"], description["model"]
        if found[0] in CONTENTS:
            if missing := CONTENTS[found[0]] - set(description):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if description.pop("sha256") != _seal(description):
                raise ValueError("its digest is wrong")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {DESCRIPTION} cannot be read ({error})") from error
    if found[0] not in CONTENTS:
        raise ValueError(f"{path} holds a {found[1]} of format {found[0]}; this version reads formats 1 to {FORMAT}")
    if found[1] not in _model_classes():
        raise ValueError(
            f"{path} holds a {found[1]}, and no class of this name is registered: import {found[1]} and set "
            f'repmlp_jax.models.registry.MODELS["a name"] = ({found[1]}, {{}}) before it is loaded'
        )
    return description


def _model_classes():
    return {model_class.__name__: model_class for model_class, _ in MODELS.values()}


def _abstract(model_class, arguments_text, fused, quantised):
    def build(rngs):
        model = model_class(**arguments_from_text(arguments_text), rngs=rngs)
        model = fuse_params(model) if fused else model
        return quantise_params(model, **quantised) if quantised else model

    return abstract(build)


def _is_fused(model) -> bool:
    model_class = _model_classes().get(type(model).__name__)
    if model_class is not type(model):
        raise TypeError(f"save_model takes models of list_models(), and a {type(model).__name__} is not one of them")
    found, quantised = _modules_and_arrays(model), quantisation(model)
    for fused in (True,) if quantised else (False, True):
        if found == _modules_and_arrays(_abstract(model_class, model.arguments, fused, quantised)):
            return fused
    raise TypeError(f"the modules of this {type(model).__name__} were changed since it was built: it cannot be saved")


def _modules_and_arrays(model):
    """The class of every module, since another may have the same arrays, and a description of the arrays."""
    modules = {path: type(node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)}
    return modules, describe(arrays_of(model))
