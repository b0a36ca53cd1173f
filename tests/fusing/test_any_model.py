"""`fuse_params(model, example)` on nets that know nothing of it: what goes, what stays and why."""

import contextlib
import dataclasses
import functools
import re

import flax_nets as nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick_jit
from flax import nnx
from flax_nets import ConvNorm, build
from same import IMAGES, array, assert_same, fused_and_same, norms_left, paths, places, run, shapes
from tolerance import ROUNDING_BF16, ROUNDING_F64, assert_close, assert_identical, assert_trees_close

from repmlp_jax import fuse_params, fuse_report
from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm
from repmlp_jax.models.randomness import abstract

# Many of these models are such that nothing may be folded.
pytestmark = [pytest.mark.usefixtures("mixed_dtypes"), pytest.mark.filterwarnings("ignore:nothing to fuse")]


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
    "dilated": Case(nets.DilatedReparam, norms="large.norm dilated.{0,1,2}.norm", branches="dilated.{0,1,2}.conv"),
    "ResNet": Case(nets.ResNet, RGB, "stem.norm stages.{0,1}.{bn1,bn2,bn3} stages.1.shortcut.layers.1"),
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
    "EfficientNet": Case(nets.EfficientNet, RGB, "stem.norm blocks.{0,1}.{expand,depthwise,project}.norm top.norm"),
    "U-Net": Case(nets.UNet, RGB, "{down.0,bottom,merge.0}.layers.layers.{1,4} up_norms.0"),
    "transposed convolutions": Case(nets.Generator, (2, 4, 4, 4), "norm1 norm2", others=(3, 6, 6, 4)),
    "tied weights": Case(
        nets.TiedAutoencoder, (4, 6), "norm3", kept=dict.fromkeys(("norm1", "norm2"), "parameters|shared|elsewhere")
    ),
    "one norm for two convs": Case(nets.OneNormForTwoConvs, kept={"norm": "called"}),
    "one conv for two norms": Case(nets.OneConvForTwoNorms, kept=dict.fromkeys(("norm1", "norm2"), "called")),
    "two norms of one value": Case(nets.TwoNormsOfOneValue, kept=dict.fromkeys(("norm1", "norm2"), USED_TWICE)),
    "recurrent": Case(nets.Recurrent, norms="cell.norm"),
    "odd norms": Case(nets.OddNorms, norms="norm1 norm2 norm3 norm4"),
    "norms in a row": Case(nets.NormsInARow, norms="norm1 norm2 norm3", kept={"norm4": "relu|max|no"}),
    "MLP": Case(nets.MLP, (4, 6), "norm_in norm1 norm2"),
    "norm before several": Case(nets.NormBeforeSeveral, (2, 5, 6), "norm"),
    "average pools": Case(nets.PoolsBetween, norms="norm1 norm2"),
    "max pools": Case(nets.MaxPoolsBetween, kept=dict.fromkeys(("norm1", "norm2"), ACTIVATION)),
    "patches": Case(nets.Patches, RGB, "norm", kept={"mixed_norm": "reshape|channels|output"}),
    "heads": Case(nets.Heads, (2, 5, 6), "split_norm norm"),
    "others": Case(nets.Others, kept={"norm1": "GroupNorm|no|comes", "norm2": "WeightNorm|parameter|kernel|no"}),
    "containers": Case(nets.Containers, norms="norms.{0,1} pair.1 net.layers.1"),
    "scan": Case(nets.Scanned, norms="blocks.norm last.norm"),
    "scanned RepVGG": Case(
        nets.ScannedRepVGG,
        norms="blocks.{conv3x3,conv1x1}.norm last.norm",
        branches="blocks.conv1x1.conv blocks.identity",
    ),
    "ensemble": Case(nets.Ensemble, norms="members.norm"),
    "remat": Case(nets.Rematerialised, norms="{first,second,third}.norm"),
    "cond": Case(nets.Conditional, norms="inner.norm", kept={"norm": "branch|cond"}),
    "auxiliary head": Case(nets.AuxiliaryHead, norms="body.norm", kept={"norm": USED_TWICE}),
    "padding": Case(nets.NormBeforePadding, norms="norm2", kept={"norm1": "pad"}),
}


LARGE = ("DenseNet", "EfficientNet", "RepLKNet", "RepVGG with SE", "ResNet")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NETS])
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


# A pure function.


MODEL = functools.cache(lambda: build(nets.ScannedRepVGG))


def test_within_jit():
    fused = nnx.jit(lambda model: fuse_params(model, IMAGES))(MODEL())
    assert_same(MODEL(), fused, (IMAGES,))


@pytest.mark.slow
def test_within_jax_jit():
    fused = jax.jit(lambda model: fuse_params(model, IMAGES))(MODEL())
    assert_same(MODEL(), fused, (IMAGES,))


def test_the_input_may_be_traced():
    def both(model, x):
        return fuse_params(model, x)(x), model(x)

    assert_trees_close(*quick_jit(both)(build(nets.ACNet), IMAGES), ROUNDING_F64)


def test_abstract_models():
    make = abstract(nets.ACNet)
    make.eval()
    example = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    fused = nnx.eval_shape(lambda model: fuse_params(model, example), make)
    concrete = fuse_params(build(nets.ACNet, dtype=jnp.float32), example)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(fused)) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), nnx.state(concrete)
    )
    assert nnx.graphdef(fused) == nnx.graphdef(concrete)
    assert str(fuse_report(make, example)) == str(fuse_report(build(nets.ACNet, dtype=jnp.float32), example))


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
    model = build(nets.MBConv, 4, 4, 3)
    training = nnx.clone(model)
    training.train()
    fused = fuse_params(training, IMAGES)
    assert fused.dropout.deterministic
    assert_identical(fused, fuse_params(model, IMAGES))


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
    model = build(nets.WithOurs)
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
    model = build(nets.MobileOne, dtype=jnp.float32)
    x = array(2, 8, 8, 4, dtype=jnp.float32)
    fused = fuse_params(model, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(fused))} == {jnp.dtype(jnp.float32)}
    assert_same(model, fused, (x,), tolerance=1e-5)


# A part of a model.


@pytest.mark.parametrize(
    ("only", "gone"),
    [
        ("conv1", {"conv1.norm"}),
        (("conv1.conv", "conv1.norm"), {"conv1.norm"}),
        (("conv1", "conv2"), {"conv1.norm", "conv2.norm"}),
        (nnx.PathContains("conv1"), {"conv1.norm"}),
    ],
    ids=["path", "layers", "paths", "filter"],
)
def test_only_a_part_is_folded(only, gone):
    model = build(nets.SEResNet)
    fused = fused_and_same(model, IMAGES, only=only)
    assert paths(fused, FoldedNorm) == gone
    assert set(places(model, IMAGES, only=only)) == gone


def test_the_rest_stays_trainable():
    x = array(2, 8, 8, 4, dtype=jnp.float32)
    fused = fuse_params(build(nets.SEResNet, dtype=jnp.float32), x, only="conv1")
    fused.train()
    before = fused.conv2.norm.mean[...]
    gradients = nnx.jit(nnx.grad(lambda model: jnp.sum(model(x))))(fused)
    assert not np.allclose(before, fused.conv2.norm.mean[...])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("only", ["conv1.nrm", ("conv1", "stages.7"), "head"])
def test_a_path_that_the_model_lacks(only):
    with pytest.raises(ValueError, match="only: SEResNet has no module"):
        fuse_params(build(nets.SEResNet), IMAGES, only=only)


# Shown to be right.


@pytest.mark.parametrize("name", ["ACNet", "MLP", "scan"])
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
    ],
    ids=["text", "list", "number", "input shape", "text in a tuple", "dtype", "empty", "channels", "axes", "two"],
)
def test_a_wrong_example(example, error, unchecked_types):
    with pytest.raises(error, match=r"example|ACNet"):
        fuse_params(build(nets.ACNet), example)


def test_a_model_that_refuses_its_example_is_named():
    with pytest.raises(ValueError, match=r"(?s)example.*2, ?8, ?8, ?5"):
        fuse_params(build(nets.ACNet), array(2, 8, 8, 5))


@pytest.mark.parametrize("options", [dict(call=3), dict(call="encode"), dict(only=3.0)], ids=str)
def test_wrong_options(options, unchecked_types):
    with pytest.raises(TypeError, match=next(iter(options))):
        fuse_params(build(nets.ACNet), IMAGES, **options)


@pytest.mark.parametrize(
    "options", [dict(call=run), dict(check=True), dict(dense_groups=True)], ids=lambda options: next(iter(options))
)
def test_options_without_an_example(options):
    with pytest.raises((TypeError, ValueError), match="example"):
        fuse_params(build(nets.ACNet), **options)


@pytest.mark.parametrize("model", [nets.ACNet, 3, None])
def test_what_is_no_model(model, unchecked_types):
    with pytest.raises(TypeError, match=r"model must be an nnx\.Module"):
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
    model = build(nets.WithOurs, jnp.float32, dtype=jnp.float32)
    by_position, by_name = fuse_report(model, (8, 8, 3)), fuse_report(model, input_shape=(8, 8, 3))
    assert by_position == by_name
    assert by_position.macs is not None


def test_places_are_named():
    said = places(build(nets.ACNet), shapes(IMAGES))
    assert "square.conv" in said["square.norm"]
    assert "square.conv" in said["flat.conv"]


# Sizes that the model takes.


class Sized(nnx.Module):
    """A convolution and its norm on what `before` makes of the input, with `between` them."""

    def __init__(self, channels, before, between, *, rngs):
        self.conv = nnx.Conv(channels, 4, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.before, self.between = before, between

    def __call__(self, x):
        return self.norm(self.between(self.conv(self.before(x))))


def pool_of_three(x):
    return nnx.avg_pool(x, (3,), (3,), padding="SAME")


def halved_three_times(x):
    return x.squeeze(0)[1::2][1::2][1::2][None]


def pool_of_two(x):
    return nnx.avg_pool(x, (2,), (2,), padding="SAME")


SIZED = {
    "pairs": (8, lambda x: x.reshape(len(x), -1, 8), pool_of_three, (2, 6, 4), (2, 8, 4)),
    "a batch of one": (4, lambda x: x.squeeze(0), lambda x: x.sum(0) / 8, (1, 8, 4), (1, 12, 4)),
    "a pool behind halvings, a batch of one": (4, halved_three_times, pool_of_two, (1, 32, 4), (1, 40, 4)),
    "frequencies": (15, lambda x: x.reshape(*x.shape[:2], 15), lambda x: x.sum(1) / 9, (2, 9, 5, 3), (2, 12, 5, 3)),
    "samples": (1, lambda x: x[..., None], pool_of_three, (2, 15), (2, 16)),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_constant_of_a_size_that_not_all_axes_share(name):
    channels, before, between, shape, other = SIZED[name]
    model = build(functools.partial(Sized, channels, before, between))
    fused = fused_and_same(model, array(*shape), others=[(array(*other),)])
    assert norms_left(fused) == {"norm"}


class Tokens(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.sized = Sized(4, lambda x: x, pool_of_three, rngs=rngs)

    def __call__(self, tokens):
        return self.sized(self.embed(tokens))


def test_tokens_of_another_length():
    tokens, others = (jnp.arange(2 * length).reshape(2, length) % 7 for length in (15, 16))
    fused = fused_and_same(build(Tokens), tokens, others=[(others,)])
    assert norms_left(fused) == {"sized.norm"}


# Layers with something of their own.


class OneByOneBeside(nnx.Module):
    def __init__(self, padding, *, rngs):
        self.large, self.small = (
            nnx.Conv(4, 4, (side, side), strides=2, padding=padding, rngs=rngs) for side in (3, 1)
        )

    def __call__(self, x):
        return self.large(x) + self.small(x)


def test_names_of_paddings_in_lower_case():
    with contextlib.suppress(UserWarning), pytest.warns(UserWarning, match="nothing"):
        fused = fuse_params(build(OneByOneBeside, "same"), IMAGES)
    assert_same(build(OneByOneBeside, "same"), fused, (IMAGES,))


class Centred(nnx.Param):
    def get_value(self, **options):
        value = super().get_value(**options)
        return value if isinstance(value, jax.ShapeDtypeStruct) else value - jnp.mean(value)


def test_a_kernel_that_changes_when_it_is_read():
    model = build(ConvNorm, 4, 4, (3, 3))
    model.conv.kernel = Centred(model.conv.kernel.get_raw_value())
    with pytest.warns(UserWarning, match="nothing"):
        fused = fuse_params(model, IMAGES)
    assert_same(model, fused, (IMAGES,))


class KeepsItsKernel(nnx.Module):
    def __init__(self, *, rngs):
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.kept = nnx.Cache(jnp.zeros((3, 3, 4, 4)))

    def __call__(self, x):
        self.kept[...] = self.pair.conv.kernel[...]
        return self.pair(x)


def test_a_kernel_that_the_call_keeps():
    model = build(KeepsItsKernel)
    with pytest.warns(UserWarning, match="nothing"):
        fused = fuse_params(model, IMAGES)
    for one in (model, fused):
        one(IMAGES)
    assert_identical(model.kept, fused.kept)


class Protein(nnx.Module):
    """With an attribute `folding` of its own."""

    def __init__(self, *, rngs):
        self.folding = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.folding(x)


def test_an_attribute_of_the_models_own():
    assert norms_left(fused_and_same(build(Protein), IMAGES)) == set()


class Registered(nnx.Conv):
    def __init_subclass__(cls, *, tag, **options):
        super().__init_subclass__(**options)


class OfRegistered(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = Registered(4, 4, (3, 3), rngs=rngs)
        self.pair = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.pair(self.conv(x))


def test_a_class_whose_subclasses_need_arguments():
    assert norms_left(fused_and_same(build(OfRegistered), IMAGES)) == set()


class OfTwoPrecisions(nnx.Module):
    def __init__(self, *, rngs):
        self.large = nnx.Conv(4, 4, (3, 3), param_dtype=jnp.float32, rngs=rngs)
        self.small = nnx.Conv(4, 4, (1, 1), param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.large(x) + self.small(x)


def test_a_branch_of_wider_parameters_stays():
    fused = fused_and_same(build(OfTwoPrecisions, dtype=None), IMAGES)
    assert paths(fused, FoldedBranch) == set()


class WithTables(nnx.Module):
    """Arrays that are not variables: of its own, a mask, and the scales of a weight norm."""

    def __init__(self, rngs):
        self.table = jnp.linspace(0, 1, 64).reshape(1, 8, 8, 1)
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.normed = nnx.WeightNorm(nnx.Conv(4, 4, (3, 3), rngs=rngs), rngs=rngs)
        self.masked = nnx.Conv(4, 4, (3, 3), mask=jnp.ones((3, 3, 4, 4)), rngs=rngs)

    def __call__(self, x):
        return self.masked(self.normed(nnx.relu(self.first(x)) * self.table))


def test_arrays_that_are_no_variables_stay():
    model = WithTables(rngs=nnx.Rngs(0))
    model.eval()
    fused = fuse_params(model, shapes(IMAGES))
    assert isinstance(fused.first.norm, FoldedNorm)
    assert_identical(fused.table, model.table)
    assert fuse_report(model, shapes(IMAGES)).blocks
