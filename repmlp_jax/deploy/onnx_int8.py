"""ONNX files in int8, by onnxruntime's quantiser: smaller, and faster on a CPU."""

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Integer, UInt8

from repmlp_jax.deploy.onnx import OPSET, checked_content, random_images
from repmlp_jax.deploy.timing import median_seconds
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.storage.preprocessing import statistics_of
from repmlp_jax.storage.whole_file import whole_file

Images = UInt8[np.ndarray, "N H W C"]
# Largest loss that is written unless another one is asked for: of the accuracy where it is known, and otherwise of the
# outputs, root mean square.
OF_ACCURACY, OF_OUTPUTS = 0.01, 0.05
# Products of up to this many groups are taken apart, so that each output has a scale of its own: of more than two axes
# the quantiser would give scales to what is summed over. With more groups the small products stay as they are.
MOST_GROUPS = 16
BATCH = 8
# Images on which outputs are compared without test images.
COMPARED = 16


@dataclasses.dataclass(frozen=True)
class Int8Report:
    """What int8 changes; `print` shows it. Pairs are of the file in float32 and in int8.

    Attributes:
        nbytes: sizes of the files.
        milliseconds: of onnxruntime for one image, on the CPU with all cores: medians.
        accuracy: shares of the test images that are right; None without test images.
        difference: of the outputs, root mean square, as a share of the outputs' size.
        kept: numbers of products and convolutions that stay in float32, and of all.
    """

    nbytes: tuple[int, int]
    milliseconds: tuple[float, float]
    accuracy: tuple[float, float] | None
    difference: float
    kept: tuple[int, int]

    def __str__(self) -> str:
        (before, after), (slow, fast) = self.nbytes, self.milliseconds
        lines = [
            f"{'bytes':22}{before:>16,} → {after:,}",
            f"{'milliseconds an image':22}{slow:>16,.2f} → {fast:,.2f}, {fast / slow:.2f} of the time",
        ]
        if self.accuracy is not None:
            lines.append(f"{'accuracy':22}{self.accuracy[0]:>16.2%} → {self.accuracy[1]:.2%}")
        lines.append(f"outputs differ by {self.difference:.2%} of their size, root mean square")
        if self.kept[0]:
            lines.append(f"{self.kept[0]} of {self.kept[1]} products and convolutions stay in float32")
        return "\n".join(lines)


def export_onnx_int8(
    model: nnx.Module,
    path: str | Path,
    *,
    calibration: Images | None = None,
    test: tuple[Images, Integer[np.ndarray, " N"]] | None = None,
    largest_loss: float | None = None,
    preprocessing: dict | None = None,
    opset: int = OPSET,
    preprocess: bool = False,
    overwrite: bool = False,
) -> Int8Report:
    """Writes a model as an ONNX file in int8, quantised by onnxruntime with a scale for each output.

    Without `calibration` the products of matrices are in int8, and their inputs are rounded as they come (dynamic).
    With it convolutions are, too, and the ranges of all inputs are those of these images (static, QDQ).

    Args:
        model: as of `export_onnx`; it is fused first.
        path: the file; missing parents are created.
        calibration: some hundred training images, pixels from 0 to 255.
        test: other images, and the number of the class of each, by which the accuracy is measured.
        largest_loss: what may be lost at most: of the accuracy (0.01) or, without `test`, of the outputs (0.05), which
            are compared on some of `calibration`, or on random images.
        preprocessing: as of `export_onnx`.
        opset: as of `export_onnx`.
        preprocess: as of `export_onnx`.
        overwrite: replace the file if it exists.

    Returns:
        What changed. (Times are of this machine.)

    Raises:
        ValueError: if more is lost, images or labels do not fit the model, or as `export_onnx`.
        TypeError: if images are not NumPy arrays in uint8 or labels not integers, or as `export_onnx`.
        FileExistsError, ImportError: as `export_onnx`.
    """
    with whole_file(path, overwrite) as partial:
        shape = input_shape_of(model)
        if calibration is not None:
            _check_images("calibration", calibration, shape)
        if test is not None:
            _check_images("test", test[0], shape)
            _check_labels(*test, model)
        content = checked_content(model, preprocessing, opset=opset, preprocess=preprocess)

        def prepared(images):
            return images if preprocess else _normalised(images, preprocessing or {})

        try:
            kept = _quantise(content, partial, None if calibration is None else prepared(calibration))
            if test is not None:
                images = prepared(test[0])
            elif calibration is not None:
                images = prepared(calibration[:COMPARED])
            else:
                images = random_images((COMPARED, *shape), preprocess)
            report = _compare(content, partial, images, None if test is None else test[1], kept)
        except Exception as error:  # onnxruntime raises errors of any kind
            raise ValueError(f"onnxruntime does not quantise this {type(model).__name__}: {error}") from error
        _check_loss(report, largest_loss)
        return report


def _check_images(name, images, shape):
    if not isinstance(images, np.ndarray):
        raise TypeError(f"{name} must be images in a NumPy array of uint8, not in a {type(images).__name__}")
    if images.dtype != np.uint8:
        raise TypeError(f"{name} must be images in uint8, not {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        takes = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {images.shape}, and the model takes images (N, {takes}), at least one")


def _check_labels(images, labels, model):
    labels, outputs = np.asarray(labels), output_shape(model)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"test has {len(images)} images and labels of shape {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels of test must be numbers of classes in integers, not {labels.dtype}")
    if len(outputs) != 1:
        raise ValueError(
            f"test has a class for each image, and the model gives shape (N, {', '.join(map(str, outputs))})"
        )
    least, largest = int(labels.min()), int(labels.max())
    if least < 0 or largest >= outputs[0]:
        raise ValueError(
            f"labels of test are from {least} to {largest}, and the model has {outputs[0]} classes, from 0"
        )


def _normalised(images, preprocessing):
    mean, std = (np.asarray(one, np.float32) for one in statistics_of(preprocessing, images.shape[-1]))
    return (images.astype(np.float32) / 255 - mean) / std


def _quantise(content, path, calibration) -> tuple[int, int]:
    """Writes the file in int8; returns how many products and convolutions stay as they are, and how many there are."""
    import onnx
    from onnxruntime import quantization

    file = onnx.load_from_string(content)
    small = _take_apart(file)
    options: dict = dict(per_channel=True, weight_type=quantization.QuantType.QInt8, nodes_to_exclude=small)
    nodes = [node.op_type for node in file.graph.node]
    products, convolutions = nodes.count("MatMul"), nodes.count("Conv") + nodes.count("ConvTranspose")
    with _quiet():
        if calibration is None:
            # In int8 with ranges as they come, onnxruntime's convolutions are slower than in float32.
            only = dict(op_types_to_quantize=["MatMul"], extra_options={"MatMulConstBOnly": True})
            quantization.quantize_dynamic(file, path, **options, **only)
            weights = {constant.name for constant in file.graph.initializer}
            free = [node for node in file.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
            return len(small) + len(free) + convolutions, products + convolutions
        batches = [calibration[start : start + BATCH] for start in range(0, len(calibration), BATCH)]
        quantization.quantize_static(
            file,
            path,
            _reader(batches),
            op_types_to_quantize=["MatMul", "Conv"],
            activation_type=quantization.QuantType.QUInt8,
            **options,
        )
        return len(small) + nodes.count("ConvTranspose"), products + convolutions


def _reader(batches):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The batches, one after another."""

        def __init__(self):
            self.left = iter(batches)

        def get_next(self):
            batch = next(self.left, None)
            return None if batch is None else {"images": batch}

    return Reader()


def _take_apart(file) -> list[str]:
    """Replaces products of several constant matrices at once by one product each; returns the names of those left."""
    from onnx import helper, numpy_helper

    graph = file.graph
    constants = {constant.name: constant for constant in graph.initializer}
    nodes, left = [], []
    for node in graph.node:
        kernel = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if kernel is None or len(kernel.dims) == 2:
            nodes.append(node)
        elif len(kernel.dims) > 3 or kernel.dims[0] > MOST_GROUPS:
            nodes.append(node)
            left.append(node.name)
        else:
            groups = range(kernel.dims[0])
            sizes, *names = (
                [f"{node.name}_{part}_{group}" for group in groups] for part in ("size", "matrix", "input", "output")
            )
            matrices, inputs, outputs = names
            graph.initializer.append(numpy_helper.from_array(np.ones(len(groups), np.int64), sizes[0]))
            for matrix, name in zip(numpy_helper.to_array(kernel), matrices, strict=True):
                graph.initializer.append(numpy_helper.from_array(matrix, name))
            nodes.append(helper.make_node("Split", [node.input[0], sizes[0]], inputs, f"{node.name}_split", axis=0))
            for operands in zip(inputs, matrices, outputs, strict=True):
                *factors, product = operands
                nodes.append(helper.make_node("MatMul", factors, [product], product))
            nodes.append(helper.make_node("Concat", outputs, node.output, f"{node.name}_joined", axis=0))
    used = {name for node in nodes for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return left


def _compare(content, path, images, labels, kept) -> Int8Report:
    from onnxruntime import InferenceSession

    sessions = [InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (content, str(path))]
    before, after = (_outputs(session, images) for session in sessions)
    accuracy = None
    if labels is not None:
        right, still = (float((outputs.argmax(-1) == labels).mean()) for outputs in (before, after))
        accuracy = right, still
    calls = [functools.partial(session.run, None, {"images": images[:1]}) for session in sessions]
    slow, fast = (1e3 * seconds for seconds in median_seconds(calls))
    difference = float(np.sqrt(np.square(after - before).mean() / np.square(before).mean()))
    return Int8Report((len(content), path.stat().st_size), (slow, fast), accuracy, difference, kept)


def _outputs(session, images) -> np.ndarray:
    starts = range(0, len(images), BATCH)
    return np.concatenate([session.run(None, {"images": images[start : start + BATCH]})[0] for start in starts])


def _check_loss(report, largest_loss):
    if report.accuracy is not None:
        before, after = report.accuracy
        lost, most, what = before - after, OF_ACCURACY, f"of the accuracy ({before:.2%} → {after:.2%})"
    else:
        lost, most, what = report.difference, OF_OUTPUTS, "of the outputs, root mean square"
    most = most if largest_loss is None else largest_loss
    if not lost <= most:
        raise ValueError(f"int8 loses {lost:.4f} {what}, more than largest_loss={most}: pass a larger one to accept it")


@contextlib.contextmanager
def _quiet():
    """Silences advice about the graph, which the quantiser logs, and onnxruntime about unused constants."""
    import onnxruntime

    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.disable(disabled)
