"""ONNX files, which jax2onnx creates and onnxruntime compares with the model before they are written."""

import contextlib
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from repmlp_jax.deploy.program import ready_to_run
from repmlp_jax.fusing.modules import replace_modules
from repmlp_jax.fusing.one_platform import as_compiled_for
from repmlp_jax.storage.preprocessing import check_preprocessing_of
from repmlp_jax.storage.whole_file import whole_file

OPSET = 23
# Largest allowed difference from the model, as a share of the largest output; rounding causes about 3e-7.
TOLERANCE = 1e-5
BATCHES = 1, 3


def export_onnx(model: nnx.Module, path: str | Path, *, preprocessing: dict | None = None, overwrite: bool = False):
    """Writes a model as an ONNX file of opset 23, from `images`, float32 (N, H, W, C) of any N, to `outputs`.

    A model that is not fused is fused first, and the log says so. Before the file is written, onnxruntime runs it on
    random images at two batch sizes and compares the outputs with the model's. The file is written atomically; its
    metadata holds the preprocessing as JSON, under that name. Parameters in bfloat16 or float16 are written in float32.

    Args:
        model: any NNX module with an `input_shape`, (H, W, C), that takes and returns float32.
        path: the file; missing parents are created.
        preprocessing: mean and std of the channels, class names.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        ImportError: if the extra `[onnx]` is not installed.
        TypeError: as `export_model`, or if the model gives another dtype than float32.
        ValueError: if jax2onnx cannot convert the model, or the outputs of the file differ; as `export_model`.
    """
    with whole_file(path, overwrite) as partial, _quiet("jax2onnx", "onnx_ir"):
        converter = _import_converter()
        model, input_shape = ready_to_run(model)
        check_preprocessing_of(model, preprocessing)
        model = jax.tree.map(_in_float32, model)
        images = np.random.default_rng(0).normal(size=(max(BATCHES), *input_shape)).astype(np.float32)
        outputs = _outputs(model, images)
        content = _convert(converter, model, input_shape, json.dumps(preprocessing or {}))
        for size in BATCHES:
            _compare(content, images[:size], outputs[:size])
        partial.write_bytes(content)


class PlainConvolution(nnx.Module):
    """The convolution of an `nnx.Conv` over NHWC with explicit padding, as a `lax` operation.

    jax2onnx 0.13 cannot convert an `nnx.Conv` with explicit padding, but it can convert the `lax` operation.
    """

    def __init__(self, conv: nnx.Conv):
        self.conv = conv

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 O"]:
        """Convolves."""
        conv = self.conv
        y = lax.conv_general_dilated(
            x,
            conv.kernel[...],
            window_strides=_pair(conv.strides),
            padding=[_pair(sides) for sides in _pair(conv.padding)],
            lhs_dilation=_pair(conv.input_dilation),
            rhs_dilation=_pair(conv.kernel_dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=conv.feature_group_count,
        )
        return y if conv.bias is None else y + conv.bias[...].reshape(1, 1, 1, -1)


def _import_converter():
    try:
        import jax2onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f'ONNX needs jax2onnx and onnxruntime: pip install "repmlp_jax[onnx]" ({error})') from error
    return jax2onnx


def _outputs(model, images) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(lambda model, images: model(images))(model, images)
    if outputs.dtype != jnp.float32:
        raise TypeError(f"the model gives {outputs.dtype}, and the ONNX file is in float32: build it with dtype=None")
    return np.asarray(outputs)


def _convert(converter, model, input_shape, preprocessing) -> bytes:
    import onnx

    plain = replace_modules(model, _is_padded_in_numbers, lambda path, conv: PlainConvolution(conv))
    try:
        names = dict(model_name=type(model).__name__, input_names=["images"], output_names=["outputs"])
        file = converter.to_onnx(as_compiled_for("cpu", plain), [("N", *input_shape)], opset=OPSET, **names)
    except Exception as error:  # a converter raises any kind of error
        raise ValueError(f"jax2onnx cannot convert this {type(model).__name__}: {error}") from error
    del file.graph.value_info[:]  # Some of its inner shapes are wrong; readers infer them anyway.
    onnx.helper.set_model_props(file, {"preprocessing": preprocessing})
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def _compare(content, images, outputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    if found.shape != outputs.shape:
        raise ValueError(f"the converted model returns shape {found.shape}, the model {outputs.shape}")
    difference, largest = np.abs(found - outputs).max(), np.abs(outputs).max()
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the converted model differs from the model by {difference:.3g} at outputs of up to {largest:.3g}; "
            f"the limit is {TOLERANCE} of these"
        )


def _in_float32(array):
    """Casts bfloat16 and float16 to float32, which is exact; other arrays stay as they are."""
    return array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array


def _is_padded_in_numbers(node) -> bool:
    return isinstance(node, nnx.Conv) and len(node.kernel_size) == 2 and not isinstance(node.padding, str)


def _pair(sides) -> tuple:
    """A pair (down, across) or (before, after); one number stands for both."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


@contextlib.contextmanager
def _quiet(*loggers: str):
    """Silences the converter's warnings of missing libraries and unknown shapes."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
