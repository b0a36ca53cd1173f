"""Is what is compiled for this device right, and does a killed run end as an unbroken one, bit for bit?"""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from nets import ours

from on_accelerator.killed_runs import KilledRuns, missing_for_whole_runs
from on_accelerator.timing import compiled
from repmlp_jax import create_model, fuse_params
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.operations import computed_once, grouped_convolution, grouped_product, halve, max_pool
from repmlp_jax.fusing.host import host, is_accelerator
from repmlp_jax.models.resampling import adaptive_average, enlarge

PART = "check"
# Of the largest value: sums of hundreds of terms in float32 in another order, forwards and backwards.
ROUNDING = 3e-5
# bfloat16 keeps 8 bits, and each of dozens of layers rounds a few times.
ROUNDING_BF16 = 0.1

SMALL_MLP = dict(image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3))
SMALL_RESNET = dict(
    stage_sizes=(1, 2, 1, 1), num_classes=5, image_size=(32, 32), partition_size=(2, 2), groups=(2, 2)
) | dict(widths=(16, 32, 64, 64))
SMALL_NET = dict(stage_sizes=(1, 2), widths=(8, 16), partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4), num_classes=5)
NETS = {
    "pure_mlp": {},
    "RepMLPNet-T224": SMALL_NET,
    "RepMLP-Res50-light-224": SMALL_RESNET,
    "RepMLP-Res50-bottleneck-224": SMALL_RESNET,
}


def check(journal, options) -> bool:
    """Runs all checks; whether all of them held."""
    first_times(journal, options.quick)
    held = []
    with contextlib.ExitStack() as stack:
        runs = None
        name = "killed and unbroken run"
        if missing := missing_for_whole_runs():
            journal.add(PART, name, left_out=f"it needs {' and '.join(missing)}")
        elif journal.has_time(PART, name, 20 if options.quick else 90):
            runs = stack.enter_context(KilledRuns(options))
        held.append(forms(journal))
        held.append(fused_is_trained(journal, options.quick))
        if runs is not None:
            held.append(runs.compare(journal, PART))
    return all(held)


def first_times(journal, quick: bool):
    """Seconds of the first `create_model` and `fuse_params` of a process, and of the next; on an idle machine."""
    for name in ("pure_mlp", "RepMLPNet-T224"):
        arguments = ({"pure_mlp": SMALL_MLP, "RepMLPNet-T224": SMALL_NET} if quick else {}).get(name, {})
        model, created = _seconds(lambda name=name, arguments=arguments: _created(name, arguments))
        fused, first = _seconds(lambda model=model: fuse_params(model))
        _, again = _seconds(lambda model=model: fuse_params(model))
        graphdef, state = nnx.split(model)
        on_host = fuse_params(nnx.merge(graphdef, jax.device_put(state, host())))
        journal.add(
            PART,
            f"{name}, the first of the process" if name == "pure_mlp" else f"{name}, after that",
            create_model_s=created,
            fuse_first_s=first,
            fuse_again_s=again,
            fused_as_on_the_host=_same_bits(fused, on_host),
        )


def _created(name, arguments):
    return create_model(name, rngs=nnx.Rngs(0), **arguments)


def _seconds(function):
    start = time.perf_counter()
    result = function()
    jax.block_until_ready(nnx.state(result))
    return result, time.perf_counter() - start


def _same_bits(one, other) -> bool:
    pairs = zip(*(jax.tree.leaves(nnx.state(model)) for model in (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _convolve(x, kernel, groups, strides=(1, 1), padding=None):
    padding = tuple((side // 2, side // 2) for side in kernel.shape[:2]) if padding is None else padding
    return grouped_convolution(x, kernel, strides=strides, padding=padding, feature_group_count=groups)


def _in_training(x, scale):
    norm = BatchNorm((2, 1, 3, 3, 4))
    norm.scale = nnx.Param(scale)
    return norm(x)


OPERATIONS = {
    # name: function and the shapes that it takes
    "convolution in groups on partitions": (functools.partial(_convolve, groups=2), (6, 8, 8, 8), (7, 7, 4, 8)),
    "convolution in groups on a wide map": (functools.partial(_convolve, groups=2), (2, 4, 80, 4), (3, 3, 2, 4)),
    "convolution, groups are channels": (functools.partial(_convolve, groups=4), (2, 8, 8, 4), (3, 3, 1, 4)),
    "strided convolution of 1×1": (
        functools.partial(_convolve, groups=1, strides=(2, 2), padding=((0, 0), (0, 0))),
        (2, 7, 9, 3),
        (1, 1, 3, 5),
    ),
    "patches": (
        functools.partial(_convolve, groups=1, strides=(4, 4), padding=((0, 0), (0, 0))),
        (2, 8, 12, 3),
        (4, 4, 3, 5),
    ),
    "max pool 3×3": (max_pool, (2, 7, 8, 3)),
    "max pool 2×2": (halve, (2, 8, 6, 3)),
    "product of one row": (grouped_product, (2, 1, 64), (2, 64, 5)),
    "product of rows": (grouped_product, (2, 9, 64), (2, 64, 5)),
    "computed once": (computed_once, (3, 4)),
    "adaptive average": (functools.partial(adaptive_average, size=(3, 3)), (2, 7, 8, 3)),
    "enlarged": (functools.partial(enlarge, size=(9, 11)), (2, 4, 5, 3)),
    "norm in training": (_in_training, (2, 9, 3, 3, 4), (2, 1, 3, 3, 4)),
}


def forms(journal) -> bool:
    """Compares every operation that has forms for platforms, and its gradients, with the host's form."""

    def everything(operands):
        return {name: _value_and_gradients(function, operands[name]) for name, (function, *_) in OPERATIONS.items()}

    operands = {
        name: [_random(number, *shape) for number, shape in enumerate(shapes)]
        for name, (_, *shapes) in OPERATIONS.items()
    }
    with jax.default_matmul_precision("highest"):
        found = jax.jit(everything)(jax.device_put(operands, jax.devices()[0]))
        expected = jax.jit(everything)(jax.device_put(operands, host()))
    errors = {name: max(map(_error, *map(jax.tree.leaves, (found[name], expected[name])))) for name in OPERATIONS}
    wrong = {name: error for name, error in errors.items() if not error <= ROUNDING}
    journal.add(
        PART,
        "forms for this device",
        right=not wrong,
        largest_error=max(errors.values()),
        allowed=ROUNDING,
        wrong=wrong,
    )
    return not wrong


def _value_and_gradients(function, operands):
    def weighed(*inner):
        y = function(*inner)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (weights * y).sum(), y

    return jax.grad(weighed, argnums=tuple(range(len(operands))), has_aux=True)(*operands)


def _error(found, expected) -> float:
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def fused_is_trained(journal, quick: bool) -> bool:
    """Compares fused and trained outputs at the highest precision, as the device runs them, and in bfloat16."""
    programs, found = {}, {}
    nets = {"pure_mlp": SMALL_MLP, "RepMLPNet-T224": SMALL_NET} if quick else NETS
    for name, arguments in nets.items():
        models = {
            "highest": ours(name, **arguments),
            "bfloat16": ours(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, **arguments),
        }
        if is_accelerator(jax.devices()[0]):
            models["default"] = models["highest"]
        images = _random(1, 4, *models["highest"].input_shape)
        for precision, model in models.items():
            call = functools.partial(_outputs, model, fuse_params(model), images, precision)
            programs[name, precision] = functools.partial(found.__setitem__, (name, precision)), call

    def keep(place):
        put, call = programs[place]
        return lambda: put(call())

    places = list(programs)
    for start in range(0, len(places), 6):
        compiled({place: keep(place) for place in places[start : start + 6]}, journal, PART)
    held = True
    for name in nets:
        errors = {precision: _error(*found[which, precision]) for which, precision in found if which == name}
        right = errors["highest"] <= ROUNDING and errors["bfloat16"] <= ROUNDING_BF16
        journal.add(PART, f"{name}: fused against trained", right=right, difference_of_the_largest_output=errors)
        held &= right
    return held


def _outputs(trained, fused, images, precision):
    with jax.default_matmul_precision("highest" if precision == "highest" else "default"):
        fused, trained = jax.jit(lambda *models: [model(images) for model in models])(fused, trained)
    return fused.astype(jnp.float32), trained.astype(jnp.float32)
