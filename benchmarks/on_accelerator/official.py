"""The official PyTorch nets on this device, as a program of its own: it prints a line of JSON for each measurement."""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import torch  # noqa: E402
from contestants import converted, official  # noqa: E402
from nets import ours  # noqa: E402

# model, batch, dtype; the most telling first
ROWS = (
    ("pure_mlp", 128, "float32"),
    ("pure_mlp", 128, "bfloat16"),
    ("RepMLPNet-T224", 128, "bfloat16"),
    ("pure_mlp", 1024, "float32"),
    ("pure_mlp", 1024, "bfloat16"),
    ("RepMLPNet-B224", 128, "bfloat16"),
    ("RepMLP-Res50-light-224", 128, "bfloat16"),
    ("RepMLP-Res50-bottleneck-224", 128, "bfloat16"),
    ("pure_mlp", 1, "float32"),
)
# Of the largest output in float32, at the highest precision: layer after layer in another order.
TOLERANCE = 1e-3


def main():
    """Measures eager nets, trained and converted, in both layouts, and compiled ones where time is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", nargs="+", required=True)
    parser.add_argument("--budget", type=float, required=True, help="seconds")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # What JAX does on such a device by default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rows = [("pure_mlp", 2, "float32")] if options.quick else ROWS
    nets, compiled_later = {}, []
    for name, batch, dtype in rows:
        if time.perf_counter() - start > options.budget - 10:
            report(f"official {name} {batch} {dtype}", left_out="its time is over")
            continue
        if name not in nets:
            nets.clear()  # of the one before
            nets[name] = both(name, options.official, device)
        for form, net in nets[name].items():
            found = best_layout(net, _images(name, batch, dtype, device), device, options.quick)
            report(f"official {name} {batch} {form} {dtype}, eager", **found)
            compiled_later.append((form, name, batch, dtype))
    for form, name, batch, dtype in compiled_later:
        if form == "converted" and time.perf_counter() - start < options.budget - 40 and not options.quick:
            net = torch.compile(both(name, options.official, device)["converted"], dynamic=False)
            found = best_layout(net, _images(name, batch, dtype, device), device, options.quick)
            report(f"official {name} {batch} converted {dtype}, torch.compile", **found)


def both(name, folders, device) -> dict[str, torch.nn.Module]:
    """The official net with our weights as it was trained, and converted by its own conversion; compared first."""
    net = official(name, ours(name), folders)
    nets = {"trained": net.to(device), "converted": converted(net).to(device)}
    images = _images(name, 2, "float32", device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        trained, fused = (net(images) for net in nets.values())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    difference = float((trained - fused).abs().max() / trained.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{name}: the official conversion changes outputs by {difference:.2g} of the largest")
    return nets


def _images(name, batch, dtype, device):
    side = 32 if name == "pure_mlp" else 224
    return torch.randn(batch, 3, side, side, device=device, dtype=getattr(torch, dtype))


def best_layout(net, images, device, quick) -> dict:
    """Milliseconds in the faster one of the two layouts of images."""
    net = copy.deepcopy(net).to(images.dtype)
    found = {}
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        placed, x = net.to(memory_format=layout), images.to(memory_format=layout)
        found[name] = timed(lambda placed=placed, x=x: placed(x), device, quick)
    fastest = min(found, key=lambda name: found[name]["median_ms"])
    return found[fastest] | dict(layout=fastest)


def timed(function, device, quick) -> dict:
    """As `timing.timed`, of PyTorch."""
    runs, calls = (2, 1) if quick else (15, 10)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    milliseconds = []
    with torch.inference_mode():
        for _ in range(1 if quick else 3):
            function()
        wait()
        for _ in range(runs):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            wait()
            milliseconds.append((time.perf_counter() - start) * 1e3 / calls)
    return dict(
        median_ms=statistics.median(milliseconds),
        minimum_ms=min(milliseconds),
        maximum_ms=max(milliseconds),
        runs=runs,
        calls=calls,
    )


def report(name, **found):
    """Prints a result, with the version of PyTorch."""
    print(json.dumps({"name": name, **found, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
