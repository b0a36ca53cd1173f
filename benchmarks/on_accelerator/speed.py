"""How fast are forward passes, training steps and whole epochs on this device, beside the official PyTorch code?"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from nets import ours, training_steps

from on_accelerator.check import SMALL, first_times
from on_accelerator.killed_runs import missing_for_whole_runs
from on_accelerator.timing import compiled, timed
from repmlp_jax import fuse_params
from repmlp_jax.fusing.host import is_accelerator

PART = "speed"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Of a call, as the loop on the device does a second's worth of them.
STEPS = 10
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


@dataclasses.dataclass(frozen=True)
class Row:
    """A program that is timed: a forward pass, trained or fused, or a training step."""

    model: str
    what: str  # "fused", "trained", "step" or "step, deterministic"
    dtype: str
    batch: int = 128

    def __str__(self) -> str:
        return f"{self.model} {self.batch} {self.what} {self.dtype}"


T224, B224, LIGHT, BOTTLENECK = list(SMALL)[1:]
# The most telling first; the programs of a group are compiled at once, few, as each asks for many cores.
GROUPS = (
    (
        Row("pure_mlp", "fused", "float32"),
        Row("pure_mlp", "fused", "bfloat16"),
        Row("pure_mlp", "step", "float32"),
        Row(T224, "fused", "bfloat16"),
    ),
    (
        Row("pure_mlp", "trained", "float32"),
        Row("pure_mlp", "step", "bfloat16"),
        Row("pure_mlp", "step, deterministic", "float32"),
        Row(LIGHT, "fused", "bfloat16"),
    ),
    (
        Row("pure_mlp", "fused", "float32", 1024),
        Row("pure_mlp", "fused", "bfloat16", 1024),
        Row("pure_mlp", "fused", "float32", 1),
        Row(T224, "trained", "bfloat16"),
    ),
    (
        Row(B224, "fused", "bfloat16"),
        Row(BOTTLENECK, "fused", "bfloat16"),
        Row(LIGHT, "trained", "bfloat16"),
        Row("pure_mlp", "trained", "bfloat16"),
    ),
    (
        Row(T224, "step", "bfloat16"),
        Row(B224, "trained", "bfloat16"),
        Row(BOTTLENECK, "trained", "bfloat16"),
    ),
    (
        Row("pure_mlp", "fused", "bfloat16", 1),
        Row("pure_mlp", "trained", "float32", 1),
        Row("pure_mlp", "trained", "bfloat16", 1),
        Row("pure_mlp", "trained", "float32", 1024),
        Row("pure_mlp", "trained", "bfloat16", 1024),
        Row(T224, "fused", "float32"),
        Row(T224, "trained", "float32"),
    ),
)
# With --quick only these.
QUICK = (
    Row("pure_mlp", "fused", "float32"),
    Row("pure_mlp", "trained", "float32"),
    Row("pure_mlp", "step", "float32"),
    Row(T224, "fused", "bfloat16"),
)


def speed(journal, options):
    """Measures what there is time for."""
    if "check" not in options.parts:
        first_times(journal, options.quick)
    groups, compiling = ((QUICK,), 15) if options.quick else (GROUPS, 60)
    for number, rows in enumerate(groups):
        if journal.has_time(PART, f"group {number + 1} of {len(groups)}: {', '.join(map(str, rows))}", compiling):
            programs(journal, rows, options.quick)
        if number == 0:
            if journal.has_time(PART, "matrix products", 1 if options.quick else 15):
                with journal.attempt(PART, "matrix products"):
                    ceilings(journal, options.quick)
            with journal.attempt(PART, "official PyTorch"):
                official(journal, options)
        if number == min(1, len(groups) - 1) and journal.has_time(PART, "whole epochs", 20 if options.quick else 60):
            with journal.attempt(PART, "whole epochs"):
                epochs(journal, options)


def ceilings(journal, quick: bool):
    """The rate of a large matrix product, which no model exceeds."""
    size, runs = (256, 2) if quick else (8192, 10)
    for name, dtype, precision in (
        ("bfloat16", jnp.bfloat16, "default"),
        ("float32 at default precision", jnp.float32, "default"),
        ("float32 at highest precision", jnp.float32, "highest"),
    ):
        with jax.default_matmul_precision(precision):
            matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
            product = jax.jit(jnp.matmul)
            jax.block_until_ready(product(matrix, matrix))
            found = timed(lambda product=product, matrix=matrix: product(matrix, matrix), runs=runs, calls=5)
        journal.add(
            PART, f"matrix product in {name}", tflops=2 * size**3 / found["median_ms"] / 1e9, size=size, **found
        )


def programs(journal, rows, quick: bool):
    """Compiles the programs of some rows at once, then times them one after another."""
    models: dict = {}
    if quick:
        rows = [dataclasses.replace(row, batch=min(row.batch, 4)) for row in rows]
    kind = "small " if quick else ""
    functions = {}
    for row in rows:
        with journal.attempt(PART, f"{kind}{row}"):
            functions[f"{kind}{row}"] = _function(row, models, quick)
    for name, function in compiled(functions, journal, PART).items():
        steps = STEPS if "step" in name else 1
        runs, calls = (3, 1) if quick else (15, 1 if steps > 1 else 10)
        with journal.attempt(PART, name):
            journal.add(PART, name, **timed(function, runs=runs, calls=calls, repeats=steps))


def _function(row: Row, models: dict, quick: bool):
    """A function that runs a row's program once."""
    trained = _model(row, models, quick)
    if "step" in row.what:
        # The CPU has no other algorithms, and its steps are no loop that could be compiled with options.
        deterministic = "deterministic" in row.what and is_accelerator(jax.devices()[0])
        options = DETERMINISTIC if deterministic else None
        return training_steps(trained, row.batch, steps=STEPS, compiler_options=options)
    key = (row.model, row.dtype, row.what)
    if key not in models:
        model = fuse_params(trained) if row.what == "fused" else trained
        graphdef, state = nnx.split(model)
        models[key] = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)), state
    forward, state = models[key]
    images = np.random.default_rng(0).standard_normal((row.batch, *trained.input_shape), np.float32)
    return functools.partial(forward, state, jax.device_put(images.astype(DTYPES[row.dtype])))


def _model(row, models, quick):
    dtype = DTYPES[row.dtype]
    # A model that trains keeps its parameters in float32; one that only runs has them in what it computes in.
    param_dtype = jnp.float32 if "step" in row.what else dtype
    key = (row.model, dtype, param_dtype)
    if key not in models:
        arguments = SMALL[row.model] if quick else {}
        models[key] = ours(row.model, dtype=dtype, param_dtype=param_dtype, **arguments)
    return models[key]


def epochs(journal, options):
    """Seconds of whole epochs of CIFAR-10 by the recipe, with evaluation; without CIFAR-10, of the digits."""
    if missing := missing_for_whole_runs():
        journal.add(PART, "whole epochs", left_out=f"they need {' and '.join(missing)}")
        return

    from repmlp_jax.training import default_config, loop, train_and_evaluate

    config = default_config()
    config.epochs = 4
    config.checkpoint_every_seconds = 30.0
    if options.cifar and not options.quick:
        config.data_dir = str(options.cifar)
    else:
        config.dataset, config.model_arguments, config.flip = "digits", SMALL["pure_mlp"], False
        config.eval_batch_size = 360
    ends = []

    class Metrics(loop.Metrics):
        def add(self, **row):
            super().add(**row)
            ends.append(time.perf_counter())

    plain = loop.Metrics, loop.fuse_and_save
    loop.Metrics, loop.fuse_and_save = Metrics, lambda *_, **__: {}
    try:
        with tempfile.TemporaryDirectory() as workdir:
            train_and_evaluate(config, workdir)
    finally:
        loop.Metrics, loop.fuse_and_save = plain
    seconds = np.diff(ends)
    name = "CIFAR-10" if config.dataset == "cifar10" else "digits"
    journal.add(
        PART,
        f"{name}: an epoch with evaluation, batch {config.batch_size}",
        median_s=float(np.median(seconds)),
        minimum_s=float(seconds.min()),
        maximum_s=float(seconds.max()),
        runs=len(seconds),
    )


def official(journal, options):
    """The same nets by the official PyTorch code, in a process of its own while ours rests."""
    if not options.official:
        journal.add(PART, "official PyTorch", left_out="--official names no folders of its code")
        return
    seconds = min(journal.left() - (5 if options.quick else 60), 90)
    if not journal.has_time(PART, "official PyTorch", 20 if options.quick else 60):
        return
    script = Path(__file__).with_name("official.py")
    command = [sys.executable, str(script), "--budget", str(seconds), "--official", *map(str, options.official)]
    if options.quick:
        command.append("--quick")
    # The weights come from our own models, which have no business on the accelerator there.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found = json.loads(line)
            journal.add(PART, found.pop("name"), **found)
    if process.wait():
        journal.add(PART, "official PyTorch", failed=f"its process ended with {process.returncode}")
