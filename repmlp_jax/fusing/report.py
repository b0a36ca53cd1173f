"""The report of `fuse_params`, block by block."""

import dataclasses
import html
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.folding import Folding, abstractly, selection, transformed_abstractly
from repmlp_jax.fusing.fuse import (
    check_module,
    find_foldable,
    fusable_modules,
    is_fusable,
    is_norm,
    stack_shape,
    with_fused_modules,
)
from repmlp_jax.fusing.macs import count_macs
from repmlp_jax.fusing.marks import OF_THE_DATA, is_affine, layers_of
from repmlp_jax.fusing.modules import dotted, iterate_nodes, node_at, replace_modules
from repmlp_jax.fusing.order import call_order
from repmlp_jax.fusing.steps import AddBranches, FoldAfter, fold
from repmlp_jax.listing import listed

WIDTH = 100  # of the notes of a report


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """The changes to one block.

    Attributes:
        path: path in the model.
        kind: name of its class.
        folded: part of the block → where it is folded.
        kept: part of the block → why it stays.
        parameters: number of trained parameters before and after fusing.
        macs: multiply-accumulates for one image, or for the example, before and after; None if the input size is not
            known.
    """

    path: str
    kind: str
    folded: dict[str, str]
    kept: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class FuseReport:
    """The changes to a model; `print` shows them as a table.

    Attributes:
        blocks: every block that is fused and every norm that stays, in the order in which the model calls them; if the
            input size is not known, in the order in which Flax holds them.
        parameters: number of trained parameters of the model before and after.
        macs: multiply-accumulates of the model before and after, for one image or for the example; None if the input
            size is not known.
        official: parameters and multiply-accumulates after the official code's conversion, which keeps norms that
            `fuse_params` folds; None if the results are equal.
    """

    blocks: tuple[BlockReport, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    official: tuple[int, int | None] | None = None

    def __str__(self) -> str:
        head, *rows = self._rows()
        aligned = iter(table([head[:-1], *(row[:-1] for row in rows if any(row[:-1]))]).splitlines())
        text = [next(aligned)]
        for *cells, note in rows:
            if any(cells):
                text.append(next(aligned))
            text += textwrap.wrap(note, WIDTH, initial_indent="    ", subsequent_indent="        ")
        return "\n".join(text)

    def _repr_html_(self) -> str:
        """The table, as a notebook shows it."""
        return html_table(self._rows())

    def to_json(self) -> str:
        """The fields as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("block", "kind", "parameters", "multiply-accumulates", "folded and kept")]
        for block in self.blocks:
            notes = [f"{part} {place}" for part, place in block.folded.items()]
            notes += [f"{part} stays: {reason}" for part, reason in block.kept.items()]
            first, *others = notes or [""]
            rows.append((block.path, block.kind, change(block.parameters), change(block.macs), first))
            rows += [("", "", "", "", note) for note in others]
        rows.append(("total", "", change(self.parameters), change(self.macs), ""))
        if self.official:
            parameters, macs = self.official
            after = "not known" if macs is None else f"→ {macs:,}"
            rows.append(("official conversion", "", f"→ {parameters:,}", after, "leaves norms that are folded here"))
        return rows


def report(
    model: nnx.Module,
    input_shape: Sequence[int] | None = None,
    *,
    folding: Folding | None = None,
    official: Callable[[nnx.Module], nnx.Module] | None = None,
) -> FuseReport:
    """The report of `interop.report.fuse_report`, whose arguments it takes.

    Args:
        model: any NNX module.
        input_shape: (height, width, channels) of an image, or None.
        folding: the call that is folded for; None: only modules with `fused()`.
        official: the official code's conversion, for its row; None: no row.
    """
    check_module(model, "fuse_report")
    if input_shape is not None and (len(input_shape) != 3 or min(input_shape) < 1):
        raise ValueError(f"input_shape must be (height, width, channels), three positive integers, not {input_shape}")
    # Only shapes matter, so the dtype of the image may differ from the model's.
    with jax.numpy_dtype_promotion("standard"):
        return _report(model, input_shape, official) if folding is None else _report_call(model, folding)


def _report_call(model, folding) -> FuseReport:
    model = abstractly(model)
    model.eval()
    chosen = selection(model, folding.only)
    inputs = _inputs_of_blocks(model, None)
    blocks = [(path, block) for path, block in fusable_modules(model) if chosen(path, block)]
    with_own = transformed_abstractly(lambda model: with_fused_modules(model, folding.only), model)
    rows = {path: _report_block(path, block, node_at(with_own, path), inputs.get(path)) for path, block in blocks}
    found = find_foldable(with_own, folding)
    fused = transformed_abstractly(lambda model: fold(model, found.steps), with_own)
    rows |= _rows_of_layers(with_own, found)
    held = [path for path, _ in iterate_nodes(model) if path in rows]
    order = sorted(held, key=call_order(model, folding.apply, folding.inputs))
    macs = [count_macs(folding.apply, one, *folding.inputs) for one in (model, fused)]
    return FuseReport(
        tuple(rows[path] for path in order),
        (count_parameters(model), count_parameters(fused)),
        (macs[0], macs[1]),
    )


def _rows_of_layers(model, found) -> dict[tuple, BlockReport]:
    """Path → the row of each norm, and of each branch that became part of another."""
    layers = layers_of(model)
    notes: dict[int, tuple[dict, dict]] = {
        number: ({}, {"norm" if is_norm(layers[number][1]) else "branch": why}) for number, why in found.kept.items()
    }
    for step in found.steps:
        if isinstance(step, AddBranches):
            into = f"added to {dotted(layers[step.target][0])}"
            notes |= {number: ({"branch": into}, {}) for number in step.members}
        else:
            others = (step.layer,) if isinstance(step, FoldAfter) else step.layers
            into = f"folded into {listed(dotted(layers[number][0]) for number in others)}"
            if step.norm in found.narrower:
                into += f", computed in {found.narrower[step.norm]} then"
            notes[step.norm] = {"norm": into}, {}
    rows = {}
    for number, (folded, kept) in notes.items():
        path, layer = layers[number]
        count = count_parameters(layer)
        macs = found.pixels[number] * layer.kernel.size if is_affine(layer) else 0
        after = (0, 0) if folded else (count, macs)
        rows[path] = BlockReport(dotted(path), type(layer).__name__, folded, kept, (count, after[0]), (macs, after[1]))
    for path, node in iterate_nodes(model):
        if isinstance(node, OF_THE_DATA):
            kept, count = {"norm": "its statistics are those of the data"}, count_parameters(node)
            rows[path] = BlockReport(dotted(path), type(node).__name__, {}, kept, (count, count), (0, 0))
    return rows


def _report(model, input_shape, official) -> FuseReport:
    model = nnx.clone(model)
    model.eval()
    inputs = _inputs_of_blocks(model, input_shape)
    fused = nnx.eval_shape(with_fused_modules, model)
    rows = {
        path: _report_block(path, block, node_at(fused, path), inputs.get(path))
        for path, block in fusable_modules(model)
    } | dict(_norms_outside(model))
    whole = inputs.get(())
    order = list(rows) if whole is None else sorted(rows, key=call_order(model, _call, [whole]))
    macs = None if whole is None else (_macs(model, whole), _macs(fused, whole))
    parameters = count_parameters(model), count_parameters(fused)
    official_row = None
    if official is not None:
        converted = nnx.eval_shape(official, model)
        if (count := count_parameters(converted)) != parameters[1]:
            official_row = count, None if whole is None else _macs(converted, whole)
    return FuseReport(tuple(rows[path] for path in order), parameters, macs, official_row)


def count_parameters(model: nnx.Module) -> int:
    """The number of trained parameters of a module, without running statistics."""
    return sum(math.prod(variable.shape) for variable in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _macs(module, image):
    return count_macs(_call, module, image)


def _call(module, x):
    return module(x)


def fused_size(model: Any) -> tuple[int, int]:
    """The parameters of a fused model with an `input_shape`, which may be abstract, and its MACs for one image."""
    with jax.numpy_dtype_promotion("standard"):
        fused = nnx.eval_shape(with_fused_modules, model)
        return count_parameters(fused), _macs(fused, _image(model.input_shape))


def _report_block(path, block, fused, image):
    stack = stack_shape(block)

    def macs(module):
        if not stack:
            return _macs(module, image)
        one = nnx.eval_shape(lambda module: jax.tree.map(lambda array: array[(0,) * len(stack)], module), module)
        return math.prod(stack) * _macs(one, image)

    return BlockReport(
        dotted(path),
        type(block).__name__,
        block.folds() if hasattr(block, "folds") else {},
        block.keeps() if hasattr(block, "keeps") else {},
        (count_parameters(block), count_parameters(fused)),
        None if image is None else (macs(block), macs(fused)),
    )


def _norms_outside(model):
    inside = {id(node) for _, block in fusable_modules(model) for _, node in nnx.iter_graph(block)}
    for path, norm in nnx.iter_graph(model):
        if is_norm(norm) and id(norm) not in inside:
            parameters = count_parameters(norm)
            reason = {"norm": "no block with fused() holds it"}
            yield path, BlockReport(dotted(path), type(norm).__name__, {}, reason, (parameters, parameters), (0, 0))


def _inputs_of_blocks(model, input_shape) -> dict[tuple, jax.ShapeDtypeStruct]:
    """Path of each fusable block, and () for the model → its input for one image."""
    input_shape = input_shape or getattr(model, "input_shape", None)
    if input_shape is None:
        blocks: list = fusable_modules(model)
        return {path: _image(block.input_shape) for path, block in blocks if hasattr(block, "input_shape")}
    image = _image(input_shape)
    return {(): image} | inputs_of(model, image, is_fusable)


def inputs_of(
    model: nnx.Module, image: jax.ShapeDtypeStruct, chosen: Callable[[object], bool]
) -> dict[tuple, jax.ShapeDtypeStruct]:
    """Path of each outermost chosen module → its input when the model is called with an image."""
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
    """Formats rows of the same length as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def html_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Formats rows of the same length as a table of HTML, the first one as its head."""
    cell = '<{0} style="text-align: left">{1}</{0}>'  # notebooks would align them on the right
    kinds = ["th"] + ["td"] * (len(rows) - 1)
    lines = [
        "".join(cell.format(kind, html.escape(text)) for text in row) for kind, row in zip(kinds, rows, strict=True)
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def change(pair: tuple[int, int] | None) -> str:
    """Formats counts before and after, or a single count if they are equal."""
    if pair is None:
        return "not known"
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
