"""The arguments of models and blocks: one number for a pair, NumPy's and JAX's values, and what is said to others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract
from flax import nnx

from repmlp_jax import (
    BottleneckBlock,
    FaceResNet,
    LightBlock,
    PSPNet,
    PureMLP,
    RepMLP,
    RepMLPNet,
    RepMLPNetBlock,
    RepMLPResNet,
    WideConvNet,
    create_model,
    load_model,
    save_model,
)
from repmlp_jax.models.arguments import arguments_from_text, arguments_text

TINY = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))


RESNET = dict(stage_sizes=(1, 2, 1, 1), widths=(8, 16, 32, 32), block="light")
NET = dict(stage_sizes=(1, 1), widths=(4, 8), sharesets=(1, 2))
FACES = dict(stage_sizes=(2, 1), widths=(8, 8), mid_widths=(8, 8), embedding_features=4, block="bottleneck")

NUMPY_AND_JAX = [
    pytest.param(dict(num_classes=np.array([0, 1, 2]).max() + 1), dict(num_classes=3), id="NumPy integer"),
    pytest.param(dict(num_classes=jnp.int32(3)), dict(num_classes=3), id="JAX integer"),
    pytest.param(dict(image_size=np.array([8, 8])), dict(image_size=[8, 8]), id="NumPy pair"),
    pytest.param(dict(image_size=tuple(np.array([8, 8]))), dict(image_size=[8, 8]), id="pair of NumPy integers"),
    pytest.param(dict(widths=jnp.array([4, 8])), dict(widths=[4, 8]), id="JAX list"),
    pytest.param(dict(ablation=np.str_("no_local")), dict(ablation="no_local"), id="NumPy string"),
    pytest.param(dict(dtype="bfloat16", param_dtype=np.dtype("float32")), dict(dtype="bfloat16"), id="dtypes"),
]


@pytest.mark.parametrize(("given", "stored"), NUMPY_AND_JAX)
def test_values_of_numpy_and_jax_are_stored_as_pythons(given, stored):
    model = abstract(PureMLP, **TINY | given)
    arguments = json.loads(model.arguments)
    assert {name: arguments[name] for name in stored} == stored
    again = abstract(PureMLP, **arguments_from_text(model.arguments))
    assert nnx.graphdef(again) == nnx.graphdef(model)


def test_a_model_with_numpys_numbers_is_saved_and_comes_back(tmp_path):
    model = PureMLP(np.int64(3), **TINY | dict(image_size=np.array([8, 8])), rngs=nnx.Rngs(0))
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.arguments == model.arguments
    assert json.loads(loaded.arguments)["num_classes"] == 3


@pytest.mark.parametrize("no", [np.bool_(False), jnp.bool_(False), np.array(False), 0])
def test_a_flag_of_numpy_or_jax_is_pythons(no):
    model = abstract(FaceResNet, **FACES, image_size=16, partition_size=2, pad=no)
    assert json.loads(model.arguments)["pad"] is False


def test_an_argument_that_no_file_can_hold_is_named():
    class Own(nnx.Module):
        def __init__(self, colour):
            self.arguments = arguments_text(self, locals())

    assert json.loads(Own(np.float32(0.5)).arguments) == {"colour": 0.5}
    assert json.loads(Own((jnp.arange(2), "red")).arguments) == {"colour": [[0, 1], "red"]}
    for colour in (object(), {1}, jnp.float32, np.dtype("int8"), {"red": 1}):
        with pytest.raises(TypeError, match=r"colour is a \w+, which a saved model cannot hold"):
            Own(colour)


PAIRS = [
    (PureMLP, TINY, dict(image_size=8, partition_size=4)),
    (WideConvNet, dict(widths=(4,)), dict(image_size=8)),
    (RepMLPResNet, RESNET, dict(image_size=32, partition_size=2, groups=2, reduction=2, r=2)),
    (PSPNet, RESNET | dict(num_classes=2, bins=(1,)), dict(image_size=25, partition_size=2, groups=2, reduction=1)),
    (FaceResNet, FACES, dict(image_size=16, partition_size=2)),
    (RepMLPNet, NET, dict(partition_sizes=(4, (2, 2)), patch_size=2, image_size=8)),
    (RepMLP, dict(in_features=2, out_features=2), dict(image_size=6, partition_size=3)),
    (RepMLPNetBlock, dict(features=4), dict(partition_size=3)),
    (LightBlock, dict(in_features=4, mid_features=4, out_features=4), dict(image_size=6, partition_size=3)),
    (BottleneckBlock, dict(in_features=4, mid_features=4, out_features=4, r=2), dict(image_size=6, partition_size=3)),
]


@pytest.mark.parametrize(("make", "others", "sizes"), PAIRS, ids=[make.__name__ for make, *_ in PAIRS])
def test_one_number_stands_for_a_pair(make, others, sizes):
    pairs = {name: ((4, 4), (2, 2)) if name == "partition_sizes" else (size, size) for name, size in sizes.items()}
    assert nnx.graphdef(abstract(make, **others | sizes)) == nnx.graphdef(abstract(make, **others | pairs))
    as_numpy = {name: size if name == "partition_sizes" else np.array(size) for name, size in pairs.items()}
    assert nnx.graphdef(abstract(make, **others | as_numpy)) == nnx.graphdef(abstract(make, **others | pairs))


WRONG_TYPES = [
    (dict(num_classes="10"), "num_classes must be a positive integer, not '10'"),
    (dict(num_classes=10.0), "num_classes must be a positive integer, not 10.0"),
    (dict(num_classes=None), "num_classes must be a positive integer, not None"),
    (dict(num_classes=True), "num_classes must be a positive integer, not True"),
    (dict(num_classes=np.ones(2, int)), r"num_classes must be a positive integer, not array\(\[1, 1\]\)"),
    (dict(in_features="3"), "in_features must be a positive integer, not '3'"),
    (dict(image_size="8x8"), "image_size must be two positive integers, or one for both, not '8x8'"),
    (dict(image_size=8.0), "image_size must be two positive integers, or one for both, not 8.0"),
    (dict(image_size=(8.0, 8)), r"image_size must be two positive integers, or one for both, not \(8.0, 8\)"),
    (dict(image_size=None), "image_size must be two positive integers, or one for both, not None"),
    (dict(widths=16), "widths must be a sequence of positive integers, not 16"),
    (dict(widths="16"), "widths must be a sequence of positive integers, not '16'"),
    (dict(widths={4, 8}), "widths must be a sequence of positive integers, not {"),
    (dict(conv_kernels=3), "conv_kernels must be a sequence of positive integers, not 3"),
    (dict(conv_kernels=("1x1",)), r"conv_kernels must be a sequence of positive integers, not \('1x1',\)"),
    (dict(groups=(2, 2)), r"groups must be a positive integer, not \(2, 2\)"),
    (dict(ablation=3), "ablation must be None or a string, not 3"),
    (dict(dtype="float33"), "dtype must be None or a floating-point dtype, not 'float33'"),
    (dict(dtype=jnp.int32), "dtype must be None or a floating-point dtype, not "),
    (dict(param_dtype=None), "param_dtype must be a floating-point dtype, not None"),
    (dict(rngs=0), r"rngs must be an nnx.Rngs, such as nnx.Rngs\(0\), not 0"),
    (dict(rngs=jax.random.key(0)), r"rngs must be an nnx.Rngs, such as nnx.Rngs\(0\), not "),
    (dict(num_class=10), "got an unexpected keyword argument 'num_class'"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("wrong", "message"), WRONG_TYPES)
def test_an_argument_of_a_wrong_type_is_named_with_what_is_meant(wrong, message):
    options = TINY | dict(rngs=nnx.Rngs(0)) | wrong
    with pytest.raises(TypeError, match=message):
        create_model("pure_mlp", **options)


@pytest.mark.usefixtures("unchecked_types")
def test_other_constructors_name_their_arguments_too():
    def fails(make, message, *args, **options):
        with pytest.raises(TypeError, match=message):
            make(*args, **dict(rngs=nnx.Rngs(0)) | options)

    fails(create_model, "name must be a string, not 5", 5)
    fails(create_model, "rngs must be an nnx.Rngs", "pure_mlp", rngs=None)
    fails(RepMLP, "out_features must be a positive integer, not '4'", 4, "4", image_size=4, partition_size=4)
    fails(RepMLP, "pad must be True or False, not 'no'", 4, 4, image_size=4, partition_size=4, pad="no")
    fails(RepMLPNetBlock, "sharesets must be a positive integer, not None", 4, partition_size=2, sharesets=None)
    fails(
        RepMLPNet, "stochastic_depth must be a number, not '0.1'", **NET, partition_sizes=(1, 1), stochastic_depth="0.1"
    )
    fails(
        RepMLPNet, "partition_sizes must be a sequence of pairs of positive integers, not 4", **NET, partition_sizes=4
    )
    fails(RepMLPResNet, "block must be a string, not None", block=None)
    fails(RepMLPResNet, "groups must be two positive integers, or one for both, not 'all'", block="light", groups="all")
    fails(RepMLPResNet, "missing 1 required keyword-only argument: 'block'")
    fails(PSPNet, "dropout must be a number, not None", dropout=None)
    fails(FaceResNet, "rematerialise must be True or False, not 2", block="base", rematerialise=2)


WRONG_VALUES = [
    (PureMLP, dict(in_features=-8), "in_features must be a positive integer, not -8"),
    (PureMLP, dict(in_features=0), r"the channels \(0, 16\) must be at least 1"),
    (PureMLP, dict(num_classes=-1), "num_classes must be a positive integer, not -1"),
    (PureMLP, dict(image_size=(32, 32, 3)), r"image_size must be two positive integers, .* not \(32, 32, 3\)"),
    (PureMLP, dict(image_size=0), "image_size must be two positive integers, or one for both, not 0"),
    (PureMLP, dict(widths=()), "widths name 0 stages: they must name at least one"),
    (PureMLP, dict(widths=(16, -8)), r"widths must be a sequence of positive integers, not \(16, -8\)"),
    (WideConvNet, dict(widths=()), "widths name 0 stages"),
    (RepMLPResNet, dict(block="base", widths=(8, 16)), "stage_sizes and widths name 4 and 2 stages: they must name eq"),
    (RepMLPNet, dict(stage_sizes=(), widths=(), partition_sizes=(), sharesets=()), "name 0, 0, 0 and 0 stages"),
    (RepMLPNet, NET | dict(partition_sizes=(2, 1), image_size=17), r"image_size \(17, 17\): height and width must be"),
    (RepMLPNet, NET | dict(partition_sizes=(2, 1), conv_kernels=(1, 1)), r"conv_kernels \(1, 1\) names a size twice"),
    (PSPNet, dict(num_classes=0), "num_classes=0: a PSPNet classifies every pixel"),
    (PSPNet, dict(dropout=1), "dropout=1 must be a probability"),
    (PSPNet, RESNET | dict(block="base", bins=(0, 1)), r"bins \(0, 1\) must be at least 1 window"),
]


@pytest.mark.parametrize(("make", "wrong", "message"), WRONG_VALUES)
def test_values_that_make_no_model_are_named(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        abstract(make, **wrong)
