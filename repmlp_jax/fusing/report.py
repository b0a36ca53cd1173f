"""What `fuse_params` does to a model, block by block."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.algebra import Norm
from repmlp_jax.fusing.fuse import dotted, fusable_modules, is_fusable, replace_modules, with_fused_modules
from repmlp_jax.fusing.macs import count_macs


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """What happens to one block.

    Attributes:
        path: where it sits in the model.
        kind: its class.
        folded: part of the block → where it goes.
        kept: part of the block → why it stays.
        parameters: trained parameters before and after fusing.
        macs: multiply-accumulates for one image before and after; None where the input size is not known.
    """

    path: str
    kind: str
    folded: dict[str, str]
    kept: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class FuseReport:
    """What happens to a model; printed, it is a table.

    Attributes:
        blocks: every block that is fused and every norm that stays.
        parameters: trained parameters of the whole model before and after.
        macs: multiply-accumulates of the whole model before and after; None where the input size is not known.
        official: parameters and multiply-accumulates after the official code's conversion, which leaves norms that
            `fuse_params` folds; None where both come to the same.
    """

    blocks: tuple[BlockReport, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    official: tuple[int, int | None] | None = None

    def __str__(self) -> str:
        rows = [("block", "kind", "parameters", "multiply-accumulates", "folded and kept")]
        for block in self.blocks:
            notes = [f"{part} {place}" for part, place in block.folded.items()]
            notes += [f"{part} stays: {reason}" for part, reason in block.kept.items()]
            rows.append(
                (
                    block.path,
                    block.kind,
                    change(block.parameters),
                    change(block.macs),
                    notes[0] if notes else "",
                )
            )
            rows += [("", "", "", "", note) for note in notes[1:]]
        rows.append(("total", "", change(self.parameters), change(self.macs), ""))
        if self.official:
            parameters, macs = self.official
            after = "not known" if macs is None else f"→ {macs:,}"
            rows.append(("official conversion", "", f"→ {parameters:,}", after, "leaves norms that are folded here"))
        return table(rows)


def report(
    model: nnx.Module,
    input_shape: tuple[int, int, int] | None = None,
    *,
    official: Callable[[nnx.Module], nnx.Module] | None = None,
) -> FuseReport:
    """Lists every block of a model: what fusing folds, what stays and why, parameters and MACs before and after.

    Nothing is computed, and abstract models will do.

    Args:
        model: any NNX module.
        input_shape: (height, width, channels) of an image; None: `model.input_shape`, or what a block was built for.
            Where neither exists, multiply-accumulates are None.
        official: what the official code's conversion makes of a model, for the row of that conversion.
    """
    # The image's dtype need not be the model's, as only shapes are read.
    with jax.numpy_dtype_promotion("standard"):
        return _report(model, input_shape, official)


def _report(model, input_shape, official) -> FuseReport:
    model = nnx.clone(model)
    model.eval()
    inputs = _inputs_of_blocks(model, input_shape)
    blocks = [_report_block(path, block, inputs.get(path)) for path, block in fusable_modules(model)]
    blocks += _norms_outside(model)
    fused = nnx.eval_shape(with_fused_modules, model)
    whole = inputs.get(())
    macs = None if whole is None else (_macs(model, whole), _macs(fused, whole))
    parameters = count_parameters(model), count_parameters(fused)
    official_row = None
    if official is not None:
        converted = nnx.eval_shape(official, model)
        if (count := count_parameters(converted)) != parameters[1]:
            official_row = count, None if whole is None else _macs(converted, whole)
    return FuseReport(tuple(blocks), parameters, macs, official_row)


def count_parameters(model: nnx.Module) -> int:
    """Trained parameters of a module; running statistics do not count."""
    return sum(math.prod(variable.shape) for variable in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _macs(module, image):
    return count_macs(lambda module, x: module(x), module, image)


def _report_block(path, block, image):
    fused = nnx.eval_shape(lambda block: block.fused(), block)
    return BlockReport(
        dotted(path),
        type(block).__name__,
        block.folds() if hasattr(block, "folds") else {},
        block.keeps() if hasattr(block, "keeps") else {},
        (count_parameters(block), count_parameters(fused)),
        None if image is None else (_macs(block, image), _macs(fused, image)),
    )


def _norms_outside(model):
    inside = {id(node) for _, block in fusable_modules(model) for _, node in nnx.iter_graph(block)}
    for path, norm in nnx.iter_graph(model):
        if isinstance(norm, nnx.Module) and isinstance(norm, Norm) and id(norm) not in inside:
            parameters = count_parameters(norm)
            reason = {"norm": "no block with fused() holds it"}
            yield BlockReport(dotted(path), type(norm).__name__, {}, reason, (parameters, parameters), (0, 0))


def _inputs_of_blocks(model, input_shape) -> dict[tuple, jax.ShapeDtypeStruct]:
    """What the model () and each fusable block is called with, for one image."""
    input_shape = input_shape or getattr(model, "input_shape", None)
    if input_shape is None:
        blocks = list(fusable_modules(model))
        return {path: _image(block.input_shape) for path, block in blocks if hasattr(block, "input_shape")}
    image = _image(input_shape)
    return {(): image} | inputs_of(model, image, is_fusable)


def inputs_of(
    model: nnx.Module, image: jax.ShapeDtypeStruct, chosen: Callable[[object], bool]
) -> dict[tuple, jax.ShapeDtypeStruct]:
    """What each outermost chosen module, by its path, is called with when the model is called with an image."""
    seen = {}

    class Recorder(nnx.Module):
        def __init__(self, path, module):
            self.path = path
            self.module = module

        def __call__(self, x):
            seen[self.path] = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return self.module(x)

        def __getattr__(self, name):
            return getattr(vars(self)["module"], name)

    recording = replace_modules(model, chosen, Recorder)
    jax.eval_shape(lambda model, x: model(x), recording, image)
    return seen


def _image(shape):
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of equally many cells as lines of text, the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def change(pair: tuple[int, int] | None) -> str:
    """Counts before and after as text, or one where they are equal."""
    if pair is None:
        return "not known"
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
