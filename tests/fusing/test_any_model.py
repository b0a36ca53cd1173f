"""`fuse_params(model, example)` on nets that know nothing of it: what goes, what stays and why, and nothing changes."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from cases import quick_jit, random_array
from flax import nnx
from nets import ConvNorm, build, randomised
from tolerance import ROUNDING_BF16, ROUNDING_F64, assert_close, assert_identical, assert_trees_close

from repmlp_jax import RepMLP, fuse_params, fuse_report
from repmlp_jax.blocks.layers import BatchNorm as OurBatchNorm
from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm, Folding
from repmlp_jax.models.randomness import abstract

NORMS = nnx.BatchNorm, OurBatchNorm


@pytest.fixture(autouse=True)
def as_others_write_them():
    """Flax's average pools and statistics mix dtypes, as nets of others do."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def array(*shape, seed=1, dtype=jnp.float64):
    return jnp.asarray(random_array(*shape, seed=seed), dtype)


IMAGES = array(2, 8, 8, 4)


def shapes(*inputs):
    """The abstract arrays of inputs; of a single one, it alone."""
    found = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in inputs)
    return found if len(found) > 1 else found[0]


def paths(model, *kinds) -> set[str]:
    """The dotted paths of the modules of some classes, each module once."""
    return {".".join(map(str, path)) for path, node in nnx.iter_graph(model) if isinstance(node, kinds)}


def norms_left(model):
    return paths(model, *NORMS)


def run(model, *inputs):
    return model(*inputs)


def reasons(model, example, **options) -> dict[str, str]:
    """Path of what stays → why, as the report has it."""
    rows = fuse_report(model, example, **options).blocks
    return {row.path: " ".join(row.kept.values()) for row in rows if row.kept}


def places(model, example, **options) -> dict[str, str]:
    """Path of what is folded → where it goes, as the report has it."""
    rows = fuse_report(model, example, **options).blocks
    return {row.path: " ".join(row.folded.values()) for row in rows if row.folded}


def assert_same(model, fused, *calls, call=run, tolerance=ROUNDING_F64):
    """Asserts that two models have the same outputs, in one program for all inputs."""

    def both(model, fused):
        return [[call(one, *inputs) for one in (fused, model)] for inputs in calls]

    for actual, expected in quick_jit(both)(model, fused):
        assert_trees_close(actual, expected, tolerance)


def fused_and_same(model, *inputs, others=(), **options):
    """The fused model, whose outputs are the same for the inputs and for others."""
    fused = fuse_params(model, shapes(*inputs), **options)
    assert_same(model, fused, inputs, *others, call=options.get("call", run) or run)
    return fused


def expand(text: str) -> set[str]:
    """'a.{b,c}.d e' → {'a.b.d', 'a.c.d', 'e'}."""
    found = set()
    for word in text.split():
        head, brace, rest = word.partition("{")
        if not brace:
            found.add(word)
            continue
        options, _, tail = rest.partition("}")
        found |= {end for option in options.split(",") for end in expand(head + option + tail)}
    return found


@dataclasses.dataclass
class Case:
    """A net and what becomes of it.

    Attributes:
        make: its class.
        shape: of its input, or inputs.
        norms: what is folded into another layer.
        branches: what became a part of a parallel convolution.
        kept: norm that stays → why.
        others: shapes of further inputs, by default three images of 12 × 12.
    """

    make: type
    shape: tuple = (2, 8, 8, 4)
    norms: str = ""
    branches: str = ""
    kept: dict[str, str] = dataclasses.field(default_factory=dict)
    others: tuple = None

    def inputs(self):
        larger = (3, 12, 12, self.shape[-1]) if len(self.shape) == 4 else (3, *self.shape[1:])
        return [(array(*shape, seed=seed),) for seed, shape in enumerate((self.shape, self.others or larger))]


ACTIVATION = "relu|activation|no convolution|max"
USED_TWICE = "used|several|twice|another"
RGB = (2, 8, 8, 3)
NETS = {
    "RepVGG": Case(
        nets.RepVGG,
        RGB,
        "blocks.{0,1,2}.{conv3x3,conv1x1}.norm",
        "blocks.{0,1,2}.conv1x1.conv blocks.2.identity",
    ),
    "RepVGG with SE": Case(
        functools.partial(nets.RepVGG, attention=True),
        RGB,
        "blocks.{0,1,2}.{conv3x3,conv1x1}.norm",
        "blocks.{0,1,2}.conv1x1.conv blocks.2.identity",
    ),
    "MobileOne": Case(
        nets.MobileOne,
        norms="depthwise.{branches.0,branches.1,scale}.norm pointwise.branches.{0,1}.norm",
        branches="depthwise.{branches.1,scale}.conv depthwise.skip pointwise.branches.1.conv",
    ),
    "ACNet": Case(nets.ACNet, norms="{square,upright,flat}.norm", branches="{upright,flat}.conv"),
    "RepLKNet": Case(
        nets.RepLKNet,
        RGB,
        "block.norm block.{enter,large,small,leave}.norm ffn.norm ffn.{expand,project}.norm",
        "block.small.conv",
    ),
    "dilated": Case(
        nets.DilatedReparam, norms="large.norm dilated.{0,1,2}.norm", branches="dilated.{0,1,2}.conv"
    ),
    "ResNet": Case(
        nets.ResNet, RGB, "stem.norm stages.{0,1,2}.{bn1,bn2,bn3} stages.{0,2}.shortcut.layers.1"
    ),
    "pre-activation ResNet": Case(
        nets.PreActivationResNet,
        RGB,
        "blocks.layers.{0,1}.norm2",
        kept=dict.fromkeys(expand("blocks.layers.{0,1}.norm1 norm"), ACTIVATION),
    ),
    "DenseNet": Case(
        nets.DenseNet,
        RGB,
        "stem.norm first.{0,1}.norm2 second.norm2",
        kept=dict.fromkeys(expand("first.{0,1}.norm1 transition_norm second.norm1 norm"), ACTIVATION),
    ),
    "SE": Case(nets.SEResNet, norms="{conv1,conv2}.norm"),
    "EfficientNet": Case(
        nets.EfficientNet, RGB, "stem.norm blocks.{0,1}.{expand,depthwise,project}.norm top.norm"
    ),
    "U-Net": Case(
        nets.UNet, RGB, "{down.0,down.1,bottom,merge.0,merge.1}.layers.layers.{1,4} up_norms.{0,1}"
    ),
    "tied weights": Case(
        nets.TiedAutoencoder, (4, 6), "norm3", kept=dict.fromkeys(("norm1", "norm2"), "parameters|shared|elsewhere")
    ),
    "one norm for two convs": Case(nets.OneNormForTwoConvs, kept={"norm": "called"}),
    "one conv for two norms": Case(nets.OneConvForTwoNorms, kept=dict.fromkeys(("norm1", "norm2"), "called")),
    "two norms of one value": Case(nets.TwoNormsOfOneValue, kept=dict.fromkeys(("norm1", "norm2"), USED_TWICE)),
    "recurrent": Case(nets.Recurrent, norms="cell.norm"),
    "odd norms": Case(nets.OddNorms, norms="norm1 norm2 norm3 norm4"),
    "MLP": Case(nets.MLP, (4, 6), "norm_in norm1 norm2"),
    "norm before several": Case(nets.NormBeforeSeveral, (2, 5, 6), "norm"),
    "average pools": Case(nets.PoolsBetween, norms="norm1 norm2"),
    "max pools": Case(nets.MaxPoolsBetween, kept=dict.fromkeys(("norm1", "norm2"), ACTIVATION)),
    "patches": Case(nets.Patches, RGB, "norm", kept={"mixed_norm": "reshape|channels"}),
    "heads": Case(nets.Heads, (2, 5, 6), "split_norm norm"),
    "others": Case(nets.Others, kept={"norm1": "GroupNorm|no|comes", "norm2": "WeightNorm|parameter|kernel|no"}),
    "containers": Case(nets.Containers, norms="norms.{0,1} pair.1 net.layers.1"),
    "scan": Case(nets.Scanned, norms="blocks.norm last.norm"),
    "scanned RepVGG": Case(
        nets.ScannedRepVGG, norms="blocks.{conv3x3,conv1x1}.norm last.norm", branches="blocks.conv1x1.conv blocks.identity"
    ),
    "ensemble": Case(nets.Ensemble, norms="members.norm"),
    "remat": Case(nets.Rematerialised, norms="{first,second,third}.norm"),
    "cond": Case(nets.Conditional, norms="inner.norm", kept={"norm": "branch|cond"}),
    "auxiliary head": Case(nets.AuxiliaryHead, norms="body.norm", kept={"norm": USED_TWICE}),
    "padding": Case(nets.NormBeforePadding, norms="norm2", kept={"norm1": "pad"}),
}


@pytest.mark.parametrize("name", NETS)
def test_what_goes_and_what_stays(name):
    case = NETS[name]
    model, inputs = build(case.make), case.inputs()
    example = shapes(*inputs[0])
    fused = fuse_params(model, example)
    assert paths(fused, FoldedNorm) == expand(case.norms)
    assert paths(fused, FoldedBranch) == expand(case.branches)
    assert norms_left(fused) == set(case.kept)
    rows = {row.path: row for row in fuse_report(model, example).blocks}
    assert {path for path, row in rows.items() if row.folded} >= expand(case.norms) | expand(case.branches)
    for path, reason in case.kept.items():
        said = " ".join(rows[path].kept.values())
        assert re.search(reason, said, re.IGNORECASE), f"{path}: {said}"
    assert_same(model, fused, *inputs)


# The traps, first those that gave wrong answers.


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
    ids=["mean", "keepdims", "sum over count", "twice", "pool", "global pool", "reshape", "transpose", "slice", "dropout"],
)
def test_what_is_linear_lets_a_norm_through(between):
    """Trap 9: means with keepdims, and other means, have the weight one."""
    fused = fused_and_same(build(nets_closing(between)), IMAGES, others=[(array(3, 12, 12, 4),)])
    if between(jnp.ones((1, 4, 4, 6))).shape != (1, 2, 3, 6):  # a slice may be let through
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
    assert re.search(USED_TWICE, reasons(model, shapes(IMAGES))["norm"])
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
    if norms_left(fused):
        assert re.search("axis|stack", reasons(model, shapes(IMAGES))["members.norm"])


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
    "use_bias": lambda model: not model.pair.conv.use_bias,
    "kind": lambda model: isinstance(model.pair.norm, nnx.BatchNorm),
    "name": lambda model: type(model.side.norm).__name__ == "BatchNorm",
    "scale": lambda model: hasattr(model.pair.norm, "scale"),
    "branch": lambda model: isinstance(model.side.conv, nnx.Conv),
    "class": lambda model: type(model.pair.conv) is not nnx.Conv,
    "size": lambda model: model.side.norm.num_features == 4,
    "leaves": lambda model: len(jax.tree.leaves(nnx.state(model.pair))) > 2,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_code_that_looks_at_its_layers(question):
    """Trap 4: what does not depend on the answer is folded all the same."""
    fused = fused_and_same(build(Looking, QUESTIONS[question]), IMAGES)
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


@pytest.mark.parametrize("transform", [nnx.remat, nnx.jit, jax.jit, jax.checkpoint], ids=["remat", "nnx.jit", "jit", "checkpoint"])
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
        _, x = jax.lax.while_loop(lambda pair: pair[0] < 2, lambda pair: (pair[0] + 1, nnx.tanh(self.same(pair[1]))), (0, x))
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


class TrainedAtTheCall(nnx.Module):
    def __init__(self, **options):
        rngs = options.pop("rngs")
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.options = options

    def __call__(self, x):
        return self.norm(self.conv(nnx.relu(self.first(x))), **self.options)


def test_training_mode_asked_for_at_the_call():
    """Trap 8."""
    model = build(TrainedAtTheCall, use_running_average=False)
    fused = fuse_params(model, shapes(IMAGES))
    assert norms_left(fused) == {"norm"}
    assert "train" in reasons(model, shapes(IMAGES))["norm"]
    call = nnx.jit(lambda model: (model(IMAGES), nnx.state(model.norm)))
    assert_trees_close(call(fused), call(model), ROUNDING_F64)


def test_evaluation_asked_for_at_the_call():
    model = build(TrainedAtTheCall, use_running_average=True)
    assert norms_left(fused_and_same(model, IMAGES)) == set()


def test_a_masked_norm_stays():
    model = build(TrainedAtTheCall, mask=np.ones((2, 8, 8, 1), bool))
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
            kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
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
        kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
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
    assert_identical(fused, fuse_params(model, shapes(IMAGES)))


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


def check_branches(branches, *, merged: bool, dense_groups=False):
    model = build(Branches, *branches)
    fused = fused_and_same(model, IMAGES, others=[(array(1, 12, 11, 4),)], dense_groups=dense_groups)
    number = len(paths(fused, FoldedBranch))
    assert number == (len(branches) - 1 if merged else 0), reasons(model, shapes(IMAGES))


@pytest.mark.parametrize("name", MERGED)
def test_branches_that_are_one_convolution(name):
    """Trap 12."""
    check_branches(MERGED[name], merged=True)


APART = {
    "strides differ": (conv(3, padding=1), conv(3, strides=1, padding=(1, 1), kernel_dilation=1, input_dilation=1)),
}
NOT_MERGED = {
    "same at a stride": (conv(3, strides=2), conv(1, strides=2)),
    "modes of padding": (conv(3, padding="CIRCULAR"), conv(3)),
    "reflect and circular": (conv(3, padding="CIRCULAR"), conv(3, padding="REFLECT")),
    "more taps than before": (conv((1, 9)), conv((9, 1))),
    "no common grid": (conv(3, kernel_dilation=2), conv(3)),
    "a depthwise one is the larger": (conv(3, feature_group_count=4), conv(1)),
    "an input's dilation": (conv(3, input_dilation=2, padding=(0, 0)), conv(3, input_dilation=2, padding=(0, 0), mask=None)),
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


@pytest.mark.parametrize("example", [IMAGES, (IMAGES,), shapes(IMAGES), (shapes(IMAGES),)], ids=str)
def test_examples_are_arrays_or_shapes(example):
    fused = fuse_params(build(nets.ACNet), example)
    assert norms_left(fused) == set()
    assert fused.folding == Folding((((2, 8, 8, 4), "float64"),))


class WithOurs(nnx.Module):
    """This library's blocks and norms between layers of Flax."""

    def __init__(self, *, rngs):
        self.stem = ConvNorm(3, 4, (3, 3), rngs=rngs)
        self.block = RepMLP(4, 4, image_size=(8, 8), partition_size=(4, 4), groups=2, conv_kernels=(1, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = OurBatchNorm(4, rngs=rngs)
        self.side = nnx.Conv(4, 4, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.block(nnx.relu(self.stem(x))))
        return self.norm(self.conv(x)) + self.side(x)


def test_this_librarys_blocks_and_norms():
    """Trap 15."""
    x = array(2, 8, 8, 3)
    fused = fused_and_same(build(WithOurs), x)
    assert norms_left(fused) == set()
    assert not hasattr(fused.block, "fused")
    assert paths(fused, FoldedBranch) == {"side"}


# A pure function.


MODEL = functools.cache(lambda: build(nets.ScannedRepVGG))


def test_within_jit():
    fused = nnx.jit(lambda model: fuse_params(model, IMAGES))(MODEL())
    assert_identical(fused, fuse_params(MODEL(), IMAGES))


@pytest.mark.slow
def test_within_jax_jit():
    fused = jax.jit(lambda model: fuse_params(model, IMAGES))(MODEL())
    assert_same(MODEL(), fused, (IMAGES,))


def test_the_input_may_be_traced():
    def both(model, x):
        return fuse_params(model, x)(x), model(x)

    assert_trees_close(*quick_jit(both)(build(nets.ACNet), IMAGES), ROUNDING_F64)


def test_abstract_models():
    make = abstract(nets.RepVGG)
    make.eval()
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    fused = nnx.eval_shape(lambda model: fuse_params(model, example), make)
    concrete = fuse_params(build(nets.RepVGG, dtype=jnp.float32), example)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(fused)) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), nnx.state(concrete)
    )
    assert nnx.graphdef(fused) == nnx.graphdef(concrete)
    assert str(fuse_report(make, example)) == str(fuse_report(build(nets.RepVGG, dtype=jnp.float32), example))


def test_a_stack_of_models():
    models = [build(nets.ACNet, seed=seed) for seed in range(2)]
    graphdef = nnx.graphdef(models[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, models))

    def fuse(state):
        return nnx.state(fuse_params(nnx.merge(graphdef, state), IMAGES))

    found = jax.vmap(fuse)(states)
    for number, model in enumerate(models):
        expected = nnx.state(fuse_params(model, IMAGES))
        assert_trees_close(jax.tree.map(lambda leaf, number=number: leaf[number], found), expected, ROUNDING_F64)


def test_gradients_flow_through():
    model = build(nets.ACNet)

    def loss(model, fused):
        y = fuse_params(model, IMAGES)(IMAGES) if fused else model(IMAGES)
        return jnp.mean(jnp.sin(y))

    gradients = [quick_jit(jax.grad(functools.partial(loss, fused=fused)))(model) for fused in (True, False)]
    assert_trees_close(*(nnx.state(gradient, nnx.Param) for gradient in gradients), 1e-10)


def test_shardings_are_kept():
    mesh = jax.make_mesh((4,), ("model",))
    model = build(nets.ACNet)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    graphdef, state = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(state, sharding))
    fused = fuse_params(placed, IMAGES)
    assert {leaf.sharding.device_set == sharding.device_set for leaf in jax.tree.leaves(nnx.state(fused))} == {True}
    assert_trees_close(nnx.state(fused), nnx.state(fuse_params(model, IMAGES)), ROUNDING_F64)


def test_the_given_model_is_unchanged():
    model, twin = build(nets.ScannedRepVGG), build(nets.ScannedRepVGG)
    model.train()
    twin.train()
    fuse_params(model, IMAGES)
    fuse_report(model, IMAGES)
    assert_identical(model, twin)


def test_a_training_model_is_fused_as_in_evaluation():
    model = build(nets.EfficientNet)
    training = nnx.clone(model)
    training.train()
    x = array(2, 8, 8, 3)
    fused = fuse_params(training, x)
    assert fused.dropout.deterministic
    assert_identical(fused, fuse_params(model, x))


def test_fusing_a_fused_model_changes_nothing():
    fused = fuse_params(build(nets.PreActivationResNet), array(2, 8, 8, 3))
    assert_identical(fuse_params(fused, array(2, 8, 8, 3)), fused)


def test_a_model_with_nothing_to_fold_warns():
    class Plain(nnx.Module):
        def __init__(self, *, rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)

    with pytest.warns(UserWarning, match="nothing to fuse"):
        fuse_params(build(Plain), array(2, 4))


def test_the_model_itself_is_a_layer():
    norm = build(functools.partial(nnx.BatchNorm, 4))
    with contextlib.suppress(UserWarning), pytest.warns(UserWarning, match="nothing"):
        fused = fuse_params(norm, array(2, 4))
    assert_same(norm, fused, (array(2, 4),))


def test_without_an_example_all_is_as_before():
    model = build(WithOurs)
    fused = fuse_params(model)
    assert norms_left(fused) == {"stem.norm", "norm"}
    assert not hasattr(fused, "folding")


# Dtypes.


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, None])
def test_a_model_of_16_bits(dtype, param_dtype):
    model = build(nets.LowPrecision, dtype, param_dtype or dtype, dtype=None)
    x = array(2, 8, 8, 4, dtype=dtype)
    fused = fuse_params(model, shapes(x))
    assert norms_left(fused) == set()
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(fused))} == {jnp.dtype(param_dtype or dtype)}
    actual, expected = jax.jit(run)(fused, x), jax.jit(run)(model, x)
    assert actual.dtype == expected.dtype
    assert_close(actual, expected, ROUNDING_BF16)


def test_float32_is_folded_at_the_highest_precision():
    model = build(nets.ResNet, dtype=jnp.float32)
    x = array(2, 8, 8, 3, dtype=jnp.float32)
    fused = fuse_params(model, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(fused))} == {jnp.dtype(jnp.float32)}
    assert_same(model, fused, (x,), tolerance=1e-5)


# A part of a model.


def test_only_a_part_is_folded():
    model = build(nets.ResNet)
    x = array(2, 8, 8, 3)
    for only, gone in (
        ("stem.norm", {"stem.norm"}),
        ("stem", {"stem.norm"}),
        (("stem", "stages.1.bn1"), {"stem.norm", "stages.1.bn1"}),
        (nnx.PathContains("stem"), {"stem.norm"}),
    ):
        fused = fuse_params(model, x, only=only)
        assert paths(fused, FoldedNorm) == gone
        assert set(places(model, x, only=only)) == gone
    assert_same(model, fused, (x,))


def test_the_rest_stays_trainable():
    model = build(nets.ResNet, dtype=jnp.float32)
    x = array(2, 8, 8, 3, dtype=jnp.float32)
    fused = fuse_params(model, x, only="stem")
    fused.train()
    before = nnx.state(fused, nnx.BatchStat)["stages"][0]["bn1"]["mean"][...]
    gradients = nnx.jit(nnx.grad(lambda model: jnp.sum(model(x))))(fused)
    assert not np.allclose(before, fused.stages[0].bn1.mean[...])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("only", ["stem.nrm", ("stem", "stages.7"), "head"])
def test_a_path_that_the_model_lacks(only):
    with pytest.raises(ValueError, match="only"):
        fuse_params(build(nets.ResNet), array(2, 8, 8, 3), only=only)


# Shown to be right.


@pytest.mark.parametrize("name", ["RepVGG", "pre-activation ResNet", "scan"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_check_that_agrees(name, dtype):
    case = NETS[name]
    x = array(*case.shape, dtype=dtype)
    model = build(case.make, dtype=dtype)
    assert_identical(fuse_params(model, x, check=True), fuse_params(model, x))


def test_a_check_under_tracing_has_no_effect():
    nnx.jit(lambda model: fuse_params(model, IMAGES, check=True))(build(nets.ACNet))


class Impure(nnx.Module):
    """Another program at every call."""

    calls = 0

    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        Impure.calls += 1
        return Impure.calls * self.pair(x)


def test_a_check_finds_a_model_that_is_no_function():
    with pytest.raises(ValueError, match=r"differ|same"):
        fuse_params(build(Impure), IMAGES, check=True)


# Wrong arguments.


@pytest.mark.parametrize(
    ("example", "error"),
    [
        ("an image", TypeError),
        ([[1.0]], TypeError),
        (4, TypeError),
        ((8, 8, 4), TypeError),
        ((IMAGES, "label"), TypeError),
        (jnp.float32, TypeError),
        ((), (TypeError, ValueError)),
        (array(2, 8, 8, 5), ValueError),
        (array(2, 4), ValueError),
        ((IMAGES, IMAGES), (TypeError, ValueError)),
        (jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.int32), (TypeError, ValueError)),
    ],
    ids=["text", "list", "number", "input shape", "text in a tuple", "dtype", "empty", "channels", "axes", "two", "integers"],
)
def test_a_wrong_example(example, error, unchecked_types):
    model = build(nets.ACNet)
    if example == () or not isinstance(example, jax.ShapeDtypeStruct):
        with pytest.raises(error, match="example|ACNet"):
            fuse_params(model, example)
    else:
        with contextlib.suppress(error):
            fuse_params(model, example)


def test_a_model_that_refuses_its_example_is_named():
    with pytest.raises(ValueError, match=r"(?s)example.*2, ?8, ?8, ?5"):
        fuse_params(build(nets.ACNet), array(2, 8, 8, 5))


@pytest.mark.parametrize("options", [dict(call=3), dict(call="encode"), dict(only=3.0), dict(check="yes"), dict(dense_groups=1.5)], ids=str)
def test_wrong_options(options, unchecked_types):
    with pytest.raises(TypeError, match=next(iter(options))):
        fuse_params(build(nets.ACNet), IMAGES, **options)


@pytest.mark.parametrize("options", [dict(call=run), dict(only="square"), dict(check=True), dict(dense_groups=True)], ids=str)
def test_options_without_an_example(options):
    with pytest.raises((TypeError, ValueError), match="example"):
        fuse_params(build(nets.ACNet), **options)


@pytest.mark.parametrize("model", [nets.ACNet, 3, None])
def test_what_is_no_model(model, unchecked_types):
    with pytest.raises(TypeError, match="model must be an nnx.Module"):
        fuse_params(model, IMAGES)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -1.0])
def test_statistics_that_are_no_statistics(value):
    model = build(nets.ACNet)
    model.flat.norm.var[...] = model.flat.norm.var[...].at[2].set(value)
    with pytest.raises(ValueError, match=r"flat.norm"):
        fuse_params(model, IMAGES)


# The report.


def test_the_report_of_a_net():
    model = build(nets.ACNet)
    found = fuse_report(model, shapes(IMAGES))
    before, after = found.parameters
    assert before == 6 * 4 * (9 + 3 + 3) + 3 * 2 * 6
    assert after == 6 * 4 * 9 + 6
    assert found.macs == (2 * 64 * 6 * 4 * 15, 2 * 64 * 6 * 4 * 9) or found.macs == (64 * 6 * 4 * 15, 64 * 6 * 4 * 9)
    text = str(found)
    for word in ("square.norm", "flat.conv", "square.conv"):
        assert word in text


def test_a_shape_of_an_image_is_an_input_shape_in_the_report():
    model = build(WithOurs, dtype=jnp.float32)
    by_position, by_name = fuse_report(model, (8, 8, 3)), fuse_report(model, input_shape=(8, 8, 3))
    assert by_position == by_name
    assert by_position.macs is not None


def test_places_are_named():
    said = places(build(nets.ACNet), shapes(IMAGES))
    assert "square.conv" in said["square.norm"]
    assert "square.conv" in said["flat.conv"]
