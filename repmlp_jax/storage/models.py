"""Saved models: a folder or file that holds the model's class, arguments and weights, so that it can be rebuilt."""

import hashlib
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.folding import transformed_abstractly
from repmlp_jax.fusing.fuse import check_concrete, check_module, fusable_modules, fuse_params
from repmlp_jax.listing import listed
from repmlp_jax.local_path import local_path
from repmlp_jax.models.arguments import NotSavable, arguments_from_text
from repmlp_jax.models.precision import check_precision
from repmlp_jax.models.randomness import abstract
from repmlp_jax.models.registry import registered_classes
from repmlp_jax.models.state import arrays_of, load_state
from repmlp_jax.quantisation.quantise import is_quantised, quantise_params
from repmlp_jax.storage import earlier_formats, hub, one_file
from repmlp_jax.storage.digest import describe, digests
from repmlp_jax.storage.folding import arguments_of_folding, folding_of
from repmlp_jax.storage.outline import differences
from repmlp_jax.storage.preprocessing import check_preprocessing_of
from repmlp_jax.storage.whole_file import whole_file
from repmlp_jax.storage.whole_folder import is_folder, put_back, whole_folder
from repmlp_jax.version import versions

logger = logging.getLogger("repmlp_jax")

FORMAT = 3
FORMATS = range(1, FORMAT + 1)
DESCRIPTION = "model.json"
WEIGHTS = "weights.safetensors"
SHARED = {"format", "model", "arguments", "fused", "preprocessing", "arrays", "versions"}
DIGESTS, DIGEST = "digests", "weights_sha256"  # of every array, in format 1 and in single files; of the file of weights


def save_model(path: str | Path, model: nnx.Module, *, preprocessing: dict | None = None, overwrite: bool = False):
    """Saves a trained, fused or quantised model of a registered class in a folder or file that `load_model` reads.

    All classes of `list_models()` are registered, and yours once `register_model` or `register_savable` got them.

    The folder is written as a whole: a process that is killed while it replaces a model leaves the old one or the new
    one, which the next `save_model` or `load_model` puts back to `path` where necessary. What the killed process had
    written, `<path>.partial.*`, is removed by the next `save_model` to `path` on the same machine.

    A path that ends in `.safetensors` becomes one file instead, with the arrays under their paths in the model, and the
    rest in its metadata.

    Args:
        path: the folder or `.safetensors` file; missing parents are created.
        model: the model, as its class, `fuse_params` or `quantise_params` returned it, with finite weights.
        preprocessing: saved as JSON with the model: mean and std of the channels, class names, see
            `check_preprocessing`.
        overwrite: replace the folder if it is empty, or `save_model` wrote it and nothing was added, and the file if
            `save_model` wrote it. Anything else, a link included, is never replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off, or is nothing that may be replaced.
        TypeError: if the class of the model is not registered, an argument that it was built with, or `call` or `only`
            of `fuse_params`, is nothing that a file can hold, or its modules, their numbers, flags and strings, or the
            shapes of its arrays were changed after it was built; as `check_preprocessing`.
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
    making, arrays = _making(model), arrays_of(model)
    check_finite(arrays, f"this {type(model).__name__}")
    description = {
        "format": FORMAT,
        **making,
        "preprocessing": preprocessing or {},
        "arrays": describe(arrays),
        "versions": versions(),
    }
    check_preprocessing_of(model, preprocessing)
    numbers = {name: np.asarray(array) for name, array in arrays.items()}
    if path.suffix == one_file.SUFFIX:
        with whole_file(path, overwrite) as partial:
            one_file.write(partial, numbers, _sealed(description | {DIGESTS: digests(arrays)}))
        return
    with whole_folder(path, lambda: check_may_write(path, overwrite)) as folder:
        save_file(numbers, folder / WEIGHTS)
        sealed = _sealed(description | {DIGEST: _sha256(folder / WEIGHTS)})
        (folder / DESCRIPTION).write_text(json.dumps(sealed, indent=1))
        shutil.copymode(folder / DESCRIPTION, folder / WEIGHTS)  # safetensors lets nobody else read its files.


def load_model(path: str | Path) -> nnx.Module:
    """Reads a model that `save_model` wrote, in evaluation mode.

    Args:
        path: its folder or file, or `hf://OWNER/NAME` for a model on the Hugging Face hub, with `@REVISION` for a
            branch, tag or commit.

    Raises:
        ImportError, OSError: for the hub, as `hub.asking`.
        FileNotFoundError: if there is no such folder or file, or the folder holds no saved model.
        ValueError: if it is damaged or another file, of a newer format or a class that is not registered, holds weights
            that are NaN or infinite, or needs 64 bits, which JAX has turned off.

    Examples:
        >>> from repmlp_jax import load_model
        >>> load_model("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: there is no folder or file .../nowhere
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
    path = model_path(path).absolute()
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
    model_class = registered_classes()[description["model"]]
    described = [array.partition("[")[0] for array in description["arrays"].values()]
    check_precision([*described, description["arguments"].get("dtype")], f"the model in {path}")
    misfit = f"{path} is damaged, or its {description['model']} is another than {model_class.__module__} has now"
    try:
        abstract = _abstract(model_class, description)
    except Exception as error:
        raise ValueError(f"{misfit}: this does not take its arguments ({error})") from error
    if (description.get("quantised") or {}).get("activations"):
        logger.warning("%s multiplied in int8 when it was saved: now only its weights are in int8", path)
    wanted = arrays_of(abstract)
    is_earlier = description["format"] in earlier_formats.MODELS
    expected = earlier_formats.as_stored(wanted, description["arrays"]) if is_earlier else wanted
    if describe(expected) != description["arrays"]:
        raise ValueError(f"{misfit}: the arrays of the two differ")
    file = path if path.is_file() else path / WEIGHTS
    if not file.is_file():  # a pipe might never end
        raise ValueError(f"{path} is damaged: its weights cannot be read (there is no file {WEIGHTS})")
    try:
        arrays = {name: jnp.asarray(array) for name, array in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: its weights cannot be read ({error})") from error
    if DIGESTS in description:
        found = digests(arrays)
        changed = [name for name, digest in description[DIGESTS].items() if digest != found.get(name)]
    else:
        changed = [] if _sha256(file) == description[DIGEST] else [WEIGHTS]
    if changed or describe(arrays) != description["arrays"]:
        raise ValueError(f"{path} is damaged: {listed(changed) or file.name} does not hold what was saved")
    check_finite(arrays, str(path))
    if is_earlier:
        arrays = {name: array.reshape(wanted[name].shape) for name, array in arrays.items()}
    model = load_state(abstract, arrays, str(path))
    model.eval()
    return SavedModel(model, description["preprocessing"])


def model_path(path: str | Path) -> Path:
    """The folder or file of a saved model: on this machine, or on the hub, `hf://OWNER/NAME`, which is downloaded.

    Raises:
        TypeError, ValueError: as `local_path` and `hub.download`.
        ImportError, OSError: as `hub.download`.
    """
    return hub.download(path, (DESCRIPTION, WEIGHTS)) if hub.is_on_hub(path) else local_path(path)


def is_saved_model(path: Path) -> bool:
    """Whether there is a folder at a path, or a file that `save_model` wrote."""
    return is_folder(path) or one_file.description_in(path) is not None


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
        single = path.suffix == one_file.SUFFIX and one_file.description_in(path) is not None
        return "" if single else "is a file"
    if path.suffix == one_file.SUFFIX:
        return "is a folder"
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


def _sealed(description: dict) -> dict:
    return description | {"sha256": _seal(description)}


def _seal(description: dict) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _read_description(path):
    place = "its metadata" if path.is_file() else DESCRIPTION
    text = one_file.description_in(path)
    if text is None and path.is_file():
        raise ValueError(f"{path} was not written by save_model, or is damaged: its metadata describes no model")
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or file {path}")
    if text is None and not (path / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{path} holds no {DESCRIPTION}: it is not a folder that save_model wrote")
    try:
        description = json.loads(text or (path / DESCRIPTION).read_text())
        found = description["format"], description["model"]
        if found[0] in FORMATS:
            contents = SHARED | {DIGESTS if text or found[0] == 1 else DIGEST}
            if missing := contents - set(description):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if description.pop("sha256") != _seal(description):
                raise ValueError("its digest is wrong")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {place} cannot be read ({error})") from error
    if found[0] not in FORMATS:
        raise ValueError(f"{path} holds a {found[1]} of format {found[0]}; this version reads formats 1 to {FORMAT}")
    if found[1] not in registered_classes():
        of_module = f" of the module {description['module']}" if "module" in description else ""
        raise ValueError(
            f"{path} holds a {found[1]}{of_module}, and no class of this name is registered: import it and call "
            f"repmlp_jax.register_savable({found[1]}) before load_model"
        )
    return description


def _abstract(model_class, making):
    """The model that was made so, without its arrays."""
    return abstract(lambda rngs: _as_made(_trained(model_class, making, rngs=rngs), making))


def _trained(model_class, making, *, rngs):
    """The model as its class builds it."""
    return model_class(**arguments_from_text(json.dumps(making["arguments"])), rngs=rngs)


def _as_made(model, making):
    """What became of a model: it was folded for an example, fused or quantised."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing to fuse")  # That was said when the model was fused.
        if folding := making.get("folding"):
            model = fuse_params(model, **arguments_of_folding(folding))
        elif making["fused"]:
            model = fuse_params(model)
    # Models that multiplied in int8, which earlier versions made, have the same arrays.
    return quantise_params(model) if making.get("quantised") else model


def check_savable(model: Any):
    """Raises TypeError, as `save_model`, if a model is of no registered class, or its arguments cannot be saved."""
    name, arguments = type(model).__name__, getattr(model, "arguments", None)
    if registered_classes().get(name) is not type(model):
        raise TypeError(
            f"save_model takes models of registered classes, and {name} of {type(model).__module__} is not one of "
            f"them: call repmlp_jax.register_savable({name}) before the model is built"
        )
    if isinstance(arguments, NotSavable):
        raise TypeError(f"this {name} cannot be saved: {arguments.reason}")
    if not isinstance(arguments, str):
        raise TypeError(f"this {name} was built before its class was registered, so its arguments are not known")


def _making(model) -> dict[str, Any]:
    """How a model was made: what a file has to hold, besides its arrays, to make it again."""
    check_savable(model)
    model_class, name, arguments = type(model), type(model).__name__, model.arguments
    folding = folding_of(model)
    making = {
        "model": name,
        "module": model_class.__module__,
        "arguments": json.loads(arguments),
        "fused": False,
        "folding": folding,
        "quantised": {"activations": None} if is_quantised(model) else None,
    }
    try:
        trained = abstract(_trained, model_class, making)
    except Exception as error:
        raise TypeError(
            f"this {name} cannot be saved: its class does not take the arguments as a file holds them, {arguments} "
            f"with lists as tuples ({error})"
        ) from error
    making["fused"] = folding is not None or bool(fusable_modules(trained) and not fusable_modules(model))
    is_trained = not (making["fused"] or making["quantised"])
    expected = trained if is_trained else transformed_abstractly(lambda model: _as_made(model, making), trained)
    if changed := differences(model, expected):
        raise TypeError(f"this {name} was changed since it was built, so it cannot be saved: {changed}")
    return making
