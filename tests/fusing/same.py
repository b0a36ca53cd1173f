"""Fusing a net and comparing its outputs with those before, in one program for all inputs."""

import jax
import jax.numpy as jnp
from cases import quick_jit, random_array
from flax import nnx
from tolerance import ROUNDING_F64, assert_trees_close

from repmlp_jax import fuse_params, fuse_report
from repmlp_jax.blocks.layers import BatchNorm as OurBatchNorm

NORMS = nnx.BatchNorm, OurBatchNorm


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
