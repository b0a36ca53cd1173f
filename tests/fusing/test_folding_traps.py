"""Nets that mislead who folds their norms and branches: whatever `fuse_params(model, example)` does, outputs stay."""

import contextlib
import functools
import re

import flax_nets as nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_nets import ConvNorm, build, randomised
from same import IMAGES, array, assert_same, fused_and_same, norms_left, paths, places, reasons, run, shapes
from tolerance import ROUNDING_BF16, ROUNDING_F64, assert_close, assert_trees_close

from repmlp_jax import fuse_params, fuse_report
from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm
from repmlp_jax.fusing.folding import Folding

# Many of these models are such that nothing may be folded.
pytestmark = [pytest.mark.usefixtures("mixed_dtypes"), pytest.mark.filterwarnings("ignore:nothing to fuse")]


class Closing(nnx.Module):
    """A convolution with its norm before something, and a linear layer behind it."""

    def __init__(self, between, *, rngs):
        self.conv = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)
        self.between = between

    def __call__(self, x):
        return self.head(self.between(self.norm(nnx.relu(self.conv(x)))))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.sum((1, 2)) / 64,
        lambda x: x.sum((0, 1, 2)) / 128,
        lambda x: x.sum(0) / 2,
        lambda x: x[:, :8, :8].sum((1, 2)) / 64,
        lambda x: nnx.avg_pool(x, (2, 2), (2, 2), "SAME"),
        lambda x: nnx.avg_pool(x, (3, 3), (2, 2), "SAME"),
        lambda x: nnx.avg_pool(x, (8, 8), padding="SAME"),
    ],
    ids=["of the map", "of all", "of the batch", "of a slice", "even pool", "padded pool", "large pool"],
)
def test_a_constant_of_the_examples_size_is_no_mean(between):
    """Trap 1."""
    model = build(nets_closing(between))
    fused_and_same(model, IMAGES, others=[(array(3, 12, 12, 4),), (array(2, 9, 11, 4),)])


def nets_closing(between):
    return functools.partial(Closing, between)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((1, 2), keepdims=True),
        lambda x: jnp.sum(x, (1, 2)) / (x.shape[1] * x.shape[2]),
        lambda x: x.mean(1).mean(1),
        lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
        lambda x: nnx.avg_pool(x, x.shape[1:3]),
        lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
        lambda x: jnp.transpose(x, (0, 2, 1, 3)),
        lambda x: x[:, ::2, 1:],
        lambda x: nnx.Dropout(0.5, deterministic=True)(x),
    ],
    ids=[
        "mean",
        "keepdims",
        "sum over count",
        "twice",
        "pool",
        "global pool",
        "reshape",
        "transpose",
        "slice",
        "dropout",
    ],
)
def test_what_is_linear_lets_a_norm_through(between):
    """Trap 9: means with keepdims, and other means, have the weight one."""
    fused = fused_and_same(build(nets_closing(between)), IMAGES, others=[(array(3, 12, 12, 4),)])
    assert norms_left(fused) == set()


class Keeping(nnx.Module):
    """Keeps what lies between a convolution and its norm."""

    def __init__(self, kind, *, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.kept = kind(jnp.zeros((2, 8, 8, 4)))

    def __call__(self, x):
        x = self.conv(x)
        self.kept[...] = x.astype(self.kept[...].dtype)
        return self.norm(x)


class Own(nnx.Variable):
    pass


@pytest.mark.parametrize("kind", [nnx.Cache, nnx.Intermediate, nnx.Variable, Own, nnx.BatchStat, nnx.Param])
def test_what_a_model_keeps_is_an_output(kind):
    """Trap 2."""
    model = build(Keeping, kind)
    fused = fuse_params(model, shapes(IMAGES))
    assert norms_left(fused) == {"norm"}

    @nnx.jit
    def call(model):
        return model(IMAGES), model.kept[...]

    assert_trees_close(call(fused), call(model), ROUNDING_F64)


def test_what_is_sown_stays_the_same():
    model = build(nets.Sown)
    fused = fuse_params(model, shapes(IMAGES))
    assert norms_left(fused) == {"norm"}
    assert reasons(model, shapes(IMAGES))["norm"]
    capture = nnx.jit(nnx.capture(run, nnx.Intermediate))
    actual, expected = (capture(one, IMAGES) for one in (fused, model))
    assert_trees_close(actual[0], expected[0], ROUNDING_F64)
    chosen = [dict(nnx.to_flat_state(kept)) for _, kept in (actual, expected)]
    assert len(chosen[0]) == 2
    assert_trees_close(*(list(jax.tree.leaves(one)) for one in chosen), ROUNDING_F64)


def stack(make, number, axes=0):
    """A constructor of a stack of layers."""

    def build_stack(rngs):
        return nnx.split_rngs(splits=number)(nnx.vmap(make, in_axes=(0,), out_axes=axes))(rngs)

    return build_stack


class Crossed(nnx.Module):
    """Stacks of two convolutions and two norms, where the norms' axis is that of the convolutions or of the batch."""

    def __init__(self, axis, *, rngs):
        self.convs = stack(lambda rngs: nnx.Conv(4, 4, (3, 3), rngs=rngs), 2)(rngs)
        self.norms = stack(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 2)(rngs)
        self.axis = axis

    def __call__(self, x):
        y = nnx.vmap(run, in_axes=(0, None), out_axes=0)(self.convs, x)
        return nnx.vmap(run, in_axes=(0, self.axis), out_axes=self.axis)(self.norms, y)


@pytest.mark.parametrize(("axis", "left"), [(0, set()), (1, {"norms"})])
def test_a_stack_of_norms_along_the_batch_stays(axis, left):
    """Trap 3: with two convolutions and two images the shapes are the same."""
    fused = fused_and_same(build(Crossed, axis), IMAGES)
    assert norms_left(fused) == left


class BatchOfVmap(nnx.Module):
    """One image at a time, as people write it who think of one image."""

    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return jax.vmap(lambda image: self.head(nnx.relu(self.pair(image)).mean((0, 1))))(x)


def test_a_vmap_over_the_images():
    fused = fused_and_same(build(BatchOfVmap), IMAGES, others=[(array(3, 12, 12, 4),)])
    assert norms_left(fused) == set()


class OtherAxis(nnx.Module):
    """A stack along the last axis of its parameters."""

    def __init__(self, *, rngs):
        self.axes = nnx.StateAxes({nnx.Param: -1, nnx.BatchStat: -1, ...: 0})
        self.members = stack(lambda rngs: ConvNorm(4, 4, (3, 3), rngs=rngs), 4, self.axes)(rngs)

    def __call__(self, x):
        return nnx.vmap(run, in_axes=(self.axes, None), out_axes=0)(self.members, x)


def test_a_stack_along_another_axis_stays():
    model = build(OtherAxis)
    fused = fused_and_same(model, IMAGES)
    assert norms_left(fused) == {"members.norm"}
    assert "the parameters of members.conv are changed" in reasons(model, shapes(IMAGES))["members.norm"]


class Looking(nnx.Module):
    """Asks its layers something, and computes according to the answer."""

    def __init__(self, ask, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.side = ConvNorm(4, 4, (1, 1), rngs=rngs)
        self.other = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.ask = ask

    def __call__(self, x):
        y = self.pair(x) + self.side(x)
        if self.ask(self):
            y = 0.5 * y
        return self.other(nnx.relu(y))


QUESTIONS = {
    "bias": lambda model: model.pair.conv.bias is None,
    "kind": lambda model: isinstance(model.pair.norm, nnx.BatchNorm),
    "branch": lambda model: isinstance(model.side.conv, nnx.Conv),
    "class": lambda model: type(model.pair.conv) is not nnx.Conv,
    "size": lambda model: model.side.norm.num_features == 4,
    "leaves": lambda model: len(jax.tree.leaves(nnx.state(model.pair))) > 2,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_code_that_looks_at_its_layers(question):
    """Trap 4: what does not depend on the answer is folded all the same."""
    fused = fused_and_same(build(Looking, QUESTIONS[question]), IMAGES)
    if question != "class":  # to see what is called, a layer's class is changed
        assert "other.norm" not in norms_left(fused)


class LookingUnderVmap(Looking):
    def __call__(self, x):
        pair, side = (
            nnx.vmap(run, in_axes=(None, 0))(self.pair, x[None])[0],
            jax.vmap(lambda x: self.side(x))(x),
        )
        y = pair + side
        return self.other(nnx.relu(0.5 * y if self.ask(self) else y))


@pytest.mark.parametrize("question", ["bias", "kind", "branch"])
def test_code_that_looks_at_its_layers_under_vmap(question):
    fused_and_same(build(LookingUnderVmap, QUESTIONS[question]), IMAGES)


class LookingAtNumbers(nnx.Module):
    """Regularises by its own parameters, and norms its kernel."""

    def __init__(self, use, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.use = use

    def __call__(self, x):
        return self.pair(x), self.use(self)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: jnp.sum(model.pair.conv.kernel[...] ** 2),
        lambda model: model.pair.norm.mean[...].sum(),
        lambda model: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
    ],
    ids=["kernel", "statistics", "all"],
)
def test_parameters_that_are_used_elsewhere_stay(use):
    fused = fused_and_same(build(LookingAtNumbers, use), IMAGES)
    assert norms_left(fused) == {"pair.norm"}


class SharedVariables(nnx.Module):
    """Two pairs, some of whose variables are the same."""

    def __init__(self, shared, *, rngs):
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.second = ConvNorm(4, 4, (3, 3), rngs=rngs)
        for layer, name in shared:
            setattr(getattr(self.second, layer), name, getattr(getattr(self.first, layer), name))

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


@pytest.mark.parametrize(
    ("shared", "left"),
    [
        ([("norm", "scale")], set()),
        ([("norm", "mean"), ("norm", "var"), ("norm", "bias")], set()),
        ([("conv", "kernel")], {"first.norm", "second.norm"}),
        ([("conv", "kernel"), ("norm", "scale"), ("norm", "bias")], {"first.norm", "second.norm"}),
    ],
    ids=["scale", "statistics", "kernel", "kernel and scale"],
)
def test_only_what_is_rewritten_must_be_exclusive(shared, left):
    """Trap 5."""
    fused = fused_and_same(build(SharedVariables, shared), IMAGES)
    assert norms_left(fused) == left


class Dropping(nnx.Module):
    """Calls layers whose result it does not use, and holds some that it never calls."""

    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.dropped = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.uncalled = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.pair.conv(x)
        self.dropped(x)
        return self.pair.norm(x)


def test_results_that_nobody_uses():
    """Trap 6."""
    model = build(Dropping)
    fused = fused_and_same(model, IMAGES)
    assert "pair.norm" not in norms_left(fused)
    assert re.search("call", reasons(model, shapes(IMAGES))["uncalled.norm"])


class Transformed(nnx.Module):
    """The same function of two blocks within a transformation, whose jaxpr is shared, and nested ones."""

    def __init__(self, transform, *, rngs):
        self.blocks = nnx.List([nets.Residual(4, rngs=rngs) for _ in range(2)])
        self.last = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.transform = transform

    def __call__(self, x):
        call = self.transform(run)
        for block in self.blocks:
            x = call(block, x)
        return self.transform(lambda last, x: call(last, x))(self.last, x)


@pytest.mark.parametrize(
    "transform", [nnx.remat, nnx.jit, jax.jit, jax.checkpoint], ids=["remat", "nnx.jit", "jit", "checkpoint"]
)
def test_transformations_of_a_shared_function(transform):
    """Trap 7."""
    fused = fused_and_same(build(Transformed, transform), IMAGES, others=[(array(3, 12, 12, 4),)])
    assert norms_left(fused) == set()


class Looped(nnx.Module):
    """A block of its own at every step of a loop of JAX's, and one that is the same at each."""

    def __init__(self, *, rngs):
        self.same = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.start = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.start(x)
        x = jax.lax.fori_loop(0, 3, lambda _, x: nnx.tanh(self.same(x)), x)
        _, x = jax.lax.while_loop(
            lambda pair: pair[0] < 2, lambda pair: (pair[0] + 1, nnx.tanh(self.same(pair[1]))), (0, x)
        )
        return x


def test_loops_of_one_block():
    fused = fused_and_same(build(Looped), IMAGES)
    assert "start.norm" not in norms_left(fused)


class CarriedOut(nnx.Module):
    """The value between a pair goes into the next turn of a loop."""

    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        def turn(state, _):
            x, kept = state
            y = self.pair.conv(nnx.tanh(x))
            return (self.pair.norm(y), y + 0.5 * kept), y.mean()

        (x, kept), means = jax.lax.scan(turn, (x, jnp.zeros_like(x)), length=2)
        return x, kept, means


def test_what_a_loop_carries_is_used():
    assert norms_left(fused_and_same(build(CarriedOut), IMAGES)) == {"pair.norm"}


class Loop(nnx.Module):
    """Stacks of convolutions and norms, or one for all turns, run by a loop in one of many ways."""

    def __init__(self, loop, *, rngs):
        self.convs = stack(lambda rngs: nnx.Conv(4, 4, (3, 3), rngs=rngs), 3)(rngs)
        self.norms = stack(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 3)(rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.loop = loop

    def __call__(self, x):
        return self.loop(self, x)


def scan(turn, *stacks):
    """A loop of JAX's over stacks of layers, whose turn gives the next x."""
    return lambda x: jax.lax.scan(lambda x, layers: (turn(x, *layers), None), x, stacks)[0]


def one_of(stack, index):
    return jax.tree.map(lambda leaf: leaf[index], stack)


def from_turn_to_turn(model, x):
    x = scan(lambda x, conv, norm: conv(nnx.tanh(norm(x))), model.convs, model.norms)(model.conv(x))
    return model.norm(x)


def within_turns(model, x):
    return scan(lambda x, norm, conv: conv(norm(nnx.tanh(x))), model.norms, model.convs)(x)


LOOPS = {
    "both stacked": (lambda m, x: scan(lambda x, c, n: nnx.tanh(n(c(x))), m.convs, m.norms)(x), {"norms"}),
    "one convolution": (lambda m, x: scan(lambda x, n: nnx.tanh(n(m.conv(x))), m.norms)(x), set()),
    "one norm": (lambda m, x: scan(lambda x, c: nnx.tanh(m.norm(c(x))), m.convs)(x), set()),
    "one convolution under vmap": (
        lambda m, x: nnx.vmap(lambda n, x: n(m.conv(x)), in_axes=(0, None))(m.norms, x),
        set(),
    ),
    "one norm under vmap": (lambda m, x: nnx.vmap(lambda c, x: m.norm(c(x)), in_axes=(0, None))(m.convs, x), None),
    "backwards": (
        lambda m, x: scan(lambda x, c, n: nnx.tanh(n(c(x))), m.convs, jax.tree.map(lambda leaf: leaf[::-1], m.norms))(
            x
        ),
        set(),
    ),
    "by index": (lambda m, x: nnx.tanh(one_of(m.norms, 0)(one_of(m.convs, 0)(x))), None),
    "by other indices": (lambda m, x: nnx.tanh(one_of(m.norms, 1)(one_of(m.convs, 2)(x))), None),
    "by a traced index": (
        lambda m, x: jax.lax.fori_loop(0, 3, lambda i, x: nnx.tanh(one_of(m.norms, i)(one_of(m.convs, i)(x))), x),
        None,
    ),
    "by a traced index from the end": (
        lambda m, x: jax.lax.fori_loop(0, 3, lambda i, x: nnx.tanh(one_of(m.norms, 2 - i)(one_of(m.convs, i)(x))), x),
        set(),
    ),
    "from turn to turn": (from_turn_to_turn, None),
    "norms first": (within_turns, set()),
    "two loops": (
        lambda m, x: scan(lambda x, c, n: nnx.tanh(n(c(x))), m.convs, m.norms)(
            scan(lambda x, c, n: nnx.sigmoid(n(c(x))), m.convs, m.norms)(x)
        ),
        None,
    ),
    "a loop and one turn more": (
        lambda m, x: one_of(m.convs, 1)(scan(lambda x, c, n: nnx.tanh(n(c(x))), m.convs, m.norms)(x)),
        set(),
    ),
    "in a loop and behind it": (
        lambda m, x: m.norm(m.conv(scan(lambda x, c: nnx.tanh(m.norm(m.conv(x)) + c(x)), m.convs)(x))),
        None,
    ),
    "across the border": (lambda m, x: m.norm(jax.lax.fori_loop(0, 2, lambda _, x: m.conv(nnx.tanh(x)), x)), set()),
    "two turns": (
        lambda m, x: jax.lax.fori_loop(0, 2, lambda _, pair: (m.conv(nnx.tanh(pair[1])), m.norm(pair[0])), (x, x)),
        set(),
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name):
    """What must go (None: it may), and whatever goes, all outputs stay."""
    loop, gone = LOOPS[name]
    fused = fused_and_same(build(Loop, loop), IMAGES, others=[(array(3, 12, 12, 4),)])
    if gone is not None:
        assert paths(fused, FoldedNorm) == gone


class TrainedAtTheCall(nnx.Module):
    def __init__(self, in_evaluation=None, mask_shape=None, *, rngs):
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.in_evaluation = in_evaluation
        self.mask_shape = mask_shape

    def __call__(self, x):
        mask = None if self.mask_shape is None else jnp.ones(self.mask_shape, bool)
        return self.norm(self.conv(nnx.relu(self.first(x))), self.in_evaluation, mask=mask)


def test_training_mode_asked_for_at_the_call():
    """Trap 8."""
    model = build(TrainedAtTheCall, False)
    fused = fuse_params(model, shapes(IMAGES))
    assert norms_left(fused) == {"norm"}
    assert "train" in reasons(model, shapes(IMAGES))["norm"]
    call = nnx.jit(lambda model: (model(IMAGES), nnx.state(model.norm)))
    assert_trees_close(call(fused), call(model), ROUNDING_F64)


def test_evaluation_asked_for_at_the_call():
    model = build(TrainedAtTheCall, True)
    assert norms_left(fused_and_same(model, IMAGES)) == set()


def test_a_masked_norm_stays():
    model = build(TrainedAtTheCall, mask_shape=(2, 8, 8, 1))
    assert norms_left(fused_and_same(model, IMAGES)) <= {"norm"}


class MaskedConv(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), mask=jnp.tril(jnp.ones((3, 3, 4, 4))), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.before = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Conv(4, 4, (1, 1), mask=jnp.tril(jnp.ones((1, 1, 4, 4))), rngs=rngs)

    def __call__(self, x):
        return self.linear(self.before(nnx.relu(self.norm(self.conv(x)))))


def test_a_convolution_with_a_mask():
    model = randomised(MaskedConv(rngs=nnx.Rngs(0)))
    model.eval()
    fused_and_same(model, IMAGES)


class CustomProduct(nnx.Module):
    """Layers that do not multiply by their kernel as it is."""

    def __init__(self, *, rngs):
        def standardised(x, kernel, *arguments, **options):
            kernel = kernel / kernel.std((0, 1, 2), keepdims=True)
            return jax.lax.conv_general_dilated(x, kernel, *arguments, **options)

        def clipped(x, kernel, *arguments, **options):
            return jax.lax.dot_general(x, jnp.clip(kernel, -0.3, 0.3), *arguments, **options)

        self.conv = nnx.Conv(4, 4, (3, 3), conv_general_dilated=standardised, rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 4, dot_general=clipped, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm2(self.linear(nnx.relu(self.norm1(self.conv(x)))))


def test_layers_with_a_product_of_their_own_stay():
    model = build(CustomProduct)
    assert norms_left(fused_and_same(model, IMAGES)) == {"norm1", "norm2"}


class StandardisedConv(nnx.Conv):
    def __call__(self, x):
        kernel = self.kernel[...]
        kernel = kernel / kernel.std((0, 1, 2), keepdims=True)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class ReLUNorm(nnx.BatchNorm):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class NamedConv(nnx.Conv):
    """Changes nothing that is computed."""

    def describe(self):
        return f"{self.in_features} → {self.out_features}"


class Subclasses(nnx.Module):
    def __init__(self, *, rngs):
        self.conv1 = StandardisedConv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm2 = ReLUNorm(4, rngs=rngs)
        self.conv3 = NamedConv(4, 4, (3, 3), rngs=rngs)
        self.norm3 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        return self.norm3(self.conv3(x))


def test_subclasses_with_a_call_of_their_own_stay():
    model = build(Subclasses)
    fused = fused_and_same(model, IMAGES)
    assert norms_left(fused) == {"norm1", "norm2"}
    assert type(fused.conv3) is NamedConv
    assert fused.conv3.describe() == "4 → 4"
    said = reasons(model, shapes(IMAGES))
    assert re.search("StandardisedConv|__call__|no", said["norm1"])
    assert re.search("ReLUNorm|__call__", said["norm2"])


class AfterConv(nnx.Module):
    """A norm that reads what `between` makes of a convolution's output."""

    def __init__(self, between, conv=nnx.Conv, *, rngs):
        self.conv = conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.between = between

    def __call__(self, x):
        return nnx.tanh(self.norm(self.between(self, self.conv(x))))


BEFORE_A_NORM = {
    "activation": (lambda model, x: nnx.relu(x), nnx.Conv, "not into what is before it: max lies in between"),
    "padded pool": (
        lambda model, x: nnx.avg_pool(x, (3, 3), padding="SAME"),
        nnx.Conv,
        "not into what is before it: a pool with padding lies in between",
    ),
    "call of its own": (
        lambda model, x: x,
        StandardisedConv,
        "not into what is before it: conv lies in between, and StandardisedConv overrides __call__",
    ),
    "mask": (
        lambda model, x: x,
        functools.partial(nnx.Conv, mask=jnp.ones((3, 3, 4, 4))),
        "not into what is before it: conv lies in between, and it has a mask",
    ),
    "skip": (lambda model, x: x + nnx.relu(x), nnx.Conv, "not into what is before it: add lies in between"),
    "loop": (
        lambda model, x: jax.lax.fori_loop(0, 2, lambda _, x: nnx.relu(x), x),
        nnx.Conv,
        "not into what is before it: scan lies in between",
    ),
    "other norm": (lambda model, x: model.norm(nnx.relu(x)), nnx.Conv, "not into what is before it: norm lies in betw"),
    "input": (lambda model, x: jnp.ones_like(x), nnx.Conv, "not into what is before it: broadcast_in_dim lies in"),
}


@pytest.mark.parametrize("name", BEFORE_A_NORM)
def test_the_report_says_what_lies_before_a_norm(name):
    between, conv, reason = BEFORE_A_NORM[name]
    model = build(functools.partial(AfterConv, between, conv), dtype=jnp.float32)
    said = reasons(model, jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32))["norm"]
    assert reason in said
    assert "not into what is after it: tanh lies in between" in said


class ReadingAttributes(nnx.Module):
    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 6, (3, 3), rngs=rngs)
        self.side = ConvNorm(4, 6, (1, 1), rngs=rngs)

    def __call__(self, x):
        y = self.pair(x) + self.side(x)
        return y.reshape(-1, self.pair.norm.num_features) * self.side.conv.out_features * self.side.norm.epsilon


def test_what_is_replaced_keeps_its_attributes():
    """Trap 10."""
    fused = fused_and_same(build(ReadingAttributes), IMAGES)
    assert paths(fused, FoldedNorm) == {"pair.norm", "side.norm"}
    assert paths(fused, FoldedBranch) == {"side.conv"}
    assert fused.side.conv.strides == 1
    assert fused.pair.norm.num_features == 6
    assert not jax.tree.leaves(nnx.state((fused.side.conv, fused.pair.norm)))
    assert "use_bias" not in nnx.state(fused)
    assert fused.pair.conv.use_bias is True
    assert fused.pair.conv.bias.shape == (6,)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_identity_promotes_as_the_norm_did(dtype):
    """A convolution of 16 bits before a norm of 32 gives 32 bits; the report says what is lost."""

    class Mixed(nnx.Module):
        def __init__(self, *, rngs):
            self.conv = nnx.Conv(4, 4, (3, 3), dtype=dtype, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x))

    model = build(Mixed, dtype=None)
    x = array(2, 8, 8, 4, dtype=jnp.float32)
    fused = fuse_params(model, shapes(x))
    assert fused(x).dtype == model(x).dtype == jnp.float32
    assert_close(fused(x), model(x), ROUNDING_BF16)
    (row,) = (row for row in fuse_report(model, shapes(x)).blocks if row.path == "norm")
    assert jnp.dtype(dtype).name in str(row)


def test_folding_while_jit_is_disabled():
    """Trap 11."""
    model = build(nets.MobileOne)
    with jax.disable_jit():
        fused = fuse_params(model, shapes(IMAGES))
    assert norms_left(fused) == set()
    assert_same(fused, fuse_params(model, shapes(IMAGES)), (IMAGES,))


class Branches(nnx.Module):
    """Convolutions of one input, added."""

    def __init__(self, *branches, rngs):
        self.branches = nnx.List([nnx.Conv(4, 4, **branch, rngs=rngs) for branch in branches])

    def __call__(self, x):
        return sum(branch(x) for branch in self.branches)


def conv(side, **options):
    return dict(kernel_size=(side, side) if isinstance(side, int) else side, **options)


MERGED = {
    "3×3 and 1×1": (conv(3), conv(1)),
    "1×1 first": (conv(1), conv(3)),
    "even": (conv(4), conv(2)),
    "even of other offsets": (conv(4, padding=((1, 2), (1, 2))), conv(2, padding=((0, 1), (0, 1)))),
    "even in odd": (conv(3), conv(2, padding=((0, 1), (1, 0)))),
    "valid in valid": (conv(3, padding="VALID"), conv(3, padding=0)),
    "1×1 cropped": (conv(3, padding="VALID"), conv(1, padding=-1)),
    "strides": (conv(3, strides=2, padding=1), conv(1, strides=2, padding=0)),
    "same strides, one extent": (conv(1, strides=2), conv(1, strides=(2, 2))),
    "dilated": (conv(5), conv(3, kernel_dilation=2), conv(2, kernel_dilation=(4, 2))),
    "dilated in dilated": (conv(3, kernel_dilation=2), conv(1)),
    "groups": (conv(3, feature_group_count=2), conv(1, feature_group_count=2)),
    "groups in dense": (conv(3), conv(3, feature_group_count=4), conv(1, feature_group_count=2)),
    "circular": (conv(3, padding="CIRCULAR"), conv(1, padding="CIRCULAR")),
    "circular with 1×1": (conv(3, padding="CIRCULAR"), conv(1)),
    "reflect with 1×1": (conv(3, padding="REFLECT"), conv(1)),
    "upright and flat in square": (conv(3), conv((3, 1)), conv((1, 3))),
    "large": (conv(31), conv(5)),
}


@pytest.mark.parametrize(
    ("shape", "kernel_size", "padding"),
    [
        ((2, 8, 4), (3,), "CAUSAL"),
        ((2, 8, 4), (5,), "SAME"),
        ((2, 3, 8, 8, 4), (3, 3), "SAME"),
        ((8, 8, 4), (3, 3), 1),
        ((1, 4, 4, 4, 4), (3, 3, 3), "SAME"),
    ],
    ids=["causal", "one axis", "two axes of images", "one image", "three axes"],
)
def test_maps_of_other_shapes(shape, kernel_size, padding):
    class Mapped(nnx.Module):
        def __init__(self, *, rngs):
            self.conv = nnx.Conv(4, 4, kernel_size, padding=padding, rngs=rngs)
            self.side = nnx.Conv(4, 4, (1,) * len(kernel_size), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.identity = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x)) + self.side(x) + self.identity(x)

    fused = fused_and_same(build(Mapped), array(*shape))
    assert paths(fused, FoldedBranch) == {"side", "identity"}


class Mixed(nnx.Module):
    """Sums of layers of other kinds than a convolution."""

    def __init__(self, *layers, rngs):
        self.layers = nnx.List([make(rngs=rngs) for make in layers])

    def __call__(self, x):
        return sum(layer(x) for layer in self.layers)


LINEAR, NORM = functools.partial(nnx.Linear, 4, 4), functools.partial(nnx.BatchNorm, 4)
POINTWISE = functools.partial(nnx.Conv, 4, 4, (1, 1))
TRANSPOSED = functools.partial(nnx.ConvTranspose, 4, 4)
MIXTURES = {
    "linear": (LINEAR, LINEAR),
    "linear and norm": (LINEAR, NORM),
    "linear and pointwise": (LINEAR, POINTWISE, NORM),
    "large and linear": (functools.partial(nnx.Conv, 4, 4, (3, 3)), LINEAR),
    "norms": (NORM, NORM),
    "general": (functools.partial(nnx.LinearGeneral, 4, 4), functools.partial(nnx.LinearGeneral, (4,), (4,)), LINEAR),
    "transposed": (functools.partial(TRANSPOSED, (3, 3)), functools.partial(TRANSPOSED, (3, 3))),
    "transposed beside pointwise": (
        functools.partial(TRANSPOSED, (3, 3)),
        POINTWISE,
        functools.partial(TRANSPOSED, (1, 1)),
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_sums_of_other_layers(name):
    """Whether they become one or not, the outputs stay."""
    with contextlib.suppress(UserWarning):
        fused_and_same(build(Mixed, *MIXTURES[name]), IMAGES)


def check_branches(branches, *, merged: bool, dense_groups=False):
    model = build(Branches, *branches)
    fused = fused_and_same(model, IMAGES, others=[(array(1, 12, 11, 4),)], dense_groups=dense_groups)
    number = len(paths(fused, FoldedBranch))
    assert number == (len(branches) - 1 if merged else 0), reasons(model, shapes(IMAGES))


@pytest.mark.parametrize("name", MERGED)
def test_branches_that_are_one_convolution(name):
    """Trap 12."""
    check_branches(MERGED[name], merged=True)


NOT_MERGED = {
    "same at a stride": (conv(3, strides=2), conv(1, strides=2)),
    "modes of padding": (conv(3, padding="CIRCULAR"), conv(3)),
    "reflect and circular": (conv(3, padding="CIRCULAR"), conv(3, padding="REFLECT")),
    "more taps than before": (conv((1, 9)), conv((9, 1))),
    "no common grid": (conv(3, kernel_dilation=2), conv(3)),
    "a depthwise one is the larger": (conv(3, feature_group_count=4), conv(1)),
    "an input's dilation": (
        conv(3, input_dilation=2, padding=(0, 0)),
        conv(3, input_dilation=2, padding=(0, 0), mask=None),
    ),
}


@pytest.mark.parametrize("name", NOT_MERGED)
def test_branches_that_stay_apart(name):
    """Traps 12 and 13; of those with a dilated input only the outputs are compared."""
    branches = NOT_MERGED[name]
    if name == "an input's dilation":
        fused_and_same(build(Branches, *branches), IMAGES)
    else:
        check_branches(branches, merged=False)


def test_groups_become_dense_where_asked_for():
    branches = conv(3, feature_group_count=4), conv(1)
    check_branches(branches, merged=True, dense_groups=True)


class Sums(nnx.Module):
    """A sum with more in it than convolutions of one input."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.third = ConvNorm(4, 4, (1, 1), rngs=rngs)
        self.fourth = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.last = nnx.Linear(4, 4, rngs=rngs)
        self.last_side = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.first(x) + x + self.second(x))  # a skip within
        z = self.third(y) - self.fourth(y)  # a difference
        z = z + 2 * self.norm(y)  # a factor
        return self.last(z) + self.last_side(z)


def test_sums_of_more_than_branches():
    fused = fused_and_same(build(Sums), IMAGES, others=[(array(3, 12, 12, 4),)])
    assert {"first.norm", "third.norm"} <= paths(fused, FoldedNorm)


class SharedBranch(nnx.Module):
    """A branch whose output is used beside the sum; a sum of one branch with itself; one of other inputs."""

    def __init__(self, *, rngs):
        self.first = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.side = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.twice = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.other = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        side = self.side(x)
        y = self.first(x) + side
        z = self.twice(y)
        return z + z, side, self.other(x) + self.other(nnx.relu(x))


def test_branches_that_are_used_elsewhere():
    fused = fused_and_same(build(SharedBranch), IMAGES)
    assert paths(fused, FoldedBranch) == set()


# What was traced is what is folded.


class Closures(nnx.Module):
    def __init__(self, *, rngs):
        hidden = randomised(ConvNorm(4, 4, (3, 3), rngs=rngs), seed=3)
        hidden.eval()
        self.hidden = lambda x: hidden(x)
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.pair(nnx.relu(self.hidden(x)))


def test_layers_in_closures_are_left():
    """Trap 16."""
    model = randomised(Closures(rngs=nnx.Rngs(0)))
    model.eval()
    assert norms_left(fused_and_same(model, IMAGES)) == set()


class Encoder(nnx.Module):
    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.head = ConvNorm(4, 3, (1, 1), rngs=rngs)

    def encode(self, x, strength=1.0):
        return strength * nnx.relu(self.pair(x))

    def __call__(self, x):
        return self.head(self.encode(x))


def encode(model, x):
    return model.encode(x, strength=0.5)


def test_another_call_than_the_model_itself():
    model = build(Encoder)
    fused = fused_and_same(model, IMAGES, call=encode)
    assert norms_left(fused) == {"head.norm"}
    assert fused.folding.call is encode
    assert_same(model, fused, (IMAGES,))
    assert set(places(model, shapes(IMAGES), call=encode)) == {"pair.norm"}


def test_several_inputs():
    model = build(nets.TwoInputs)
    inputs = array(2, 8, 8, 3), array(2, 5), jnp.arange(2)
    fused = fused_and_same(model, *inputs, others=[(array(3, 12, 12, 3), array(3, 5), jnp.arange(3))])
    assert norms_left(fused) == {"class_norm"}
    assert fused.folding == Folding((((2, 8, 8, 3), "float64"), ((2, 5), "float64"), ((2,), "int64")))


@pytest.mark.parametrize(
    "example",
    [IMAGES, (IMAGES,), shapes(IMAGES), (shapes(IMAGES),), np.zeros((2, 8, 8, 4))],
    ids=["array", "arrays", "shape", "shapes", "NumPy"],
)
def test_examples_are_arrays_or_shapes(example):
    fused = fuse_params(build(nets.ACNet), example)
    assert norms_left(fused) == set()
    assert fused.folding == Folding((((2, 8, 8, 4), "float64"),))


def test_this_librarys_blocks_and_norms():
    """Trap 15."""
    x = array(2, 8, 8, 3)
    fused = fused_and_same(build(nets.WithOurs), x)
    assert norms_left(fused) == set()
    assert not hasattr(fused.block, "fused")
    assert paths(fused, FoldedBranch) == {"side"}
