import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, abstract, build_block
from flax import nnx

from repmlp_jax import RepMLP, RepMLPNet, fuse_params
from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.fusing.report import count_parameters
from repmlp_jax.interop.report import fuse_report
from repmlp_jax.interop.torch import deployed
from repmlp_jax.models.cifar import PureMLP, WideConvNet


@functools.cache
def report_of(make, **options):
    return fuse_report(abstract(make, **options))


def test_the_pure_mlp_has_the_multiply_accumulates_of_the_paper():
    assert report_of(PureMLP).macs == (118_866_560, 52_806_272)


def test_the_wide_convnet_has_the_multiply_accumulates_of_the_paper():
    # It has no branch to merge: fusing spares it the norms alone.
    assert report_of(WideConvNet).macs == (65_111_296, 65_111_296)


# By hand: the 1×1 convolutions, then for each stage two mixers on maps of 32, 16, 8 with 16, 32, 64 channels.
POINTWISE = 1024 * (3 * 16 + 16 * 16 + 16 * 32) + 256 * (32 * 32 + 32 * 64) + 64 * (2 * 64 * 64) + 640
STAGES = [(32, 16), (16, 32), (8, 64)]
FC3 = sum(2 * (side // 8) ** 2 * (64 * channels) ** 2 // 2 for side, channels in STAGES)
GLOBAL = sum(2 * 2 * ((side // 8) ** 2 * channels) ** 2 for side, channels in STAGES if side > 8)


def convolutions(*sizes):
    return sum(2 * side**2 * size**2 * channels**2 // 2 for side, channels in STAGES for size in sizes)


@pytest.mark.parametrize(
    ("ablation", "before", "after"),
    [
        (None, POINTWISE + GLOBAL + FC3 + convolutions(1, 3, 5, 7), POINTWISE + GLOBAL + FC3),
        ("no_local", POINTWISE + GLOBAL + FC3, POINTWISE + GLOBAL + FC3),
        pytest.param("no_global", POINTWISE + FC3 + convolutions(1, 3, 5, 7), POINTWISE + FC3, marks=pytest.mark.slow),
        pytest.param(
            *("fc3_conv9", POINTWISE + GLOBAL + convolutions(1, 3, 5, 7, 9), POINTWISE + GLOBAL + FC3),
            marks=pytest.mark.slow,
        ),
        ("conv9", POINTWISE + convolutions(9), POINTWISE + convolutions(9)),
    ],
)
def test_multiply_accumulates_of_the_ablations(ablation, before, after):
    report = report_of(PureMLP, ablation=ablation)
    assert report.macs == (before, after)
    assert sum(block.macs[0] for block in report.blocks) == before - 640  # the classifier is not a block
    assert sum(block.macs[1] for block in report.blocks) == after - 640


def test_parameters_are_those_of_the_model_and_of_the_fused_one():
    model = abstract(PureMLP)
    report = report_of(PureMLP)
    assert report.parameters == (
        count_parameters(model),
        count_parameters(nnx.eval_shape(fuse_params, model)),
    )
    assert sum(block.parameters[0] for block in report.blocks) == report.parameters[0] - 650


def test_every_norm_of_the_pure_mlp_is_accounted_for():
    report = report_of(PureMLP)
    assert [block.kind for block in report.blocks] == ["ConvBN", *["RepMLP", "ConvBN"] * 6]
    first, last = report.blocks[1], report.blocks[-2]
    assert first.path == "stages.0.0"
    assert last.path == "stages.2.2"
    local = {f"local_perceptron.{k}x{k}": "conv and norm added to fc3" for k in (1, 3, 5, 7)}
    assert last.folded == {"partition_perceptron.norm": "folded into fc3", **local}
    assert first.folded == {"global_perceptron.norm": "folded into fc1", **last.folded}
    assert report.blocks[0].folded == {"norm": "folded into conv"}
    assert all(block.kept == {} for block in report.blocks)


class Users(nnx.Module):
    """A model that does not say what it takes, with a norm that no block holds."""

    def __init__(self, *, rngs):
        block = RepMLP(**CASES["plain"], rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([ConvBN(4, 4, 3, rngs=rngs), block, block])

    def __call__(self, x):
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_users_model_without_input_shape_has_the_numbers_that_are_known():
    report = fuse_report(abstract(Users))
    assert [(block.path, block.kind) for block in report.blocks] == [
        ("layers.0", "ConvBN"),
        ("layers.1", "RepMLP"),
        ("norm", "BatchNorm"),
    ]
    assert report.macs is None
    assert report.blocks[0].macs is None
    assert report.blocks[1].macs is not None
    assert report.blocks[2].kept == {"norm": "no block with fused() holds it"}
    assert "not known" in str(report)


def test_a_users_model_with_input_shape_counts_a_shared_block_at_every_call():
    report = fuse_report(abstract(Users), (6, 6, 4))
    assert [block.path for block in report.blocks] == ["norm", "layers.0", "layers.1"]  # as they are called
    convolution, block = report.blocks[1].macs, report.blocks[2].macs
    assert convolution == (36 * 9 * 16, 36 * 9 * 16)
    assert report.macs == tuple(once + 2 * twice for once, twice in zip(convolution, block, strict=True))
    assert report.parameters[0] == 9 * 16 + 8 + 8 + report.blocks[2].parameters[0]


class Backwards(nnx.Module):
    """A model whose attributes are in no order; the first norm is called in a loop, the last one never."""

    def __init__(self, *, rngs):
        self.a, self.b, self.c, self.unused = (nnx.BatchNorm(4, rngs=rngs) for _ in range(4))

    def __call__(self, x):
        x = jax.lax.fori_loop(0, 2, lambda _, x: nnx.relu(self.c(x)), x)
        return self.a(jax.jit(self.b)(x))


@pytest.mark.parametrize(
    "example", [(6, 6, 4), jax.ShapeDtypeStruct((1, 6, 6, 4), jnp.float32)], ids=["shape", "array"]
)
def test_rows_stand_in_the_order_of_the_calls(example):
    # Flax holds attributes of an abstract, cloned or fused model in the order of the alphabet.
    report = fuse_report(abstract(Backwards), example)
    assert [block.path for block in report.blocks] == ["c", "b", "a", "unused"]


def test_a_single_block():
    report = fuse_report(abstract(RepMLP, **CASES["plain"]))
    fc = 2 * 16 * 16 + 4 * 36 * 36 // 2
    assert report.macs == (fc + 36 * (1 + 9) * 16 // 2, fc)
    assert report.parameters[1] == 2 * (16 * 16 + 16) + 36 * 36 // 2 + 36


def test_a_fused_model_has_nothing_to_report():
    report = fuse_report(nnx.eval_shape(fuse_params, abstract(PureMLP)))
    assert report.blocks == ()
    assert report.macs == (52_806_272, 52_806_272)


def test_the_given_model_stays_as_it_is():
    model = abstract(RepMLP, **CASES["plain"])
    structure = nnx.graphdef(model)
    fuse_report(model)
    assert nnx.graphdef(model) == structure
    assert not model.partition_perceptron.norm.use_running_average


def test_printed_it_is_a_table():
    lines = str(report_of(PureMLP)).splitlines()
    assert lines[0].split() == ["block", "kind", "parameters", "multiply-accumulates"]
    assert lines[-1].startswith("total")
    assert "118,866,560 → 52,806,272" in lines[-1]
    assert lines[1].startswith("embedding")
    assert lines[2] == "    norm folded into conv"
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float64])
def test_no_array_is_made_and_the_dtype_does_not_matter(param_dtype):
    huge = CASES["plain"] | dict(in_features=4096, out_features=4096, groups=1)
    report = fuse_report(abstract(RepMLP, **huge, param_dtype=param_dtype))
    assert report.parameters[1] == 2 * ((4 * 4096) ** 2 + 4 * 4096) + (9 * 4096) ** 2 + 9 * 4096


@pytest.mark.slow
def test_where_fusing_goes_deeper_than_the_official_conversion_both_counts_are_there():
    net = RepMLPNet((1, 1), (4, 8), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2), rngs=nnx.Rngs(0))
    report = fuse_report(net)
    official = nnx.eval_shape(deployed, net)
    assert report.official == (count_parameters(official), report.macs[1])
    assert report.official[0] > report.parameters[1]
    row, note = str(report).splitlines()[-2:]
    assert row.startswith("official conversion")
    assert note == "    leaves norms that are folded here"
    assert fuse_report(fuse_params(net)).official is None
    assert fuse_report(build_block()).official is None


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_of_another_type_are_named():
    block = abstract(RepMLP, **CASES["plain"])
    for model, what in ((None, "NoneType"), ("x", "str"), (RepMLP, "the class RepMLP")):
        with pytest.raises(TypeError, match=f"fuse_report: model must be an nnx.Module, such as RepMLP.*, not {what}"):
            fuse_report(model)
    for shape in (6, (6.0, 6.0, 4.0), "abc", (6, 6, None)):
        with pytest.raises(TypeError, match="input_shape must be None or a sequence of positive integers, not"):
            fuse_report(block, shape)
    for shape in ((), (6, 6), (1, 6, 6, 4), (6, 6, -4), (0, 6, 4)):
        with pytest.raises(ValueError, match=r"input_shape must be .* positive integers, not"):
            fuse_report(block, shape)
    assert fuse_report(block, np.array([6, 6, 4])) == fuse_report(block, [6, 6, 4]) == fuse_report(block, (6, 6, 4))
