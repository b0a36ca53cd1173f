"""How fast do other runtimes run a fused model on a CPU, beside JAX?

    pip install openvino
    python benchmarks/runtimes.py

A fused model is run by JAX (compiled in process, and from the file of `export_model`), by onnxruntime and by OpenVINO
(in float32 by `export_onnx`, and by `export_onnx_int8`, dynamic and static, calibrated on noise), on one core and on
two, each number of cores in a process of its own. Outputs are compared first, then all runtimes take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = "pure_mlp", "digits", "RepMLPNet-T224", "RepMLP-Res50-light-224"
DIGITS = dict(image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3))
BASE, EXPORTED = "JAX", "JAX exported"
FORMS = "float32", "int8, dynamic", "int8, static"
# Of the largest output: float32 sums in another order.
TOLERANCE = 1e-4


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--cores", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--of_one_process", help="only measure, with the cores that the process has, into this file")
    options = parser.parse_args()
    if options.of_one_process:
        Path(options.of_one_process).write_text(json.dumps({name: measure(name, options) for name in options.models}))
        return
    from measure import record

    measured = {f"cores {cores}": in_a_process(cores, options) for cores in options.cores}
    print("recorded:", record("runtimes", measured | {"versions": versions_of_runtimes()}))


def in_a_process(cores: int, options) -> dict:
    """Measures with the first cores of this machine alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, __file__, "--of_one_process", str(out), "--runs", str(options.runs)]
        command += ["--models", *options.models, "--batch_sizes", *map(str, options.batch_sizes)]
        chosen = set(sorted(os.sched_getaffinity(0))[:cores])
        print(f"cores: {len(chosen)}", flush=True)
        subprocess.run(command, check=True, preexec_fn=lambda: os.sched_setaffinity(0, chosen))
        return json.loads(out.read_text())


def measure(name: str, options) -> dict:
    """For each batch size the seconds of every runtime, and how far their outputs are from JAX's."""
    import numpy as np
    from measure import interleaved, memory_bandwidth
    from nets import jax_forward, ours

    from repmlp_jax import export_model, export_onnx, fuse_params, load_exported
    from repmlp_jax.deploy.onnx_int8 import export_onnx_int8
    from repmlp_jax.models.state import arrays_of

    model = fuse_params(ours("pure_mlp", **DIGITS) if name == "digits" else ours(name))
    size = sum(array.nbytes for array in arrays_of(model).values())
    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / form for form in (EXPORTED, *FORMS)}
        export_model(model, files[EXPORTED])
        export_onnx(model, files["float32"])
        noise = np.random.default_rng(0).integers(0, 256, (64, *model.input_shape), np.uint8)
        export_onnx_int8(model, files["int8, dynamic"], largest_loss=1.0)
        export_onnx_int8(model, files["int8, static"], calibration=noise, largest_loss=1.0)
        exported = load_exported(files[EXPORTED])
        runtimes, refused = {}, {}
        for runtime, load in (("onnxruntime", onnxruntime_forward), ("OpenVINO", openvino_forward)):
            for form in FORMS:
                try:
                    runtimes[f"{runtime} {form}"] = load(files[form])
                except Exception as error:  # which class, runtimes do not say
                    refused[f"{runtime} {form}"] = str(error).strip().splitlines()[0]
        sizes = {form: file.stat().st_size for form, file in files.items()}
        result = {"bytes": sizes | {"weights": size}, "bytes a second of memory": memory_bandwidth()}
        result |= {"refused": refused}
        for batch_size in options.batch_sizes:
            images = np.random.default_rng(1).random((batch_size, *model.input_shape), np.float32)
            calls = {BASE: jax_forward(model, images), EXPORTED: lambda images=images: exported(images)}
            calls |= {form: lambda run=run, images=images: run(images) for form, run in runtimes.items()}
            differences = compare(calls)
            seconds = interleaved(calls, options.runs, untimed=1)
            ratios = {form: row["median"] / seconds[BASE]["median"] for form, row in seconds.items()}
            result[f"batch {batch_size}"] = dict(
                seconds=seconds,
                ratio_to_jax=ratios,
                largest_difference=differences,
                bytes_of_weights_a_second={form: size / row["median"] for form, row in seconds.items()},
            )
            for form, row in seconds.items():
                milliseconds = f"{row['median'] * 1e3:9.2f} ms, {ratios[form]:5.2f} × JAX"
                print(
                    f"{name:24} {batch_size:3} {form:26} {milliseconds}, differs by {differences[form]:.1e}", flush=True
                )
    return result


def onnxruntime_forward(path: Path):
    """The model in a file, run by onnxruntime on the cores of this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino_forward(path: Path):
    """The model in a file, run by OpenVINO on the cores of this process, in float32 where the file is."""
    import openvino

    threads = len(os.sched_getaffinity(0))
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", options)
    return lambda images: compiled(images)[0]


def compare(calls) -> dict[str, float]:
    """The largest difference of each runtime's outputs to JAX's, as a share of the largest output."""
    import numpy as np

    outputs = {form: np.asarray(call(), np.float32) for form, call in calls.items()}
    scale = np.abs(outputs[BASE]).max()
    differences = {form: float(np.abs(output - outputs[BASE]).max() / scale) for form, output in outputs.items()}
    for form, difference in differences.items():
        if "int8" not in form and not difference <= TOLERANCE:
            raise ValueError(f"{form}: outputs differ by {difference:.2g} of the largest, allowed are {TOLERANCE:g}")
    return differences


def versions_of_runtimes() -> dict[str, str]:
    """The versions of the runtimes besides JAX."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("onnxruntime", "openvino", "onnx")}


if __name__ == "__main__":
    main()
