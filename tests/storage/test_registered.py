"""Models of people's own classes: registered, saved, and built again in a process that has registered them, too."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, randomised
from flax import nnx
from test_saved import change
from tolerance import ROUNDING_F32, assert_close, assert_identical

import repmlp_jax
from repmlp_jax import (
    PureMLP,
    RepMLP,
    astype,
    create_model,
    export_model,
    fuse_params,
    list_models,
    load_exported,
    load_model,
    quantise_params,
    register_model,
    register_savable,
    save_model,
)
from repmlp_jax.fusing.folded import FoldedNorm
from repmlp_jax.fusing.fuse import fusable_modules
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.models.registry import MODELS
from repmlp_jax.storage.outline import differences

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 2)), jnp.float32)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


def make_net():
    """A new class of nets, as a user writes it: of Flax's layers, with a mask that is no Variable."""

    class Net(nnx.Module):
        def __init__(self, widths=(2, 4), num_classes=3, activation=nnx.relu, *, param_dtype=jnp.float32, rngs):
            options = dict(param_dtype=param_dtype, rngs=rngs)
            self.input_shape = (4, 4, 2)
            self.activation = activation
            mask = jnp.triu(jnp.ones((3, 3, *widths), param_dtype))
            self.conv = nnx.Conv(*widths, (3, 3), mask=mask, **options)
            self.norm = nnx.BatchNorm(widths[-1], epsilon=1e-3, **options)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(widths[-1], num_classes, **options)

        def __call__(self, x):
            return self.head(self.dropout(self.activation(self.norm(self.conv(x)))).mean((1, 2)))

    return Net


def assert_comes_back(path, model):
    save_model(path, model)
    loaded = load_model(path)
    expected = nnx.clone(model)
    expected.eval()
    assert type(loaded) is type(model)
    assert_identical(nnx.state(loaded, nnx.Not(nnx.RngState)), nnx.state(expected, nnx.Not(nnx.RngState)))
    return loaded


@pytest.mark.parametrize("register", [register_model("mine"), register_savable], ids=["by a name", "without"])
def test_a_registered_class_comes_back_without_a_line_of_its_own(tmp_path, register):
    Net = register(make_net())
    model = Net(num_classes=5, rngs=nnx.Rngs(0))
    loaded = assert_comes_back(tmp_path / "model", model)
    model.eval()
    assert (loaded(IMAGES) == model(IMAGES)).all()
    assert list_models()[-1] in ("mine", "Net")


def test_a_name_brings_its_arguments():
    Net = make_net()
    assert register_model("mine")(Net) is Net
    register_model("mine-wide", widths=(2, 8))(Net)
    assert list_models()[-2:] == ["mine", "mine-wide"]
    wide = abstract(create_model, "mine-wide", num_classes=7)
    assert wide.head.kernel.shape == (8, 7)
    assert json.loads(wide.arguments) == {"widths": [2, 8], "num_classes": 7, "param_dtype": "float32"}
    with pytest.raises(ValueError, match="the nearest is 'mine-wide'"):
        create_model("mine-wid", rngs=nnx.Rngs(0))


def test_a_published_class_gets_further_names(tmp_path):
    register_model("tiny", image_size=8, widths=(4,), partition_size=4, conv_kernels=(1,))(PureMLP)
    assert_comes_back(tmp_path / "model", fuse_params(randomised(abstract(create_model, "tiny"))))


def test_a_subclass_of_a_published_one_has_arguments_of_its_own(tmp_path):
    @register_savable
    class Small(PureMLP):
        def __init__(self, width, *, rngs):
            small = dict(image_size=8, partition_size=4, conv_kernels=(1,))
            super().__init__(widths=(width,), **small, rngs=rngs)

    assert json.loads(abstract(Small, 4).arguments) == {"width": 4}
    assert_comes_back(tmp_path / "model", randomised(abstract(Small, 4)))


def test_a_block_and_an_inherited_constructor(tmp_path):
    @register_savable
    class Mixer(RepMLP):
        pass

    @register_savable
    class Further(Mixer):
        pass

    for kind in (Mixer, Further):
        assert_comes_back(tmp_path / kind.__name__, randomised(abstract(kind, 4, 4, image_size=4, partition_size=2)))


def test_named_options_are_remembered_and_what_has_no_name_is_not(tmp_path):
    @register_savable
    class Forwarding(nnx.Linear):
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)

    named = Forwarding(in_features=2, out_features=3, use_bias=False, rngs=nnx.Rngs(0))
    assert_comes_back(tmp_path / "named", named)
    with pytest.raises(TypeError, match="this Forwarding cannot be saved: sizes was passed without a name"):
        save_model(tmp_path / "model", Forwarding(2, 3, rngs=nnx.Rngs(0)))


def test_arguments_are_remembered_as_they_were_passed(tmp_path):
    @register_savable
    class Emptying(nnx.Module):
        def __init__(self, widths, *, rngs):
            self.layers = nnx.List()
            widths = list(widths) if isinstance(widths, tuple) else widths
            while widths:
                self.layers.append(nnx.Linear(2, widths.pop(), rngs=rngs))

    model = Emptying([3, 4], rngs=nnx.Rngs(0))
    assert json.loads(model.arguments) == {"widths": [3, 4]}
    assert_comes_back(tmp_path / "model", model)


@pytest.mark.parametrize("activation", [nnx.gelu, {"name": "gelu"}], ids=["function", "dict"])
def test_an_argument_that_no_file_can_hold_is_named_when_the_model_is_saved(tmp_path, activation):
    model = register_savable(make_net())(activation=activation, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"this Net cannot be saved: activation is a \w+, which a saved model cannot hold"
    ):
        save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_a_default_may_be_what_no_file_can_hold(tmp_path):
    model = register_savable(make_net())(activation=nnx.relu, rngs=nnx.Rngs(0))
    assert json.loads(model.arguments) == {"widths": [2, 4], "num_classes": 3, "param_dtype": "float32"}
    assert load_model_again(tmp_path, model).activation is nnx.relu


def load_model_again(tmp_path, model):
    save_model(tmp_path / "model", model)
    return load_model(tmp_path / "model")


def test_lists_that_have_to_be_lists_are_refused_when_the_model_is_saved(tmp_path):
    @register_savable
    class OfList(nnx.Module):
        def __init__(self, widths, *, rngs):
            widths.append(3)
            self.head = nnx.Linear(*widths, rngs=rngs)

    with pytest.raises(
        TypeError, match=r'cannot be saved: its class does not take .* \{"widths": \[2\]\} with lists as'
    ):
        save_model(tmp_path / "model", OfList([2], rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda net: setattr(net.norm, "epsilon", 1e-5), r"norm\.epsilon is 1e-05 instead of 0\.001"),
        (lambda net: setattr(net, "extra", nnx.Param(jnp.ones(2))), r"extra is float\d+\[2\] instead of missing"),
        (lambda net: delattr(net, "dropout"), "dropout is missing instead of a Dropout"),
        (lambda net: setattr(net, "norm", nnx.List()), "norm is a List instead of a BatchNorm"),
    ],
    ids=["a setting", "an array", "less", "another module"],
)
def test_what_was_changed_since_a_model_was_built_is_named(tmp_path, change, named):
    model = register_savable(make_net())(rngs=nnx.Rngs(0))
    change(model)
    with pytest.raises(TypeError, match=f"this Net was changed since it was built, so it cannot be saved: {named}$"):
        save_model(tmp_path / "model", model)


def test_the_modes_of_training_are_no_change(tmp_path):
    model = register_savable(make_net())(rngs=nnx.Rngs(0))
    for set_mode in (model.train, model.eval):
        set_mode()
        save_model(tmp_path / "model", model, overwrite=True)


def test_another_dtype_is_saved_where_the_class_takes_it(tmp_path):
    model = register_savable(make_net())(rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"saved: conv.dtype is bfloat16 instead of None, conv.mask is float32"):
        save_model(tmp_path / "model", astype(model, jnp.bfloat16))  # what is no Variable stays in float32

    @register_savable
    class Plain(nnx.Module):
        def __init__(self, *, dtype=None, param_dtype=jnp.float32, rngs):
            self.head = nnx.Linear(2, 2, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    assert_comes_back(tmp_path / "model", astype(Plain(rngs=nnx.Rngs(0)), jnp.bfloat16))


def test_a_class_that_is_not_registered_is_refused_with_what_to_call(tmp_path):
    Net = make_net()
    model = Net(rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"Net of test_registered is not one of them: .*register_savable\(Net\) before the"
    ):
        save_model(tmp_path / "model", model)
    register_savable(Net)
    with pytest.raises(TypeError, match="this Net was built before its class was registered"):
        save_model(tmp_path / "model", model)


PROGRAM = """
from flax import nnx
from repmlp_jax import register_savable, save_model

class Net(nnx.Module):
    def __init__(self, features, *, rngs):
        self.head = nnx.Linear(features, 2, rngs=rngs)

save_model("model", register_savable(Net)(3, rngs=nnx.Rngs(0)))
"""


@pytest.mark.slow
def test_the_process_that_reads_has_to_register_the_class_too(tmp_path):
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True, env=os.environ)
    with pytest.raises(
        ValueError,
        match=r"holds a Net of the module __main__, and no class .*: import it and call .*register_savable\(Net",
    ):
        load_model(tmp_path / "model")


def test_another_class_of_the_same_name_is_refused_when_it_is_read(tmp_path):
    save_model(tmp_path / "model", register_savable(make_net())(rngs=nnx.Rngs(0)))
    for changes, message in (
        (dict(arguments={"depth": 3}), r"this does not take its arguments \(.*depth"),
        (dict(arguments={"num_classes": 9}), "the arrays of the two differ"),
    ):
        change(tmp_path / "model", **changes)
        with pytest.raises(ValueError, match=f"its Net is another than test_registered has now: {message}"):
            load_model(tmp_path / "model")


def test_a_class_that_is_defined_again_replaces_the_one_before(tmp_path):
    first = register_model("mine-wide", widths=(2, 8))(register_model("mine")(make_net()))
    again = register_model("mine")(make_net())
    assert again is not first
    assert MODELS["mine-wide"] == (again, {"widths": (2, 8)})
    assert_comes_back(tmp_path / "model", again(rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="Net of test_registered is not one of them"):
        save_model(tmp_path / "other", first(rngs=nnx.Rngs(0)))


def test_registering_again_changes_nothing():
    Net = make_net()
    for _ in range(2):
        register_model("mine", widths=(2, 8))(Net)
        register_savable(Net)
    assert list_models()[-1] == "mine"
    assert register_savable(PureMLP) is PureMLP
    assert Net.__init__.__wrapped__.__qualname__.endswith("Net.__init__")
    assert not hasattr(Net.__init__.__wrapped__, "__wrapped__")


def test_names_that_are_taken_are_refused():
    Net = make_net()
    for name, kind, arguments in (("pure_mlp", Net, {}), ("pure_mlp", PureMLP, dict(widths=(4,)))):
        with pytest.raises(
            ValueError, match=r"the name 'pure_mlp' is taken, by repmlp_jax\.models\.cifar\.PureMLP with"
        ):
            register_model(name, **arguments)(kind)

    class PureMLPOfMine(nnx.Module):
        def __init__(self, *, rngs):
            pass

    PureMLPOfMine.__name__ = "PureMLP"
    for register in (register_model("mine"), register_savable):
        with pytest.raises(
            ValueError, match=r"cifar\.PureMLP is registered, and saved models know .*PureMLPOfMine needs"
        ):
            register(PureMLPOfMine)


class WithoutStreams(nnx.Module):
    def __init__(self, features):
        self.features = features


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("register", "wrong", "message"),
    [
        (register_savable, dict, "register_savable takes a class of nnx.Modules, and not <class 'dict'>"),
        (
            register_savable,
            nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
            "register_savable takes a class of nnx.Modules, and not ",
        ),
        (
            register_savable,
            nnx.Conv,
            "takes a class of your own, which flax.nnx.nn.linear.Conv is not: derive one from",
        ),
        (register_savable, WithoutStreams, "WithoutStreams cannot be built .*: got an unexpected keyword .* 'rngs'"),
        (
            register_model("mine", width=3),
            PureMLP,
            "PureMLP cannot be built .*: got an unexpected keyword argument 'width'",
        ),
        (register_model("mine"), len, "register_model takes a class of nnx.Modules, and not <built-in function len>"),
        (register_model, PureMLP, r'register_model takes a name, as in @register_model\("a-name"\), and not <class'),
        (register_model, None, "register_model takes a name, .* and not None"),
    ],
)
def test_what_cannot_be_registered_is_refused(register, wrong, message):
    before = dict(MODELS)
    with pytest.raises(TypeError, match=message):
        register(wrong)
    assert before == MODELS


def test_arguments_as_an_attribute_of_ones_own_are_refused():
    @register_savable
    class Parser(nnx.Module):
        def __init__(self, *, rngs):
            self.arguments = ("--verbose",)

    with pytest.raises(TypeError, match="Parser has `arguments` of its own, where a class that is registered keeps"):
        Parser(rngs=nnx.Rngs(0))


def test_models_in_stacks_remember_their_arguments():
    Net = register_savable(make_net())
    stack = nnx.vmap(lambda rngs: Net(num_classes=2, rngs=rngs))(nnx.Rngs(0).split(3))
    assert json.loads(stack.arguments)["num_classes"] == 2


def test_an_argument_that_is_traced_is_refused_when_the_model_is_saved(tmp_path):
    Net = register_savable(make_net())

    @nnx.jit
    def build(scale):
        return Net(activation=scale, rngs=nnx.Rngs(0))

    with pytest.raises(TypeError, match=r"activation is a .*Tracer, which a saved model cannot hold"):
        save_model(tmp_path / "model", build(jnp.ones(2)))


class Foldable(nnx.Module):
    """A 3×3 and a 1×1 convolution in parallel, each with its norm, one of them grouped; and a norm that stays."""

    def __init__(self, num_classes=3, *, rngs):
        options = dict(use_bias=False, rngs=rngs)
        self.input_shape = (4, 4, 2)
        self.large = nnx.Conv(2, 4, (3, 3), feature_group_count=2, **options)
        self.small = nnx.Conv(2, 4, (1, 1), **options)
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x):
        large, small, last = self.norms
        x = nnx.relu(large(self.large(x)) + small(self.small(x)))
        return self.head(last(nnx.tanh(x)).mean((1, 2)))

    def features(self, x):
        return self.norms[0](self.large(x))


@pytest.fixture
def foldable():
    return randomised(abstract(register_savable(Foldable)))


FOLDINGS = [{}, dict(dense_groups=True), dict(only=["norms.0", "large"])]


@pytest.mark.parametrize("arguments", FOLDINGS, ids=str)
def test_what_was_fused_with_an_example_comes_back(tmp_path, foldable, arguments):
    fused = fuse_params(foldable, jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32), **arguments)
    loaded = assert_comes_back(tmp_path / "model", fused)
    assert not differences(loaded, fused)
    assert loaded.folding == fused.folding
    assert type(loaded.norms[0]) is FoldedNorm


def test_a_published_model_that_was_fused_with_an_example_comes_back_in_int8(tmp_path):
    small = dict(image_size=8, in_features=1, widths=(4,), partition_size=4, conv_kernels=(1,))
    model = fuse_params(randomised(abstract(create_model, "pure_mlp", **small)), jnp.zeros((1, 8, 8, 1), jnp.float32))
    assert_comes_back(tmp_path / "model", quantise_params(model))


def test_a_folded_model_is_quantised_and_exported(tmp_path, foldable):
    fused = fuse_params(foldable, IMAGES, dense_groups=True)
    quantised = quantise_params(fused)
    assert quantised.large.kernel.values.dtype == jnp.int8
    assert_comes_back(tmp_path / "model", quantised)
    export_model(fused, tmp_path / "model.zip")
    foldable.eval()
    assert_close(load_exported(tmp_path / "model.zip")(IMAGES), foldable(IMAGES), ROUNDING_F32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(call=Foldable.features), "call=<function Foldable.features at .*, and a file holds no function"),
        (dict(only=nnx.Any(nnx.Conv, nnx.BatchNorm)), "only=Any.*, and a file holds paths alone: pass those that"),
    ],
    ids=["call", "only"],
)
def test_a_function_that_a_model_was_fused_with_is_refused(tmp_path, foldable, arguments, message):
    with pytest.raises(TypeError, match=f"this Foldable cannot be saved: it was fused with {message}"):
        save_model(tmp_path / "model", fuse_params(foldable, IMAGES, **arguments))


def test_what_was_fused_twice_is_refused(tmp_path, foldable):
    once = fuse_params(foldable, IMAGES, only=("norms.0", "large"))
    with pytest.raises(
        TypeError, match=r"this Foldable was changed since .*: .* is a FoldedNorm instead of a BatchNorm"
    ):
        save_model(tmp_path / "model", fuse_params(once, IMAGES, only=("norms.1", "small")))


def test_what_was_fused_in_part_comes_back_and_is_fused_further(tmp_path):
    small = dict(image_size=8, in_features=1, widths=(4, 4), partition_size=4, conv_kernels=(1,))
    model = randomised(abstract(create_model, "pure_mlp", **small))
    first = next(path for path, _ in fusable_modules(model))
    part = fuse_params(model, only=dotted(first))
    assert len(fusable_modules(part)) == len(fusable_modules(model)) - 1
    loaded = assert_comes_back(tmp_path / "part", part)
    assert loaded.folding == part.folding
    whole = fuse_params(loaded)
    assert not hasattr(whole, "folding")
    assert not differences(assert_comes_back(tmp_path / "whole", whole), fuse_params(model))


def test_a_net_of_ones_own_is_quantised_and_exported(tmp_path):
    Net = register_savable(make_net())
    model = Net(rngs=nnx.Rngs(0))
    model.eval()
    assert_comes_back(tmp_path / "model", quantise_params(model))
    export_model(model, tmp_path / "model.zip")
    assert_close(load_exported(tmp_path / "model.zip")(IMAGES), model(IMAGES), ROUNDING_F32)


def test_what_needs_the_size_of_images_says_so(tmp_path):
    model = register_savable(make_net())(rngs=nnx.Rngs(0))
    del model.input_shape
    with pytest.raises(TypeError, match=r"input_shape is missing instead of \(4, 4, 2\)"):
        save_model(tmp_path / "model", model)

    @register_savable
    class Plain(nnx.Linear):
        pass

    with pytest.raises(TypeError, match="Plain has no input_shape: set it to the"):
        save_model(tmp_path / "model", Plain(2, 2, rngs=nnx.Rngs(0)), preprocessing={"mean": [0.5]})


def test_both_are_public():
    assert {"register_model", "register_savable"} <= set(repmlp_jax.__all__)
