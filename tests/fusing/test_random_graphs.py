"""Random small nets of the layers that `fuse_params(model, example)` knows, and of what may lie between them."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from cases import quick_jit, random_array
from flax import nnx
from flax_nets import build
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerance import ROUNDING_F64, worst_error

from repmlp_jax import fuse_params

CHANNELS = 4  # of every map, so that any two can be added


pytestmark = pytest.mark.usefixtures("mixed_dtypes")


class Graph(nnx.Module):
    """A net of so many steps; each reads results of earlier ones, and the net returns what nobody reads.

    A step is (what, number, operands): `number` chooses among the layers of that kind, so that some are called twice.
    """

    def __init__(self, steps, layers, *, rngs):
        self.steps = steps
        self.convs = nnx.List([nnx.Conv(CHANNELS, CHANNELS, **options, rngs=rngs) for options in layers["conv"]])
        self.linears = nnx.List([nnx.Linear(CHANNELS, CHANNELS, **options, rngs=rngs) for options in layers["linear"]])
        self.norms = nnx.List([nnx.BatchNorm(CHANNELS, **options, rngs=rngs) for options in layers["norm"]])
        self.joins = nnx.List([nnx.Linear(2 * CHANNELS, CHANNELS, rngs=rngs) for _ in steps])

    def __call__(self, x):
        values, read = self.values(x)
        return [value for index, value in enumerate(values) if index not in read]

    def values(self, x):
        """What the steps return, and which of that is read."""
        values, read = [x], set()
        for index, (what, number, operands) in enumerate(self.steps):
            first, second = (position % len(values) for position in operands)
            read |= {first, second} if what in ("add", "concatenate", "multiply") else {first}
            values.append(self.step(index, what, number, values[first], values[second]))
        return values, read

    def step(self, index, what, number, x, y):
        match what:
            case "conv" | "linear" | "norm":
                layers = getattr(self, f"{what}s")
                return layers[number % len(layers)](x) if layers else x
            case "relu":
                return nnx.relu(x)
            case "average":
                return nnx.avg_pool(x, (2, 2), (2, 2)) if number % 2 else nnx.avg_pool(x, (3, 3), (1, 1), "SAME")
            case "max":
                return nnx.max_pool(x, (2, 2), (1, 1), "SAME")
            case "mean":
                return x.mean((1, 2), keepdims=True)
            case "sum":
                return x.sum((1, 2), keepdims=True) / 64
            case "transpose":
                return x.transpose(0, 2, 1, 3)
            case "channels":
                return x[..., ::-1]
            case "scale":
                return 2 * x if number % 2 else -x
            case "add" | "multiply" | "concatenate" if not can_be_added(x, y):
                return x
            case "add":
                return x + y if number % 3 else x - y
            case "multiply":
                return x * nnx.sigmoid(y)
            case "concatenate":
                x, y = jnp.broadcast_arrays(x, y)
                return self.joins[index](jnp.concatenate([x, y], -1))
        raise ValueError(what)


def can_be_added(x, y):
    """Whether two maps have one size, or one of them one pixel."""
    return x.shape == y.shape or 1 in (x.shape[1] * x.shape[2], y.shape[1] * y.shape[2])


SIDE = st.integers(1, 4)
PADS = st.tuples(st.integers(0, 2), st.integers(0, 2))
CONVS = st.fixed_dictionaries(
    dict(
        kernel_size=st.sampled_from([(1, 1), (3, 3)]) | st.tuples(SIDE, SIDE),
        strides=st.sampled_from([1, 1, 1, 1, 2, (2, 1)]),
        padding=st.sampled_from(["SAME", "SAME", "CIRCULAR"]) | st.lists(PADS, min_size=2, max_size=2),
        kernel_dilation=st.sampled_from([1, 1, 1, 2, (1, 2)]),
        feature_group_count=st.sampled_from([1, 1, 2, 4]),
        use_bias=st.booleans(),
    )
)
LAYERS = st.fixed_dictionaries(
    dict(
        conv=st.lists(CONVS, min_size=3, max_size=6),
        linear=st.lists(st.fixed_dictionaries(dict(use_bias=st.booleans())), min_size=2, max_size=3),
        norm=st.lists(
            st.fixed_dictionaries(
                dict(use_scale=st.booleans(), use_bias=st.booleans(), epsilon=st.sampled_from([1e-5, 1e-1]))
            ),
            min_size=3,
            max_size=6,
        ),
    )
)
LINEAR_STEPS = "conv", "conv", "norm", "norm", "norm", "add", "add", "linear"
OTHER_STEPS = "relu", "average", "mean", "transpose", "max", "concatenate", "multiply", "channels", "scale", "sum"
# An operand is counted from the newest value backwards, so that chains are more usual than stars.
OPERAND = st.sampled_from([-1, -1, -1, -2, -2, -3, -4, 0])
STEP = st.tuples(
    st.sampled_from(LINEAR_STEPS) | st.sampled_from(LINEAR_STEPS + OTHER_STEPS),
    st.integers(0, 3),
    st.tuples(OPERAND, OPERAND),
)
# What is folded more often than by chance.
USUAL = st.sampled_from(
    [
        [("conv", 0, (-1, -1)), ("norm", 0, (-1, -1))],
        [("norm", 1, (-1, -1)), ("linear", 0, (-1, -1))],
        [("linear", 1, (-1, -1)), ("norm", 2, (-1, -1)), ("relu", 0, (-1, -1))],
        [("conv", 1, (-1, -1)), ("conv", 2, (-2, -2)), ("add", 1, (-1, -2))],
        [
            *[("conv", 0, (-1, -1)), ("norm", 0, (-1, -1)), ("conv", 1, (-3, -3)), ("norm", 1, (-1, -1))],
            *[("add", 1, (-1, -3)), ("norm", 2, (-6, -6)), ("add", 1, (-1, -2)), ("relu", 0, (-1, -1))],
        ],
    ]
)
STEPS = st.lists(USUAL | st.lists(STEP, min_size=1, max_size=2), min_size=1, max_size=4).map(
    lambda parts: [step for part in parts for step in part]
)
# Each layer of its own where there are enough: else the numbers say which are shared.
SHARED = st.sampled_from([False, False, False, True])


def distinct(steps):
    """The steps, each with a layer of its own where there are enough."""
    counts: dict[str, int] = {}
    found = []
    for what, number, operands in steps:
        counts[what] = counts.get(what, -1) + 1
        found.append((what, counts[what] if what in ("conv", "linear", "norm") else number, operands))
    return found


def check_any_graph(steps, layers, is_shared, seed):
    steps = tuple(steps if is_shared else distinct(steps))
    model = build(Graph, steps, layers, seed=seed)
    inputs = [
        jnp.asarray(random_array(*shape, seed=seed))
        for shape in ((2, 8, 8, CHANNELS), (3, 8, 8, CHANNELS), (1, 11, 9, CHANNELS))
    ]
    inputs = list(takes(model, inputs))
    assume(inputs)
    fused = fuse_params(model, inputs[0])

    def both(model, fused):
        return [(fused(x), model(x)) for x in inputs]

    for actual, expected in quick_jit(both)(model, fused):
        for one, other in zip(actual, expected, strict=True):
            # What cancels in the model leaves the rounding of its terms.
            assert worst_error(one, other, max(1.0, float(jnp.abs(other).max(initial=0)))) <= ROUNDING_F64


def takes(model, inputs):
    """The inputs for which no map is empty: with no padding it may have no pixel left."""
    for x in inputs:
        with contextlib.suppress(ValueError, ZeroDivisionError):
            if all(y.size for y in jax.eval_shape(lambda x: model.values(x)[0], x)):
                yield x


GRAPHS = dict(steps=STEPS, layers=LAYERS, is_shared=SHARED, seed=st.integers(0, 99))


@pytest.mark.filterwarnings("ignore:nothing to fuse")
@settings(max_examples=6, deadline=None, derandomize=True)
@given(**GRAPHS)
def test_any_graph_computes_the_same(**options):
    check_any_graph(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing to fuse")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(**GRAPHS)
def test_any_graph_computes_the_same_at_length(**options):
    check_any_graph(**options)


BRANCHES = st.lists(
    st.fixed_dictionaries(
        dict(
            side=st.tuples(st.integers(1, 4), st.integers(1, 4)),
            dilation=st.sampled_from([1, 1, 2]),
            groups=st.sampled_from([1, 1, 2, 4]),
            use_bias=st.booleans(),
            has_norm=st.booleans(),
        )
    ),
    min_size=2,
    max_size=4,
)


class Sum(nnx.Module):
    """Branches of one input whose outputs have one size, and perhaps a norm alone."""

    def __init__(self, branches, offset, strides, has_identity, mode, *, rngs):
        self.convs, self.norms = nnx.List(), nnx.List()
        for branch in branches:
            extents = [branch["dilation"] * (side - 1) for side in branch["side"]]
            padding = mode or [
                (max(0, extent // 2 + offset), extent - max(0, extent // 2 + offset)) for extent in extents
            ]
            self.convs.append(
                nnx.Conv(
                    *(CHANNELS, CHANNELS, branch["side"]),
                    strides=strides,
                    padding=padding,
                    kernel_dilation=branch["dilation"],
                    feature_group_count=branch["groups"],
                    use_bias=branch["use_bias"],
                    rngs=rngs,
                )
            )
            self.norms.append(nnx.BatchNorm(CHANNELS, rngs=rngs) if branch["has_norm"] else nnx.identity)
        self.identity = nnx.BatchNorm(CHANNELS, rngs=rngs) if has_identity and strides == 1 else None

    def __call__(self, x):
        y = sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        return [y if self.identity is None else self.identity(x) + y]


def check_any_sum(branches, offset, strides, has_identity, mode, dense_groups, seed):
    model = build(Sum, branches, offset, strides, has_identity, mode, seed=seed)
    inputs = [jnp.asarray(random_array(*shape, seed=seed)) for shape in ((2, 8, 8, CHANNELS), (1, 11, 9, CHANNELS))]
    fused = fuse_params(model, inputs[0], dense_groups=dense_groups)
    assert not any(isinstance(norm, nnx.BatchNorm) for norm in fused.norms)

    def both(model, fused):
        return [(fused(x)[0], model(x)[0]) for x in inputs]

    for actual, expected in quick_jit(both)(model, fused):
        assert worst_error(actual, expected) <= ROUNDING_F64


SUMS = dict(
    branches=BRANCHES,
    offset=st.integers(-1, 1),
    strides=st.sampled_from([1, 1, 2]),
    has_identity=st.booleans(),
    mode=st.sampled_from([None, None, "SAME", "CIRCULAR"]),
    dense_groups=st.booleans(),
    seed=st.integers(0, 99),
)


@pytest.mark.filterwarnings("ignore:nothing to fuse")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(**SUMS)
def test_any_sum_of_branches_computes_the_same(**options):
    check_any_sum(**options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing to fuse")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SUMS)
def test_any_sum_of_branches_computes_the_same_at_length(**options):
    check_any_sum(**options)
