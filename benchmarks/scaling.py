"""How does the cost of a block grow with the map, the partition, the groups and the batch?

    python benchmarks/scaling.py

One RepMLP block is varied in one respect at a time. Beside the measured time of the fused block stands what the
formula says: FC3 multiplies N · (H/h · W/w) · (C h w) (O h w) / g, the Global Perceptron N · 2 (C H/h W/w)² / r.
"""

import argparse

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from measure import RESULTS, interleaved, matmul_rate, record
from nets import jax_forward

from repmlp_jax import RepMLP, fuse_params
from repmlp_jax.compilation_cache import keep_compiled_programs
from repmlp_jax.fusing.macs import count_macs
from repmlp_jax.plots.palette import BLUE, ORANGE

STANDARD = dict(batch_size=8, features=64, side=28, partition=7, groups=4)
VARIED = {
    "side": (14, 28, 56, 112),
    "partition": (2, 4, 7, 14),
    "groups": (1, 2, 4, 8, 16),
    "batch_size": (1, 2, 4, 8, 16, 32),
}
LABELS = dict(
    side="side of the map, pixels", partition="side of a partition, pixels", groups="groups", batch_size="batch"
)


def main():
    """Measures, prints, draws and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    keep_compiled_programs()
    rate = matmul_rate()
    measured = {}
    for respect, values in VARIED.items():
        rows = {value: measure({**STANDARD, respect: value}, options.runs) for value in values}
        measured[respect] = {f"{respect} {value}": row for value, row in rows.items()}
        for value, row in rows.items():
            share = row["macs"] / row["seconds"]["median"] / rate
            print(
                f"{respect:11}{value:5}  {row['seconds']['median'] * 1e3:8.2f} ms  {row['macs'] / 1e6:9.1f} M "
                f"multiply-accumulates  {row['parameters']:>11,} parameters  {share:4.0%} of the matmul rate"
            )
    draw(measured, rate).savefig(RESULTS / "scaling.png", dpi=120)
    measured["standard"] = STANDARD
    measured["multiply-accumulates a second"] = rate
    print("recorded:", record("scaling", measured))


def measure(setting: dict, runs: int) -> dict:
    """Seconds of the fused block beside what the formula says."""
    features, side, h, groups = (setting[name] for name in ("features", "side", "partition", "groups"))
    block = nnx.jit(
        lambda: RepMLP(
            features,
            features,
            image_size=(side, side),
            partition_size=(h, h),
            conv_kernels=(1, 3),
            groups=groups,
            rngs=nnx.Rngs(0),
        )
    )()
    fused = fuse_params(block)
    images = np.random.default_rng(0).standard_normal((setting["batch_size"], side, side, features), np.float32)
    partitions = (side // h) ** 2
    fc3 = partitions * (features * h * h) ** 2 // groups
    global_perceptron = 2 * (features * partitions) ** 2 if partitions > 1 else 0
    macs = count_macs(lambda m, x: m(x), fused, jax.ShapeDtypeStruct(images.shape, "float32"))
    expected = setting["batch_size"] * (fc3 + global_perceptron)
    if macs != expected:
        raise ValueError(f"{setting}: {macs:,} multiply-accumulates were counted, the formula says {expected:,}")
    return dict(
        seconds=interleaved({"fused": jax_forward(fused, images)}, runs)["fused"],
        macs=macs,
        share_of_fc3=setting["batch_size"] * fc3 / macs,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(fused, nnx.Param))),
    )


def draw(measured: dict, rate: float) -> Figure:
    """A panel for each respect: measured with its spread, and the formula at the rate of a matrix product."""
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    for axes, (respect, rows) in zip(figure.subplots(1, len(measured)), measured.items(), strict=True):
        values = [int(key.split()[-1]) for key in rows]
        seconds = [row["seconds"] for row in rows.values()]
        medians = np.array([row["median"] for row in seconds]) * 1e3
        spread = np.array([[row["minimum"], row["maximum"]] for row in seconds]).T * 1e3
        axes.errorbar(
            values, medians, (medians - spread[0], spread[1] - medians), fmt="o-", color=BLUE, label="measured"
        )
        limit = [row["macs"] / rate * 1e3 for row in rows.values()]
        axes.plot(values, limit, "--", color=ORANGE, label="formula at the matmul rate")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.set_xlabel(LABELS[respect])
        axes.set_ylabel("time (ms)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
