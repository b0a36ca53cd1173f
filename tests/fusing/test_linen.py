"""Folding the norms of Linen models in their variables, in float64 with random statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick_jit
from flax import linen as nn
from flax.core import FrozenDict
from tolerance import ROUNDING_BF16, ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax import fuse_variables
from repmlp_jax.fusing.linen import variables_report


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    """Linen's own norms mix float32 and float64."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape or (2, 8, 8, 3)))


def randomised(module, x=None, seed=0, dtype=jnp.float64, **options):
    """Random variables of a module, no norm of which is an identity."""
    random = np.random.default_rng(seed)
    x = images() if x is None else x
    # Flax initialises in float32.
    shapes = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), x.astype(jnp.float32))

    def draw(path, array):
        name = next(key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey))
        positive = name in ("var", "scale")
        values = random.uniform(0.5, 2, array.shape) if positive else random.normal(0, 0.3, array.shape)
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_folds(module, folded, kept=(), x=None, tolerance=ROUNDING_F64, **options):
    """Asserts that so many norms are folded, that those with these paths stay, and that outputs are the same."""
    x = images() if x is None else x
    variables = randomised(module, x, **options)
    report = variables_report(module, variables, x, **options)
    assert (len(report.folded), sorted(report.kept)) == (folded, sorted(kept)), report
    apply = quick_jit(functools.partial(module.apply, **options))
    fused = fuse_variables(module, variables, x, **options)
    assert jax.tree.map(lambda array: (array.shape, array.dtype), fused) == jax.tree.map(
        lambda array: (array.shape, array.dtype), variables
    )
    larger = jnp.concatenate([x, 2 * x[:1]])
    assert_close(apply(fused, larger), apply(variables, larger), tolerance)
    for path in report.folded:
        stats, params = (functools.reduce(dict.get, path.split("."), fused[name]) for name in ("batch_stats", "params"))
        changed = functools.reduce(dict.get, path.split("."), variables["batch_stats"])
        assert (stats["var"] != changed["var"]).all()
        if params is not None and "bias" in params:
            assert (stats["mean"] == 0).all()
    assert fuse_twice_changes_nothing(module, fused, x, options)
    return fused, report


def fuse_twice_changes_nothing(module, fused, x, options):
    again = fuse_variables(module, fused, x, **options)
    return jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), fused, again))


class ResNetBlock(nn.Module):
    """As in Flax's ImageNet example."""

    features: int
    conv: type
    norm: type
    strides: tuple = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.features, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.features, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.features, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = nn.relu(norm(name="bn_init")(conv(4, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for features, strides in ((4, (1, 1)), (8, (2, 2))):
            x = ResNetBlock(features, conv, norm, strides)(x)
        return nn.Dense(5)(jnp.mean(x, axis=(1, 2)))


class VGG(nn.Module):
    """Convolutions with a bias, and an FC whose norm has neither scale nor bias; the mode is given at the call."""

    def setup(self):
        self.convs = [nn.Conv(features, (3, 3)) for features in (4, 6)]
        self.norms = [nn.BatchNorm() for _ in range(2)]
        self.fc, self.last = nn.Dense(8), nn.BatchNorm(use_bias=False, use_scale=False, epsilon=1e-3)

    def __call__(self, x, train=False):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.relu(norm(conv(x), use_running_average=not train))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return self.last(self.fc(x.reshape(len(x), -1)), not train)


class DenseNetBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        for _ in range(2):
            y = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(norm()(x)))
            y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(norm()(y)))
            x = jnp.concatenate([x, y], axis=-1)
        return x


class UNet(nn.Module):
    """Transposed convolutions of both layouts, and skips."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        down = nn.relu(norm()(nn.Conv(4, (3, 3), strides=2)(x)))
        up = norm()(nn.ConvTranspose(6, (2, 2), (2, 2))(down))
        other = norm(use_bias=False)(nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True)(down))
        return jnp.concatenate([up, other, x], axis=-1)


class Layers(nn.Module):
    """Layers of all kinds, each with a norm."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = norm()(nn.Conv(6, (3, 3), feature_group_count=3, kernel_dilation=2)(x))
        x = norm(axis=3)(nn.ConvLocal(4, (3, 3), padding="VALID")(x))
        x = norm(use_scale=False)(nn.DenseGeneral((2, 5), axis=(-2, -1), use_bias=False)(x))
        x = nn.Conv(4, (3,), padding="CAUSAL")(x)
        x = norm()(x.transpose(0, 2, 1, 3).reshape(-1, 4))
        return norm()(x=nn.Dense(3, param_dtype=jnp.float64)(inputs=x))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.Conv(3, (3, 3), use_bias=False)(x)
        return x + nn.relu(nn.BatchNorm(use_running_average=True)(y)), None


class Loops(nn.Module):
    """Stacks of blocks by scan, one that applies the same block twice, and blocks in remat and jit."""

    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})
        x, _ = nn.scan(Residual, **axes, length=3)(name="stack")(x, None)
        same = dict(variable_broadcast=["params", "batch_stats"], split_rngs={"params": False})
        x, _ = nn.scan(Residual, **same, length=2)(name="same")(x, None)
        x, _ = nn.remat(Residual)(name="remat")(x)
        x, _ = nn.jit(Residual)(name="jit")(x)
        return x


sequential = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True), nn.relu])


@pytest.mark.parametrize(
    ("module", "folded", "kept"),
    [
        (ResNet(), 6, ()),
        (VGG(), 3, ()),
        (DenseNetBlock(), 2, ("BatchNorm_0", "BatchNorm_2")),
        (UNet(), 3, ()),
        (Layers(), 5, ()),
        (Loops(), 4, ()),
        (sequential, 1, ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_norms_are_folded(module, folded, kept):
    assert_folds(module, folded, kept)


class Left(nn.Module):
    """A convolution and a norm, which something keeps from being folded."""

    case: str

    def setup(self):
        norms = {"an axis": functools.partial(nn.BatchNorm, axis=1), "own norm": Doubled, "group norm": nn.GroupNorm}
        convs = {"mask": dict(mask=jnp.ones((3, 3, 3, 3))), "own convolution": dict(conv_general_dilated=rounded)}
        kinds = {"vmap": nn.vmap(nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True}), "own": Own}
        self.conv = kinds.get(self.case, nn.Conv)(3, (3, 3), **convs.get(self.case, {}))
        self.norm = nn.GroupNorm(3) if self.case == "group norm" else norms.get(self.case, nn.BatchNorm)()
        self.other, self.second = nn.Conv(3, (1, 1)), nn.BatchNorm(use_running_average=True)
        self.weight_norm = nn.WeightNorm(nn.Conv(3, (3, 3)))

    def __call__(self, x, train=False):
        y = self.conv(x)
        norm = functools.partial(self.norm, use_running_average=not train)
        match self.case:
            case "activation":
                y = norm(nn.relu(y))
            case "called twice":
                y = norm(y) + self.conv(2 * x)
            case "norm of two":
                y = norm(y) + norm(x)
            case "norm of two layers":
                y = norm(y) + norm(self.other(x))
            case "two norms":
                y = norm(y) + self.second(y)
            case "skip":
                y = norm(y) + y
            case "sown":
                self.sow("intermediates", "y", y)
                y = norm(y)
            case "kernel used elsewhere":
                y = norm(y) + self.conv.variables["params"]["kernel"].sum()
            case "norm's scale used elsewhere":
                y = norm(y) * self.norm.variables["params"]["scale"]
            case "turned channels":
                y = norm(y.transpose(0, 3, 2, 1))
            case "reversed":
                y = norm(y[..., ::-1])
            case "kernel in a loop":
                kernel = self.conv.variables["params"]["kernel"]
                y = norm(y) + jax.lax.fori_loop(0, 2, lambda _, kernel: 0.5 * kernel, kernel).sum()
            case "loop":
                y = jax.lax.fori_loop(0, 2, lambda _, y: norm(y), y)
            case "branch":
                y = jax.lax.cond(x.sum() > 0, lambda y: 2 * y, lambda y: y, y)
                y = norm(y)
            case "weight norm":
                y = norm(self.weight_norm(x))
            case "group norm":
                y = self.norm(y)
            case _:
                y = norm(y)
        return y


class Doubled(nn.BatchNorm):
    def __call__(self, x, use_running_average):
        return 2 * super().__call__(x, use_running_average)


class Own(nn.Conv):
    def __call__(self, x):
        return super().__call__(x) ** 2


def rounded(x, kernel, *args, **kwargs):
    """Not linear in the kernel."""
    return jax.lax.conv_general_dilated(x, jnp.round(kernel, 1), *args, **kwargs)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("activation", "its input comes from max, not from a convolution or FC"),
        ("called twice", "conv is called 1 more times without it"),
        ("norm of two", "its input comes from outside of its loop, its branch, or the model"),
        ("norm of two layers", "it comes after several layers: conv, other"),
        ("two norms", "its input is used in 1 other places"),
        ("skip", "its input is used in 1 other places"),
        ("sown", "its input is used in 1 other places"),
        ("kernel used elsewhere", "the parameters of conv are used elsewhere, too"),
        ("norm's scale used elsewhere", "the parameters of norm are used elsewhere, too"),
        ("turned channels", "its input comes from transpose, not from a convolution or FC"),
        ("reversed", "its input comes from rev, not from a convolution or FC"),
        ("kernel in a loop", "the parameters of conv are used elsewhere, too"),
        ("loop", "its input comes from outside of its loop, its branch, or the model"),
        ("branch", "its input comes from cond, not from a convolution or FC"),
        ("an axis", "it normalises axis 1, not the last one"),
        ("own norm", "Doubled overrides __call__"),
        ("own", "its input comes from integer_pow, not from a convolution or FC"),
        ("mask", "its input comes from"),
        ("own convolution", "its input comes from"),
        ("vmap", "its input comes from"),
        ("weight norm", "its input comes from"),
        ("group norm", "it normalises by the data themselves"),
    ],
)
def test_what_cannot_be_folded_stays_and_the_report_says_why(case, reason):
    x = images(2, 3, 8, 3)
    variables = randomised(Left(case), x)
    report = variables_report(Left(case), variables, x)
    assert not report.folded
    assert report.kept["norm"].startswith(reason)
    assert f"stays: {reason}" in str(report)
    same = jax.tree.map(lambda one, other: one is other, fuse_variables(Left(case), variables, x), variables)
    assert jax.tree.all(same)


def test_layers_under_vmap_stay():
    axes = dict(variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})
    net = nn.vmap(Residual, **axes, in_axes=0, out_axes=0)()
    assert variables_report(net, randomised(net), images()).kept == {"BatchNorm_0": "Conv_0 is called under vmap"}


class Mixed(nn.Module):
    """The inner loop goes over kernels, the outer one over statistics, in the same numbers."""

    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"batch_stats": 0}, variable_broadcast="params", split_rngs={"params": False})
        return nn.scan(Inner, **axes, length=2)()(x, None)[0]


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        axes = dict(variable_axes={"params": 0}, variable_broadcast="batch_stats", split_rngs={"params": True})
        return nn.scan(Residual, **axes, length=2)()(x, None)


def test_loops_over_different_parameters_stay():
    report = variables_report(Mixed(), randomised(Mixed()), images())
    assert not report.folded
    assert [reason.startswith("not the same loops go over") for reason in report.kept.values()] == [True]


def test_a_norm_in_training_mode_stays():
    x, net = images(), VGG()
    report = variables_report(net, randomised(net, x), x, train=True)
    assert not report.folded
    assert set(report.kept.values()) == {"it is called in training mode"}


def test_the_norm_multiplies_by_exactly_one():
    """In float32 as it is computed, for every epsilon: what is left of the norm is one addition."""
    x = images(64, 4).astype(jnp.float32)
    for epsilon in (1e-3, 1e-5, 2.3e-6, 0.17):
        net = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=True, epsilon=epsilon)])
        variables = randomised(net, x, dtype=jnp.float32)
        fused = fuse_variables(net, variables, x)
        fc, norm = fused["params"]["layers_0"], fused["params"]["layers_1"]
        assert (net.apply(fused, x) == nn.Dense(6).apply({"params": fc}, x) + norm["bias"]).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, ROUNDING_F32), (jnp.bfloat16, ROUNDING_BF16), (jnp.float16, ROUNDING_BF16)]
)
def test_dtypes_stay(dtype, tolerance):
    net, x = ResNet(), images().astype(dtype)
    variables = jax.tree.map(lambda array: array.astype(dtype), randomised(net))
    fused = fuse_variables(net, variables, x)
    assert {array.dtype for array in jax.tree.leaves(fused)} == {jnp.dtype(dtype)}
    apply = quick_jit(net.apply)
    assert_close(apply(fused, x), apply(variables, x), tolerance)


def test_it_works_under_transformations():
    x = images()
    fuse = functools.partial(fuse_variables, sequential)
    variables = [randomised(sequential, seed=seed) for seed in range(3)]
    one = fuse(variables[0], x)
    shapes = jax.eval_shape(fuse, variables[0], jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(lambda array: array.shape, shapes)
    stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), *variables)
    with jax.disable_jit():
        eager = fuse(variables[0], x)
    stacked = jax.tree.map(lambda array: array[0], jax.vmap(fuse, (0, None))(stack, x))
    for found in (jax.jit(fuse)(variables[0], x), stacked, eager):
        jax.tree.map(lambda array, expected: assert_close(array, expected, ROUNDING_F64), found, one)


def test_boxes_and_frozen_dicts_stay():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    net = nn.Sequential([nn.Dense(4, kernel_init=kernel_init), nn.BatchNorm(use_running_average=True)])
    x = images()
    variables = FrozenDict(randomised(net, x))
    fused = fuse_variables(net, variables, x)
    assert isinstance(fused, FrozenDict)
    assert fused["params"]["layers_0"]["kernel"].names == (None, "model")
    assert_close(net.apply(fused, x), net.apply(variables, x), ROUNDING_F64)


def test_the_meant_method_is_traced():
    class Net(nn.Module):
        def setup(self):
            self.fc, self.norm = nn.Dense(4), nn.BatchNorm(use_running_average=True)

        def __call__(self, x):
            return nn.relu(self.features(x))

        def features(self, x, *, before=False):
            y = self.fc(x)
            return (self.norm(y), y) if before else self.norm(y)

    net, x = Net(), images()
    variables = randomised(net, x)
    for method in ("features", Net.features):
        assert variables_report(net, variables, x, method=method).folded == {"norm": "fc"}
    assert variables_report(net, variables, x, method="features", before=True).kept == {
        "norm": "its input is used in 1 other places"
    }


def test_nn_jit_does_not_hide_layers_that_it_has_traced_before():
    class Net(nn.Module):
        @nn.jit
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))

    net, x = Net(), images()
    variables = randomised(net, x)
    expected = net.apply(variables, x)
    for _ in range(2):
        assert variables_report(net, variables, x).folded == {"BatchNorm_0": "Dense_0"}
    assert_close(net.apply(fuse_variables(net, variables, x), x), expected, ROUNDING_F64)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda variables: variables["params"], TypeError, r"with the keys \['layers_0', 'layers_1'\]"),
        (lambda variables: 3, TypeError, 'must be a dict with "params", .* not int'),
        (lambda variables: jax.eval_shape(lambda: variables), TypeError, "are abstract"),
        (
            lambda variables: jax.tree.map(lambda array: array.at[0].set(jnp.nan), variables),
            ValueError,
            r"batch_stats.layers_1.mean \(1 of 4\)",
        ),
        (
            lambda variables: jax.tree.map(lambda array: -abs(array), variables),
            ValueError,
            "cannot fuse layers_1: 4 of its 4 running variances are negative",
        ),
    ],
)
def test_bad_variables_are_refused(change, error, words, unchecked_types):
    with pytest.raises(error, match=words):
        fuse_variables(sequential, change(randomised(sequential)), images())


def test_other_modules_are_refused(unchecked_types):
    with pytest.raises(TypeError, match="module must be a Linen module, not the class Dense"):
        fuse_variables(nn.Dense, {}, images())
