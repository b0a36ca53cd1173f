"""ONNX files, which onnxruntime compares with the model before they are written."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.deploy.program import ready_to_run
from repmlp_jax.extras import name_extra
from repmlp_jax.fusing.arguments import whole_number
from repmlp_jax.storage.preprocessing import check_preprocessing_of, normalised, statistics_of
from repmlp_jax.storage.whole_file import whole_file
from repmlp_jax.version import __version__, versions

# The first in which Split and ReduceSum take lists as inputs, as this library writes them.
FIRST_OPSET = 13
# onnxruntime has run it since 1.12, of 2022.
OPSET = 17
# Largest allowed difference from the model, as a share of the largest output; rounding causes about 1e-6.
TOLERANCE = 1e-5
BATCHES = 1, 3


def export_onnx(
    model: nnx.Module,
    path: str | Path,
    *,
    preprocessing: dict | None = None,
    opset: int = OPSET,
    preprocess: bool = False,
    fuse: bool = True,
    overwrite: bool = False,
):
    """Writes a model as an ONNX file, from `images`, (N, H, W, C) of any N, to `outputs`.

    A model that is not fused is fused first, and the log says so. Before the file is written, `onnx.checker` reads it,
    and onnxruntime runs it on random images at two batch sizes and compares the outputs with the model's. The file is
    written atomically. Parameters in bfloat16 or float16 are fused and written in float32.

    Its metadata holds the preprocessing as JSON, under that name, each of its entries (`mean`, `std`, `class_names`)
    under its own, and the versions of this library, JAX and Flax.

    Args:
        model: any NNX module with an `input_shape`, (H, W, C), that takes and returns float32.
        path: the file; missing parents are created.
        preprocessing: mean and std of the channels, class names.
        opset: version of ONNX's operators: 13 or newer, as far as the installed onnx and onnxruntime know it. The
            version of the format is the oldest that may hold it.
        preprocess: take uint8 images, of pixels from 0 to 255, and normalise them in the graph, by mean and std or,
            without these, to [0, 1]. Otherwise images are in float32 and normalised.
        fuse: fuse a model that is not fused. Without it a trained model is written as it is, which is slower.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        ImportError: if the extra `[onnx]` is not installed.
        TypeError: as `export_model`, or if the model gives another dtype than float32.
        ValueError: if there is no such opset, the model uses an operation that this library does not write or holds
            more than 2 GiB, or the outputs of the file differ; as `export_model`.
    """
    with whole_file(path, overwrite) as partial:
        partial.write_bytes(checked_content(model, preprocessing, opset=opset, preprocess=preprocess, fuse=fuse))


def checked_content(model, preprocessing, *, opset: int, preprocess: bool, fuse: bool = True) -> bytes:
    """What `export_onnx` writes, which raises the same errors."""
    check_opset(opset)
    model, input_shape = ready_to_run(jax.tree.map(_in_float32, model), fuse)
    check_preprocessing_of(model, preprocessing)
    images = random_images((max(BATCHES), *input_shape), preprocess)
    forward = _forward(model, preprocessing or {}, preprocess)
    outputs = _outputs(forward, model, images)
    file = _convert(type(model).__name__, forward, model, images, opset)
    content = _with_metadata(file, preprocessing or {}, preprocess)
    for batch in BATCHES:
        _compare(content, images[:batch], outputs[:batch])
    return content


def random_images(shape, preprocess: bool) -> np.ndarray:
    """Images as a file takes them: of uint8, or normalised in float32."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, shape, np.uint8) if preprocess else random.normal(size=shape).astype(np.float32)


def check_opset(opset: int):
    """Raises ImportError without the extra, and ValueError for an opset that is too old or not known yet."""
    with name_extra():
        import onnx
        import onnxruntime  # noqa: F401
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= whole_number("opset", opset) <= newest:
        raise ValueError(f"{opset=} must be from {FIRST_OPSET} to {newest}, which onnx {onnx.__version__} knows")


def _forward(model, preprocessing, preprocess):
    """The model as a function of itself and of images, normalised or in uint8."""
    if not preprocess:
        return lambda model, images: model(images)
    mean, std = statistics_of(preprocessing, model.input_shape[-1])
    return lambda model, pixels: model(normalised(pixels, mean, std))


def _outputs(forward, model, images) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(forward)(model, images)
    if not isinstance(outputs, jax.Array):
        raise TypeError(f"the model gives a {type(outputs).__name__}, and not one array: export a module that does")
    if outputs.dtype != jnp.float32:
        raise TypeError(f"the model gives {outputs.dtype}, and the ONNX file is in float32: build it with dtype=None")
    if outputs.shape[:1] != images.shape[:1] or not outputs.size:
        raise ValueError(
            f"the model gives shape {outputs.shape} for {len(images)} images, and export needs one output for each"
        )
    return np.asarray(outputs)


def _convert(name, forward, model, images, opset):
    import onnx

    from repmlp_jax.deploy.onnx_graph import to_onnx
    from repmlp_jax.deploy.onnx_operators import OPERATORS

    of_any_batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("N"), *images.shape[1:]), images.dtype)
    try:
        file = to_onnx(forward, model, of_any_batch, opset, OPERATORS)
        onnx.checker.check_model(file, full_check=True)
    except Exception as error:  # A model that does not take a batch of any size raises any kind of error.
        raise ValueError(f"this {name} cannot be written as ONNX: {error}") from error
    return file


def _with_metadata(file, preprocessing, preprocess) -> bytes:
    import onnx

    file.producer_name, file.producer_version = "repmlp_jax", __version__
    file.graph.input[0].doc_string = (
        "pixels from 0 to 255" if preprocess else "pixels / 255, less the mean and divided by the std, if there are any"
    )
    entries = {**preprocessing, "preprocessing": preprocessing}
    properties = {name: json.dumps(entry) for name, entry in entries.items() if entry is not None} | versions()
    onnx.helper.set_model_props(file, properties)
    return file.SerializeToString()


def _compare(content, images, outputs):
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": images})
    except Exception as error:  # onnxruntime has classes of its own for each kind
        raise ValueError(f"onnxruntime {onnxruntime.__version__} does not run the file: {error}") from error
    if found.shape != outputs.shape:
        raise ValueError(f"the file returns shape {found.shape}, the model {outputs.shape}")
    difference, largest = np.abs(found - outputs).max(), np.abs(outputs).max()
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the file differs from the model by {difference:.3g} at outputs of up to {largest:.3g}; "
            f"the limit is {TOLERANCE} of these"
        )


def _in_float32(array):
    """Casts bfloat16 and float16 to float32, which is exact; other leaves stay as they are."""
    is_narrow = isinstance(array, jax.Array | np.ndarray) and array.dtype in (jnp.bfloat16, jnp.float16)
    return array.astype(jnp.float32) if is_narrow else array
