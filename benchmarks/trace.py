"""Where does the time of a training step go, perceptron by perceptron?

    python benchmarks/trace.py

Traces the gradient of the pure MLP's loss with `jax.profiler`, and sums the time of the compiled operations by the
scope that the model's code gives them, over all threads or streams. On the CPU, operations that wait for others that
they hold (calls, loops) are left out. The picture shows the trace itself.
"""

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.profiler import ProfileData
from matplotlib.figure import Figure
from measure import RESULTS, record
from nets import ours

from repmlp_jax.plots.palette import BLUE, ORANGE, OTHERS
from repmlp_jax.training.losses import cross_entropy

SCOPE = re.compile(r"(global|partition|local)_perceptron")
OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{.*?op_name="([^"]*)"', re.MULTILINE)
OTHER = "other layers"
COLOURS = dict(zip(("global", "partition", "local", OTHER), (BLUE, ORANGE, OTHERS[0], "lightgrey"), strict=True))
HOLDERS = ("call", "while", "conditional")


def main():
    """Traces, prints, draws and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pure_mlp")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--name", default="trace", help="of the files in results/")
    options = parser.parse_args()
    model = nnx.view(ours(options.model), use_running_average=False, raise_if_not_found=False)
    random = np.random.default_rng(0)
    images = random.standard_normal((options.batch_size, *model.input_shape), np.float32)
    labels = jax.nn.one_hot(random.integers(0, 10, options.batch_size), 10)
    graphdef, state = nnx.split(model)

    def gradient(state, images):
        def loss(state):
            return cross_entropy(nnx.merge(graphdef, state, copy=True)(images), labels).mean()

        return jax.grad(loss, allow_int=True)(state)

    compiled = jax.jit(gradient).lower(state, images).compile()
    jax.block_until_ready(compiled(state, images))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(state, images))
        (path,) = Path(folder).rglob("*.xplane.pb")
        bars = events(path, dict(OPERATION.findall(compiled.as_text())))
    seconds = defaultdict(float)
    for _, _, duration, scope, direction in bars:
        seconds[scope, direction] += duration
    total = sum(seconds.values())
    for (scope, direction), time in sorted(seconds.items()):
        print(f"{scope:14}{direction:10}{time:9.4f} s {time / total:7.1%}")
    picture = RESULTS / f"{options.name}.png"
    draw(bars).savefig(picture, dpi=110)
    shares = [dict(scope=scope, direction=way, share=time / total) for (scope, way), time in sorted(seconds.items())]
    print("recorded:", record(options.name, dict(model=options.model, batch_size=options.batch_size, shares=shares)))


def events(path: Path, scopes: dict[str, str]) -> list[tuple[int, float, float, str, str]]:
    """(row, start, seconds, scope, direction) of the compiled operations; a row is a thread or a stream."""
    bars = []
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is None or operation.startswith(HOLDERS):
                    continue
                name = scopes.get(operation, "")
                found = SCOPE.search(name)
                direction = "backward" if "transpose(" in name else "forward"
                thread = f"{plane.name} {line.name}"
                bars.append(
                    (thread, event.start_ns / 1e9, event.duration_ns / 1e9, found[1] if found else OTHER, direction)
                )
    rows = {thread: number for number, thread in enumerate(dict.fromkeys(bar[0] for bar in bars))}
    start = min(bar[1] for bar in bars)
    return [(rows[thread], begin - start, *rest) for thread, begin, *rest in bars]


def draw(bars) -> Figure:
    """The trace: a row of operations for each thread or stream, over time."""
    rows = 1 + max(bar[0] for bar in bars)
    figure = Figure(figsize=(9, 1.6 + 0.3 * rows), layout="constrained")
    axes = figure.subplots()
    for scope, colour in COLOURS.items():
        for direction, hatch in (("forward", None), ("backward", "///")):
            chosen = [bar for bar in bars if bar[3:] == (scope, direction)]
            widths, lefts = [1e3 * bar[2] for bar in chosen], [1e3 * bar[1] for bar in chosen]
            label = f"{scope}, {direction}"
            axes.barh(
                [bar[0] for bar in chosen], widths, 0.9, lefts, color=colour, hatch=hatch, linewidth=0, label=label
            )
    axes.set_xlabel("time (ms)")
    axes.set_ylabel("thread")
    axes.set_yticks(range(rows))
    axes.invert_yaxis()
    figure.legend(fontsize="x-small", ncols=4, loc="outside upper center")
    return figure


if __name__ == "__main__":
    main()
