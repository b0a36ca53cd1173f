"""Is what is compiled for this device right, and does a killed run end with the bits of an unbroken one?"""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from nets import ours

from on_accelerator.killed_runs import NAME, PATIENCE, KilledRuns, missing_for_whole_runs
from on_accelerator.timing import compiled
from repmlp_jax import create_model, fuse_params
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.operations import computed_once, grouped_convolution, halve, max_pool
from repmlp_jax.blocks.resampling import adaptive_average, enlarge
from repmlp_jax.blocks.split_maps import multiply_groups
from repmlp_jax.fusing.host import host, is_accelerator

PART = "check"
FORMS = "forms for this device"
# Of the largest value: sums of hundreds of terms in float32 in another order, forwards and backwards.
ROUNDING = 3e-5
# bfloat16 keeps 8 bits, and each of dozens of layers rounds a few times.
ROUNDING_BF16 = 0.1
ALLOWED = {"highest": ROUNDING, "bfloat16": ROUNDING_BF16}

SMALL_MLP = dict(image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3))
SMALL_RESNET = dict(
    stage_sizes=(1, 2, 1, 1), num_classes=5, image_size=(32, 32), partition_size=(2, 2), groups=(2, 2)
) | dict(widths=(16, 32, 64, 64))
SMALL_NET = dict(stage_sizes=(1, 2), widths=(8, 16), partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4), num_classes=5)
SMALL = {
    "pure_mlp": SMALL_MLP,
    "RepMLPNet-T224": SMALL_NET,
    "RepMLPNet-B224": SMALL_NET,
    "RepMLP-Res50-light-224": SMALL_RESNET,
    "RepMLP-Res50-bottleneck-224": SMALL_RESNET,
}
# The pure MLP as it is. The others are small, so that they compile in time.
NETS = {
    "pure_mlp": {},
    "small RepMLPNet-T224": SMALL_NET,
    "small RepMLP-Res50-light-224": SMALL_RESNET,
    "small RepMLP-Res50-bottleneck-224": SMALL_RESNET,
}
QUICK_NETS = {"small pure_mlp": SMALL_MLP, "small RepMLPNet-T224": SMALL_NET}


def check(journal, options) -> None:
    """Runs all checks that there is time for; one that fails stops no other."""
    quick = options.quick
    first_times(journal, quick)
    with contextlib.ExitStack() as stack:
        runs = None
        if missing := missing_for_whole_runs():
            journal.add(PART, NAME, left_out=f"it needs {' and '.join(missing)}")
        elif journal.has_time(PART, NAME, 20 if quick else 90):
            with journal.attempt(PART, NAME):
                runs = stack.enter_context(KilledRuns(options, min(journal.left(), PATIENCE)))
        if journal.has_time(PART, FORMS, 5 if quick else 20):
            with journal.attempt(PART, FORMS):
                forms(journal)
        fused_is_trained(journal, quick)
        if runs is not None:
            with journal.attempt(PART, NAME):
                runs.compare(journal, PART)


def first_times(journal, quick: bool) -> None:
    """Seconds of the first `create_model` and `fuse_params` of a process, and of the next; on an idle machine."""
    for name, when in (("pure_mlp", "the first of the process"), ("RepMLPNet-T224", "after that")):
        line = f"{'small ' if quick else ''}{name}, {when}"
        if not journal.has_time(PART, line, 5 if quick else 15):
            continue
        with journal.attempt(PART, line):
            arguments = SMALL[name] if quick else {}
            model, created = _seconds(lambda name=name, arguments=arguments: _created(name, arguments))
            fused, first = _seconds(lambda model=model: fuse_params(model))
            _, again = _seconds(lambda model=model: fuse_params(model))
            graphdef, state = nnx.split(model)
            on_host = fuse_params(nnx.merge(graphdef, jax.device_put(state, host())))
            same = _same_bits(fused, on_host)
            times = dict(create_model_s=created, fuse_first_s=first, fuse_again_s=again)
            journal.add(PART, line, right=same, **times, fused_as_on_the_host=same)


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
    "product of one row": (multiply_groups, (2, 1, 1, 64), (2, 64, 5)),
    "product of rows": (multiply_groups, (2, 3, 3, 64), (2, 64, 5)),
    "computed once": (computed_once, (3, 4)),
    "adaptive average": (functools.partial(adaptive_average, size=(3, 3)), (2, 7, 8, 3)),
    "enlarged": (functools.partial(enlarge, size=(9, 11)), (2, 4, 5, 3)),
    "norm in training": (_in_training, (2, 9, 3, 3, 4), (2, 1, 3, 3, 4)),
}


def forms(journal) -> None:
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
    errors = {name: _largest_error(found[name], expected[name]) for name in OPERATIONS}
    wrong = {name: error for name, error in errors.items() if not error <= ROUNDING}
    largest = float(np.max(list(errors.values())))
    journal.add(PART, FORMS, right=not wrong, largest_error=largest, allowed=ROUNDING, wrong=wrong)


def _value_and_gradients(function, operands):
    def weighed(*inner):
        y = function(*inner)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (weights * y).sum(), y

    return jax.grad(weighed, argnums=tuple(range(len(operands))), has_aux=True)(*operands)


def _largest_error(found, expected) -> float:
    # NumPy's maximum, which is NaN where one of them is.
    return float(np.max(list(map(_error, *map(jax.tree.leaves, (found, expected))))))


def _error(found, expected) -> float:
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def fused_is_trained(journal, quick: bool) -> None:
    """Compares fused and trained outputs at the highest precision, as the device runs them, and in bfloat16."""
    calls, outputs = {}, {}
    for net, arguments in (QUICK_NETS if quick else NETS).items():
        if journal.has_time(PART, f"{net}: fused against trained", 5 if quick else 15):
            with journal.attempt(PART, f"{net}: fused against trained"):
                calls |= {_place(net, precision): call for precision, call in _calls(net, arguments).items()}

    def keep(place):
        return lambda: outputs.__setitem__(place, calls[place]())

    places, done = list(calls), {}
    for start in range(0, len(places), 6):
        group = places[start : start + 6]
        if journal.has_time(PART, ", ".join(group), 1):
            done |= compiled({place: keep(place) for place in group}, journal, PART)
    for net in NETS | QUICK_NETS:
        # Programs that failed or were late have lines of their own.
        errors = {
            precision: _error(*outputs[_place(net, precision)])
            for precision in ("highest", "default", "bfloat16")
            if _place(net, precision) in done
        }
        held = [errors[precision] <= allowed for precision, allowed in ALLOWED.items() if precision in errors]
        judged = dict(right=all(held)) if held else {}
        if errors:
            journal.add(PART, f"{net}: fused against trained", **judged, difference_of_the_largest_output=errors)


def _place(net, precision) -> str:
    return f"{net}: fused against trained, {precision}"


def _calls(net, arguments) -> dict:
    """Functions that give a net's outputs, fused and trained, by the precision that they compute in."""
    name = net.removeprefix("small ")
    models = {
        "highest": ours(name, **arguments),
        "bfloat16": ours(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, **arguments),
    }
    if is_accelerator(jax.devices()[0]):
        models["default"] = models["highest"]
    images = _random(1, 4, *models["highest"].input_shape)
    return {
        precision: functools.partial(_outputs, model, fuse_params(model), images, precision)
        for precision, model in models.items()
    }


def _outputs(trained, fused, images, precision):
    with jax.default_matmul_precision("highest" if precision == "highest" else "default"):
        fused, trained = jax.jit(lambda *models: [model(images) for model in models])(fused, trained)
    return fused.astype(jnp.float32), trained.astype(jnp.float32)
