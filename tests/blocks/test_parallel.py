"""Parallel convolutions as one, and those that cannot be one."""

import jax.numpy as jnp
import pytest
from cases import build, evaluate, quick_jit, random_array
from flax import nnx
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax import fuse_params
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.parallel import add_convolutions


class Parallel(nnx.Module):
    """Convolutions side by side, each with a norm, and perhaps an identity."""

    def __init__(self, *branches, identity=False, common=(), param_dtype, rngs):
        options = dict(use_bias=False, param_dtype=param_dtype, rngs=rngs) | dict(common)
        channels = 4, 4 if identity else 6
        self.convs = nnx.List([nnx.Conv(*channels, **options | dict(branch)) for branch in branches])
        self.norms = nnx.List([BatchNorm(channels[1], param_dtype=param_dtype) for _ in branches])
        self.identity = nnx.data(BatchNorm(4, param_dtype=param_dtype) if identity else None)

    def __call__(self, x):
        y = sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        return y if self.identity is None else y + self.identity(x)

    def fused(self):
        return add_convolutions(list(zip(self.convs, self.norms, strict=True)), identity=self.identity)


def of(side, **options):
    return tuple((dict(kernel_size=side if isinstance(side, tuple) else (side, side)) | options).items())


def parallel(*branches, identity=False, **common):
    return build(lambda **options: Parallel(*branches, identity=identity, common=tuple(common.items()), **options))


ACCEPTED = {
    "same": parallel(of(3), of(1), identity=True),
    "grouped": parallel(of(5), of(3), of(1), identity=True, feature_group_count=2),
    "stride 2, padded alike": parallel(of(3, padding=1), of(1, padding=0), strides=2),
    "stride 2, 1x1 same": parallel(of(5, padding=2), of(3, padding=((1, 1), (1, 1))), of(1), strides=(2, 2)),
    "stride 2, equal kernels": parallel(of(3), of(3), strides=2),
    "across only": parallel(of(3, padding=1), of((1, 3), padding=(0, 1)), of((3, 1), padding=(1, 0)), strides=(1, 2)),
    "dilated": parallel(of(5), of(3), of(1, kernel_dilation=1), kernel_dilation=2),
    "cropped alike": parallel(of(5, padding=1), of(3, padding=0)),
    "circular": parallel(of(5), of(3), padding="CIRCULAR"),
    "even": parallel(of(4, padding=1), of(2, padding=0), strides=2),
    "biases": parallel(of(3), of(1), use_bias=True),
    "even and odd": parallel(of(4), of(3)),
    "causal": parallel(of((5,), padding="CAUSAL"), of((3,), padding="CAUSAL")),
    "along a sequence": parallel(of((3,)), of((5,)), identity=True),
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("sides", [(6, 8), (7, 5)])
def test_the_sum_is_one_convolution(name, sides):
    block = ACCEPTED[name]
    x = jnp.asarray(random_array(2, *sides[: len(block.convs[0].kernel_size)], 4))
    fused = fuse_params(block)
    assert type(fused) is nnx.Conv
    assert_close(quick_jit(lambda fused, x: fused(x))(fused, x), evaluate(block, x), ROUNDING_F64)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            parallel(of(3), of(1), strides=2),
            r"a 1×1 kernel with padding 'SAME'.* 3×3 kernel .*dilation \* \(side // 2\)",
        ),
        (parallel(of(5), of(3), strides=2), "does not meet a 5×5 kernel"),
        (parallel(of(3), of(1, padding=0), strides=2), "does not meet a 3×3 kernel"),
        (parallel(of(3, padding="VALID"), of(1, padding="VALID")), "padding 'VALID'"),
        (parallel(of(3, strides=2, padding=1), of(1)), r"strides are \(1, 1\) in one convolution and \(2, 2\)"),
        (parallel(of(5, kernel_dilation=2), of(3)), r"dilation \(1, 1\) does not meet .* dilation \(2, 2\)"),
        (parallel(of(3, feature_group_count=2), of(1)), "feature_group_count is 1 in one convolution and 2 in another"),
        (parallel(of(5), of(3, padding="CIRCULAR")), "padding 'CIRCULAR'"),
        (parallel(of((1, 5)), of((5, 1))), "does not meet"),
        (parallel(of(3, padding=1), identity=True, strides=2), r"strides \(2, 2\) from 4 to 4 channels does not"),
        (parallel(of(3, padding=0), identity=True), "padding 0 is not that of a map that keeps its size"),
        (parallel(), "there are no convolutions to add"),
    ],
)
def test_what_is_no_single_convolution_is_refused(block, message):
    with pytest.raises(ValueError, match=f"add_convolutions: .*{message}"):
        block.fused()


@pytest.mark.usefixtures("unchecked_types")
def test_only_convolutions_are_added():
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"pairs of an nnx.Conv and its norm, not of a Linear"):
        add_convolutions([(linear, BatchNorm(2))])


@pytest.mark.parametrize("kind", [dict(use_scale=False), dict(use_bias=False), dict(use_scale=False, use_bias=False)])
def test_norms_without_scale_or_bias(kind):
    class Block(nnx.Module):
        def __init__(self, *, param_dtype, rngs):
            self.conv = nnx.Conv(4, 6, (3, 3), use_bias=False, param_dtype=param_dtype, rngs=rngs)
            self.norm = nnx.BatchNorm(6, param_dtype=param_dtype, dtype=param_dtype, **kind, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x))

        def fused(self):
            return add_convolutions([(self.conv, self.norm)])

    block = build(Block)
    x = jnp.asarray(random_array(2, 5, 6, 4))
    # Flax's statistics are in float32, and so is its reciprocal root.
    assert_close(fuse_params(block)(x), evaluate(block, x), 1e-6)
