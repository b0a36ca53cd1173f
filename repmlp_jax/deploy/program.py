"""Exported models: one file that holds a program and its weights and needs only JAX to run."""

import dataclasses
import json
import logging
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.extend.mlir.dialects import stablehlo
from jaxtyping import Array, Float

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.fuse import check_concrete, fusable_modules, fuse_params
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.local_path import local_file
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.state import arrays_of, filled
from repmlp_jax.storage.preprocessing import check_preprocessing_of
from repmlp_jax.storage.whole_file import whole_file
from repmlp_jax.version import versions

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIPTION = "model.json"
PROGRAM = "program.bin"

logger = logging.getLogger("repmlp_jax")


def export_model(model: nnx.Module, path: str | Path, *, preprocessing: dict | None = None, overwrite: bool = False):
    """Writes a model as a JAX program, which runs on CPU, GPU and TPU at any batch size without this library.

    A model that is not fused is fused first, and the log says so. The file is written atomically. It is an uncompressed
    zip, whose checksums reveal damage: `program.bin` is a function of weights and images, serialised by `jax.export`;
    `weights/` holds each array as a `.npy`; `model.json` holds the rest. (Weights inside the program would be compiled
    as constants for every batch size.)

    Args:
        model: any NNX module with an `input_shape`, (H, W, C), that takes float32 images (N, H, W, C).
        path: the file; missing parents are created.
        preprocessing: saved as JSON: mean and std of the channels, class names.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        TypeError: if the model is not a module with an `input_shape`, is abstract, or has float64 parameters, or the
            preprocessing is not a dict that JSON can hold.
        ValueError: if parameters or statistics are NaN or infinite, or the preprocessing does not fit the model; as
            `fuse_params`.
    """
    with whole_file(path, overwrite) as partial:
        model, input_shape = ready_to_run(model)
        check_preprocessing_of(model, preprocessing)
        arrays = arrays_of(model)
        description = {
            "format": FORMAT,
            "model": type(model).__name__,
            "input_shape": input_shape,
            "preprocessing": preprocessing or {},
            "weights": list(arrays),
            "versions": versions(),
        }
        with zipfile.ZipFile(partial, "w") as file:
            file.writestr(DESCRIPTION, json.dumps(description, indent=1))
            file.writestr(PROGRAM, _program(model, arrays, input_shape).serialize())
            for name, array in arrays.items():
                with file.open(_member(name), "w", force_zip64=True) as member:
                    np.save(member, np.asarray(array))


class ExportedModel:
    """A callable model that `load_exported` returns.

    It is compiled at the first call for each batch size.

    Attributes:
        input_shape: (H, W, C) of the images.
        preprocessing: as passed to `export_model`: mean and std of the channels, class names. Images are
            `(pixels / 255 - mean) / std` for pixels from 0 to 255, or `pixels / 255` without mean and std.
    """

    def __init__(self, program: export.Exported, arrays: dict[str, Array], description: dict):
        self.input_shape = tuple(description["input_shape"])
        self.preprocessing = description["preprocessing"]
        self._arrays = arrays
        self._forward = jax.jit(program.call)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes; None if the model was exported without them."""
        return self.preprocessing.get("class_names")

    def __call__(self, images: Float[Array | np.ndarray, "N H W C"]) -> Float[Array, "N ..."]:
        """The model's outputs for a batch of images, such as logits.

        Raises:
            TypeError: if the images are not an array of float32.
            ValueError: if they have another size, or there are none.
        """
        dtype = getattr(images, "dtype", type(images).__name__)
        if dtype != jnp.float32:
            raise TypeError(f"takes images as an array of float32, normalised, not {dtype}")
        if images.ndim != 4 or images.shape[1:] != self.input_shape or not len(images):
            raise ValueError(
                f"takes images (N, H, W, C) of shape (N, {', '.join(map(str, self.input_shape))}), N at least 1, and "
                f"was called with {images.shape}"
            )
        return self._forward(self._arrays, images)


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a model that `export_model` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not an exported model, of a newer format, or of a JAX version that this one cannot
            read.
        TypeError: if `path` is not a path.
    """
    path = local_file(path, "file that export_model wrote")
    try:
        with zipfile.ZipFile(path) as file:
            # A compressed entry of a small file may be of any size.
            if packed := [entry.filename for entry in file.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"{packed[0]} in it is compressed")
            description = json.loads(file.read(DESCRIPTION))
            if description["format"] == FORMAT:
                content = file.read(PROGRAM)
                arrays = {name: jnp.load(file.open(_member(name))) for name in description["weights"]}
                if missing := {"input_shape", "preprocessing", "versions"} - set(description):
                    raise ValueError(f"its {DESCRIPTION} lacks {', '.join(sorted(missing))}")
                exported_by = description["versions"]["jax"]
    except Exception as error:  # a damaged archive raises any kind of error
        raise ValueError(f"{path} is damaged, or no file that export_model wrote: {_reason(error)}") from error
    if description["format"] != FORMAT:
        raise ValueError(f"{path} is of format {description['format']}; this version reads format {FORMAT}")
    try:
        program = export.deserialize(bytearray(content))
    except ImportError:  # of flatbuffers, which JAX does not bring
        raise
    except Exception as error:  # JAX does not document what it raises here
        if exported_by == jax.__version__:
            raise ValueError(f"{path} is damaged: its {PROGRAM} is not a program of JAX ({_reason(error)})") from error
        raise ValueError(
            f"{path} was exported by jax {exported_by}, and jax {jax.__version__} cannot read it: export it again "
            f"({_reason(error)})"
        ) from error
    return ExportedModel(program, arrays, description)


def ready_to_run(model: nnx.Module, fuse: bool = True) -> tuple[nnx.Module, tuple[int, int, int]]:
    """A copy of the model in evaluation mode, fused unless `fuse` is off, and the (H, W, C) of its images.

    Raises:
        TypeError: if it is not a module with an `input_shape`, is abstract, or has float64 parameters.
        ValueError: if parameters or statistics are NaN or infinite; as `fuse_params`.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"export needs an nnx.Module, not {type(model).__name__}")
    name = type(model).__name__
    input_shape = input_shape_of(model)
    arrays = arrays_of(model)
    check_concrete(model, "export")
    if wide := [place for place, array in arrays.items() if array.dtype == jnp.float64]:
        raise TypeError(
            f"{len(wide)} arrays hold float64, {wide[0]} among them, and exported models take float32: build the "
            f"model with param_dtype=float32"
        )
    check_finite(arrays, f"the {name} to export")
    if fuse and fusable_modules(model):
        logger.warning("%s is not fused: fusing it before the export", name)
        fused = fuse_params(model)
    else:
        fused = nnx.clone(model)
        fused.eval()
    return fused, input_shape


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _variables(model):
    return nnx.to_flat_state(nnx.state(model, weights))


def _program(model, arrays, input_shape) -> export.Exported:
    """The model as a function of its arrays by name and of a batch of images of any size."""
    graphdef, _, *rest = nnx.split(model, weights, ...)

    def forward(arrays, images):
        state = [(place, filled(leaf, arrays[dotted(place)])) for place, leaf in _variables(model)]
        return nnx.merge(graphdef, nnx.from_flat_state(state), *rest)(images)

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *input_shape), jnp.float32)
    return _for_older_versions(export.export(jax.jit(forward), platforms=PLATFORMS)(shapes, images))


def _for_older_versions(program: export.Exported) -> export.Exported:
    """The program in the form that versions of JAX of the last three months read; `jax.export` cares for four weeks."""
    version = stablehlo.get_version_from_compatibility_requirement(stablehlo.StablehloCompatibilityRequirement.WEEK_12)
    older = stablehlo.serialize_portable_artifact_str(program.mlir_module(), version)
    return dataclasses.replace(program, mlir_module_serialized=older)


def _member(name: str) -> str:
    return f"weights/{name}.npy"
