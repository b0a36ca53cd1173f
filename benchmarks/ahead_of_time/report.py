"""A row's costs as JSON, and as text."""

import importlib.metadata
import json
import re
import time
from pathlib import Path

import jax
from measure import provenance
from on_accelerator.journal import one_line

from ahead_of_time import costs, hlo, programs
from ahead_of_time.changes import read
from ahead_of_time.rows import Row
from ahead_of_time.targets import TARGETS, devices
from repmlp_jax.storage.whole_file import whole_file


def measure(row: Row, target_name: str, folder: Path | None = None) -> dict:
    """Compiles a row and reads its costs; an error becomes the entry `failed`.

    Args:
        row: what is compiled.
        target_name: a key of `TARGETS`.
        folder: for the program's text; None: it is not kept.
    """
    target = TARGETS[target_name]
    # A program from the cache has been compiled in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    found = dict(row=str(row), target=target_name)
    try:
        start = time.perf_counter()
        lowered, macs = programs.lowered(row, devices(target, row.chips))
        program = lowered.compile()
        seconds = time.perf_counter() - start
        text = program.as_text()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / (re.sub(r"[ :]", "_", str(row)) + ".txt")).write_text(text)
        parsed = hlo.parse(text)
        parameters = costs.padding(costs.parameters(parsed, ("parameters", "state.parameters")))
        memory = program.memory_analysis()
        least = (
            2 * macs / target.rates[row.dtype.removesuffix("_parameters")],
            parameters["bytes"] / target.bandwidth,
        )
        found |= dict(
            ideal_ms=max(least) * 1e3,
            **costs.summary(costs.costs(parsed), target.clock, target.bandwidth),
            macs=macs,
            parameters=parameters,
            argument_bytes=memory.argument_size_in_bytes,
            # Arguments that are donated are results, too.
            peak_bytes=memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes,
            collectives=costs.collectives(parsed),
            compile_seconds=seconds,
        )
    except Exception as error:
        found["failed"] = one_line(error)
    return found | dict(provenance=_provenance(target.platform))


def record(path: Path, found: dict) -> None:
    """Writes a row to a file of JSON lines, in place of an earlier one of its name."""
    rows = read(path) if path.exists() else {}
    rows[found["row"]] = found
    with whole_file(path, overwrite=True) as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def printed(found: dict) -> str:
    """A row as lines of text: its figures, its kinds of instructions, and those that cost most."""
    if "failed" in found:
        return f"{found['row']}: failed: {found['failed']}"
    parameters, traffic = found["parameters"], found["traffic"]
    estimated = f"estimated {found['estimated_ms']:.2f} ms, " if found["estimated_ms"] is not None else ""
    lines = [
        f"{found['row']}: {estimated}ideal {found['ideal_ms']:.2f} ms, bytes at the bandwidth "
        f"{traffic['ms_at_bandwidth']:.2f} ms",
        f"    parameters {_megabytes(parameters)}; traffic {_megabytes(traffic)}; copies {found['copies_share']:.0%}; "
        f"{found['kernels']} kernels; compiled in {found['compile_seconds']:.0f} s",
        f"    memory: peak {found['peak_bytes'] / 1e6:.0f} MB, arguments {found['argument_bytes'] / 1e6:.0f} MB",
    ]
    for name, row in found["collectives"].items():
        lines.append(f"    {row['count']} × {name}, {row['bytes'] / 1e6:.2f} MB")
    lines.append(f"    by kind, of {found['shares_of']}:")
    for name, row in found["kinds"].items():
        lines.append(f"    {row['share']:6.1%}  {row['kernels']:4} × {name}, {row['padded_bytes'] / 1e6:.1f} MB")
    lines.append("    most expensive:")
    for row in found["dearest"]:
        lines.append(
            f"    {row['share']:6.1%}  {row['kernels']:4} × {row['instruction']} ({row['kind']}) → {row['output']}, "
            f"{row['padded_bytes'] / 1e6:.1f} MB, {row['op_name']}"
        )
    return "\n".join(lines)


def _megabytes(row):
    return f"{row['bytes'] / 1e6:.1f} MB, {row['padded_over_plain']:.2f} × that in tiles"


def _provenance(platform):
    made = provenance()
    del made["devices"]  # There are none of those that were compiled for.
    names = {"tpu": ("libtpu",), "cuda": ("jax-cuda12-plugin",)}[platform]
    for name in names:
        try:
            made["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            made["versions"][name] = None
    return made
