"""Saved models: a folder that holds the model's class, arguments and weights, so that it can be rebuilt."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from repmlp_jax.fusing.fuse import fuse_params
from repmlp_jax.models.arguments import arguments_from_text
from repmlp_jax.models.registry import MODELS
from repmlp_jax.models.state import arrays_of, load_state
from repmlp_jax.quantisation.quantise import quantisation, quantise_params
from repmlp_jax.storage.digest import describe, digests
from repmlp_jax.version import versions

FORMAT = 2
DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
SHARED = {"format", "model", "arguments", "fused", "preprocessing", "arrays", "versions"}
# Format → its entries: format 1 has a digest of every array, format 2 one of the file of weights.
CONTENTS = {1: SHARED | {"digests"}, 2: SHARED | {"weights_sha256"}}


def save_model(path: str | Path, model: nnx.Module, *, preprocessing: dict | None = None, overwrite: bool = False):
    """Saves a trained, fused or quantised model of `list_models()` in a folder that `load_model` reads.

    The folder is written atomically.

    Args:
        path: the folder; missing parents are created.
        model: the model, as its class, `fuse_params` or `quantise_params` returned it, with any weights.
        preprocessing: saved as JSON with the model: mean and std of the channels, class names.
        overwrite: replace the folder if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        TypeError: if the model is not one of `list_models()`, or its modules were changed after it was built.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import create_model, fuse_params, load_model, save_model
        >>> small = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
        >>> model = create_model("pure_mlp", **small, rngs=nnx.Rngs(0))
        >>> save_model("fused", fuse_params(model))
        >>> load_model("fused").input_shape
        (8, 8, 3)
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    arrays = arrays_of(model)
    description = {
        "format": FORMAT,
        "model": type(model).__name__,
        "arguments": json.loads(getattr(model, "arguments", "{}")),
        "fused": _is_fused(model),
        "quantised": quantisation(model),
        "preprocessing": preprocessing or {},
        "arrays": describe(arrays),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.partial.", dir=path.parent))
    try:
        save_file({name: np.asarray(array) for name, array in arrays.items()}, partial / WEIGHTS)
        description["weights_sha256"] = _sha256(partial / WEIGHTS)
        (partial / DESCRIPTION).write_text(json.dumps(description | {"sha256": _seal(description)}, indent=1))
        partial.chmod(0o755)
        replaced = partial / "replaced"
        if path.exists():
            path.rename(replaced)
        try:
            partial.rename(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(path / "replaced", ignore_errors=True)


def load_model(path: str | Path) -> nnx.Module:
    """Reads a model that `save_model` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no saved model.
        ValueError: if it is damaged, or of a newer format.

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
    path = Path(path).absolute()
    description = _read_description(path)
    model_class = _model_classes()[description["model"]]
    try:
        abstract = _abstract(
            model_class, json.dumps(description["arguments"]), description["fused"], description.get("quantised")
        )
    except Exception as error:
        raise ValueError(f"{path} is damaged: {description['model']} does not take its arguments ({error})") from error
    if describe(arrays_of(abstract)) != description["arrays"]:
        raise ValueError(f"{path} is damaged: its arrays are not those of the {description['model']} that it names")
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
        raise ValueError(f"{path} is damaged: {', '.join(changed[:5]) or WEIGHTS} does not hold what was saved")
    model = load_state(abstract, arrays, str(path))
    model.eval()
    return SavedModel(model, description["preprocessing"])


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
    if found[0] not in CONTENTS or found[1] not in _model_classes():
        raise ValueError(f"{path} holds a {found[1]} of format {found[0]}; this version reads formats 1 to {FORMAT}")
    return description


def _model_classes():
    return {model_class.__name__: model_class for model_class, _ in MODELS.values()}


def _abstract(model_class, arguments_text, fused, quantised):
    def build():
        model = model_class(**arguments_from_text(arguments_text), rngs=nnx.Rngs(0))
        model = fuse_params(model) if fused else model
        return quantise_params(model, **quantised) if quantised else model

    return nnx.eval_shape(build)


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
