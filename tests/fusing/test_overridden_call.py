"""A subclass with a `__call__` of its own, which an inherited `fused()` does not know."""

import jax.numpy as jnp
import pytest
from cases import CASES, apply, build, evaluate, random_input
from flax import nnx
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax import PureMLP, RepMLP, fuse_params, fuse_report, save_model, to_torch
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import PartitionPerceptron


class WithReLU(RepMLP):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class Inherits(WithReLU):
    pass


class ConvWithReLU(ConvBN):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class ReLUMixin:
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class Mixed(ReLUMixin, RepMLP):
    pass


class Renamed(RepMLP):
    """Changes nothing that is computed."""

    def describe(self):
        return "a RepMLP"


class Fused(nnx.Module):
    def __init__(self, block):
        self.block = block

    def __call__(self, x):
        return nnx.relu(self.block(x))


class WithOwnFused(WithReLU):
    def fused(self):
        return Fused(super().fused())


class Folded:
    """A `fused()` for classes that bring the `__call__`."""

    def fused(self):
        return self.conv.fused()


class FromMixin(Folded, nnx.Module):
    def __init__(self, *, param_dtype, rngs):
        self.input_shape = (4, 4, 2)
        self.conv = ConvBN(2, 3, 3, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x):
        return self.conv(x)


@pytest.mark.parametrize("kind", [WithReLU, Inherits, Mixed])
@pytest.mark.parametrize("transform", [fuse_params, fuse_report])
def test_an_inherited_fused_is_refused(kind, transform):
    model = nnx.List([build(kind, **CASES["plain"])])
    message = (
        rf"cannot fuse 0: {kind.__name__} has a __call__ of its own, .* knows that of RepMLP alone: define fused\(\) in"
    )
    with pytest.raises(TypeError, match=message):
        transform(model)


def test_so_is_one_within_a_block():
    block = build(RepMLP, **CASES["plain"])
    block.local_perceptron["3x3"] = build(ConvWithReLU, in_features=4, out_features=4, kernel_size=3, groups=2)
    with pytest.raises(TypeError, match=r"cannot fuse local_perceptron.3x3: ConvWithReLU has a __call__"):
        fuse_params(block)


class ReLUNorm(BatchNorm):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class ReLUConv(nnx.Conv):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class ReLUPerceptron(PartitionPerceptron):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


@pytest.mark.parametrize(
    ("part", "kind", "base"),
    [
        (lambda block: block.partition_perceptron.norm, ReLUNorm, "BatchNorm"),
        (lambda block: block.local_perceptron["3x3"].conv, ReLUConv, "Conv"),
        (lambda block: block.partition_perceptron, ReLUPerceptron, "PartitionPerceptron"),
    ],
)
def test_so_is_a_layer_that_only_the_blocks_fused_knows(part, kind, base):
    block = build(RepMLP, **CASES["plain"])
    part(block).__class__ = kind
    with pytest.raises(TypeError, match=f"{kind.__name__} has a __call__ .* of {base} alone: define .* in the block"):
        fuse_params(block)


@pytest.mark.parametrize("kind", [Renamed, WithOwnFused])
def test_other_subclasses_are_fused(kind):
    block = build(kind, **CASES["plain"])
    x = random_input(block)
    assert_close(apply(fuse_params(block), x), evaluate(block, x), ROUNDING_F64)


def test_a_class_may_take_fused_from_another_than_the_call():
    block = build(FromMixin)
    x = random_input(block)
    assert_close(apply(fuse_params(block), x), evaluate(block, x), ROUNDING_F64)


def test_it_is_neither_exported_nor_saved(tmp_path):
    options = dict(image_size=(4, 4), partition_size=(2, 2), conv_kernels=(1,), param_dtype=jnp.float32)
    model = build(PureMLP, num_classes=3, in_features=1, widths=(4,), groups=2, **options)
    index = [type(layer) for layer in model.stages[0]].index(RepMLP)
    model.stages[0][index] = build(WithReLU, in_features=4, out_features=4, groups=2, **options)
    with pytest.raises(TypeError, match=r"PureMLP was changed since .* is a WithReLU instead of a RepMLP$"):
        save_model(tmp_path / "model", model)
    with pytest.raises(
        TypeError, match="to_torch: the model itself is a WithReLU, whose __call__ overrides that of RepMLP"
    ):
        to_torch(model.stages[0][index])
