import jax
import jax.numpy as jnp
import pytest
from cases import abstract
from jax import lax

from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.fusing.macs import count_macs


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


CONVOLUTIONS = [
    # 5×6 map, 4 → 8 channels: output pixels · kernel · channels seen · output channels
    pytest.param(dict(kernel_size=3), 5 * 6 * 9 * 4 * 8, id="plain"),
    pytest.param(dict(kernel_size=1), 5 * 6 * 4 * 8, id="1×1"),
    pytest.param(dict(kernel_size=(1, 5)), 5 * 6 * 5 * 4 * 8, id="not square"),
    pytest.param(dict(kernel_size=3, strides=2), 3 * 3 * 9 * 4 * 8, id="stride"),
    pytest.param(dict(kernel_size=3, groups=2), 5 * 6 * 9 * 2 * 8, id="groups"),
    pytest.param(dict(kernel_size=3, groups=4), 5 * 6 * 9 * 1 * 8, id="groups are channels"),
    pytest.param(dict(kernel_size=3, kernel_dilation=2), 5 * 6 * 9 * 4 * 8, id="dilation"),
]


@pytest.mark.parametrize(("options", "expected"), CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions(options, expected, batch):
    layer = abstract(ConvBN, 4, 8, **options)
    layer.eval()
    assert count_macs(lambda layer, x: layer(x), layer, array(batch, 5, 6, 4)) == batch * expected


@pytest.mark.parametrize(("groups", "seen"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
def test_a_convolution_that_is_not_ours(groups, seen, layout):
    shapes = {"NHWC": (2, 5, 6, 4), "NCHW": (2, 4, 5, 6), "HWIO": (3, 3, seen, 8), "OIHW": (8, seen, 3, 3)}

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups)

    assert count_macs(convolve, array(*shapes[layout[0]]), array(*shapes[layout[1]])) == 2 * 5 * 6 * 9 * seen * 8


PRODUCTS = [
    pytest.param(jnp.dot, ((3, 4), (4, 5)), 3 * 4 * 5, id="matrices"),
    pytest.param(jnp.dot, ((4,), (4,)), 4, id="vectors"),
    pytest.param(jnp.matmul, ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5, id="batched"),
    pytest.param(lambda a, b: jnp.tensordot(a, b, 2), ((3, 4, 5), (4, 5, 6)), 3 * 4 * 5 * 6, id="two axes at once"),
    pytest.param(jax.jit(lambda a, b: jax.jit(jnp.dot)(a, b) + 1), ((3, 4), (4, 5)), 3 * 4 * 5, id="nested jit"),
    pytest.param(lambda a, b: a @ b + jnp.sin(a @ b), ((3, 4), (4, 5)), 2 * 3 * 4 * 5, id="twice"),
    pytest.param(lambda a, b: a * b + a, ((3, 4), (3, 4)), 0, id="elementwise"),
    pytest.param(jax.checkpoint(jnp.dot), ((3, 4), (4, 5)), 3 * 4 * 5, id="checkpoint"),
    pytest.param(
        lambda a, b: lax.scan(lambda carry, _: (carry @ b, None), a, length=7)[0],
        ((3, 4), (4, 4)),
        48,
        id="loop body",
    ),
]


@pytest.mark.parametrize(("function", "shapes", "expected"), PRODUCTS)
def test_products(function, shapes, expected):
    assert count_macs(function, *(array(*shape) for shape in shapes)) == expected
