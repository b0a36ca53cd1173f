"""How fast is a fused model, beside the same model in PyTorch and beside other nets that a user would run?

    python benchmarks/inference.py --official FOLDER FOLDER

For each model and batch size the forward passes are timed in turn in one process, ours trained and fused, and the
official PyTorch code's before and after its own conversion, eager and by `torch.compile`. Outputs are compared
first: a speed whose result is wrong is no result. The folders are those of `contestants.py`; needs torch and
transformers.
"""

import argparse
import gc
import time

import jax
import numpy as np
import torch
from contestants import converted, efficientnet, official, torch_forward
from measure import RESULTS, interleaved, matmul_rate, record
from nets import NETS, in_bfloat16, jax_forward, ours
from speed_pictures import draw_speeds

from repmlp_jax import fuse_params
from repmlp_jax.fusing.macs import count_macs

FUSED = "fused"
# Of the largest output; sums of thousands of terms, layer after layer, in another order.
TOLERANCE, TOLERANCE_BF16 = 1e-4, 0.1


def main():
    """Measures, prints, draws and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", nargs="+", default=[], help="folders of the official code; without: only ours")
    parser.add_argument("--models", nargs="+", default=NETS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="also fused in bfloat16, where the machine has it")
    parser.add_argument("--no_compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no_others", action="store_true", help="leave out ResNet-50 and EfficientNet")
    parser.add_argument("--name", default="inference", help="of the file in results/")
    options = parser.parse_args()
    measured = {name: measure(name, options) for name in options.models}
    if not options.no_others:
        measured["others"] = measure_others(options)
    measured["multiply-accumulates a second of a matrix product"] = matmul_rate()
    draw_speeds(measured).savefig(RESULTS / f"{options.name}.png", dpi=120)
    print("recorded:", record(options.name, measured))


def measure(name: str, options) -> dict:
    """Seconds of every form of a model by batch size, the compile time, and how far the outputs are apart."""
    model = ours(name)
    fused = fuse_params(model)
    forms = {"trained": model, FUSED: fused}
    if options.bfloat16:
        forms["fused, bfloat16"] = in_bfloat16(fused)
    nets = official_nets(name, model, options)
    image = jax.ShapeDtypeStruct((1, *model.input_shape), "float32")
    result = {"multiply-accumulates": count_macs(lambda m, x: m(x), fused, image)}
    for batch_size in options.batch_sizes:
        images = np.random.default_rng(1).standard_normal((batch_size, *model.input_shape), np.float32)
        functions = {form: jax_forward(model, images) for form, model in forms.items()}
        begin = time.perf_counter()
        jax.block_until_ready(functions[FUSED]())
        compile_seconds = time.perf_counter() - begin
        functions |= {form: torch_forward(net, images) for form, net in nets.items()}
        differences = compare(functions)
        seconds = interleaved(functions, options.runs)
        result[f"batch {batch_size}"] = dict(
            seconds=seconds,
            ratio_to_fused={form: row["median"] / seconds[FUSED]["median"] for form, row in seconds.items()},
            largest_difference_to_trained=differences,
            compile_seconds_fused=compile_seconds,
        )
        report(name, batch_size, result[f"batch {batch_size}"])
    gc.collect()
    return result


def official_nets(name, model, options) -> dict[str, torch.nn.Module]:
    """The official net before and after its conversion, as it is and compiled."""
    if not options.official:
        return {}
    net = official(name, model, options.official)
    nets = {"official": net, "official, converted": converted(net)}
    return nets if options.no_compile else nets | compiled(nets)


def compiled(nets) -> dict[str, torch.nn.Module]:
    """The nets by `torch.compile`, compiled for each batch size, as ours."""
    torch._dynamo.reset()  # else it gives up compiling after the eighth
    return {f"{name}, torch.compile": torch.compile(net, dynamic=False) for name, net in nets.items()}


def compare(functions) -> dict[str, float]:
    """The largest difference of each form's outputs to those of ours as trained, as a share of the largest output."""
    outputs = {form: np.asarray(function(), np.float32) for form, function in functions.items()}
    expected = outputs["trained"]
    scale = np.abs(expected).max()
    differences = {form: float(np.abs(output - expected).max() / scale) for form, output in outputs.items()}
    for form, difference in differences.items():
        allowed = TOLERANCE_BF16 if "bfloat16" in form else TOLERANCE
        if not difference <= allowed:
            raise ValueError(f"{form}: outputs differ by {difference:.2g} of the largest, allowed are {allowed:g}")
    return differences


def measure_others(options) -> dict:
    """Seconds of ResNet-50 (ours, folded, and the official code's) and of EfficientNets, by batch size."""
    base = "RepMLP-Res50-base-224"
    model = fuse_params(ours(base))
    nets = {f"EfficientNet-{name.upper()}": efficientnet(name) for name in ("b0", "b1")}
    if options.official:
        net = official(base, ours(base), options.official)
        nets["ResNet-50, converted"] = converted(net)
    if not options.no_compile:
        nets |= compiled(nets)
    result = {}
    for batch_size in options.batch_sizes:
        functions = {"ResNet-50, ours fused": jax_forward(model, noise(batch_size, 224))}
        for name, net in nets.items():
            forward = torch_forward(net, noise(batch_size, 240 if "B1" in name else 224))
            functions[name] = forward if "Res" in name else lambda forward=forward: forward().logits
        result[f"batch {batch_size}"] = dict(seconds=interleaved(functions, options.runs))
        report("others", batch_size, result[f"batch {batch_size}"])
    return result


def noise(batch_size, side):
    """Images of random numbers."""
    return np.random.default_rng(1).standard_normal((batch_size, side, side, 3), np.float32)


def report(name, batch_size, result):
    """Prints a line for each form."""
    for form, row in result["seconds"].items():
        ratio = f"{result['ratio_to_fused'][form]:6.2f} × fused" if "ratio_to_fused" in result else ""
        print(
            f"{name:30} batch {batch_size:3}  {form:34} {row['median'] * 1e3:9.1f} ms "
            f"({row['minimum'] * 1e3:.1f} to {row['maximum'] * 1e3:.1f}) {ratio}",
            flush=True,
        )


if __name__ == "__main__":
    main()
