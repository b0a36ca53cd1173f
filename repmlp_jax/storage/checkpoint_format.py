"""One checkpoint on disk: written by Orbax with a digest of every array, not believed before they agree.

The digests are of arrays, not of files: Orbax's files depend on the processes and devices that write them, and an
array's digest does not; and the error names the array.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from repmlp_jax.storage.digest import describe, digests


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is damaged."""


class Record(TypedDict):
    """What a checkpoint says of itself; the dicts of arrays have the paths of the leaves as their keys."""

    arrays: dict[str, str]
    digests: dict[str, int]
    metrics: dict[str, float]
    config: dict[str, Any]


def make_record(state: Any, metrics: Mapping[str, float], config: Mapping[str, Any]) -> Record:
    """Describes a state; where it is spread over several processes, all of them make this call."""
    return Record(arrays=describe(state), digests=digests(state), metrics=dict(metrics), config=dict(config))


def write(path: Path, state: Any, record: Record) -> Any:
    """Starts writing a checkpoint; until it is complete nothing is at `path`.

    Args:
        path: a folder that is not there yet.
        state: PyTree of `jax.Array`s; it may be donated or deleted as soon as this returns.
        record: that of the state.

    Returns:
        The save under way; its `result()` waits, and raises what went wrong.
    """
    # Orbax protects its metadata no more than its data: the record carries a digest of its own.
    text = json.dumps(record)
    return ocp.save_async(path, state, custom_metadata={"record": text, "sha256": _sha256(text)})


def read_record(path: Path) -> Record:
    """Reads what a checkpoint says of itself.

    Raises:
        CheckpointError: it is damaged.
    """
    return _attempt(path, lambda: _open_record(path))


def read(path: Path, abstract_state: Any, retyped: Collection[str] = ()) -> Any:
    """Reads a checkpoint. Where several processes train together, all of them make this call.

    Args:
        path: the checkpoint.
        abstract_state: PyTree of `jax.ShapeDtypeStruct`s; their shardings are those of the arrays returned
            (none: the first device), whatever they were when saved.
        retyped: paths of arrays that may have been saved in another dtype, and are cast.

    Returns:
        The state, bit for bit as it was saved, but for what is cast.

    Raises:
        ValueError: the checkpoint holds other arrays than `abstract_state`.
        CheckpointError: it is damaged.
    """
    record = _attempt_everywhere(path, lambda: _open_record(path))
    wanted = jax.tree.map(_placed, abstract_state)
    leaves, structure = jax.tree.flatten(wanted)
    dtypes = {name: record["arrays"][name].partition("[")[0] for name in retyped if name in record["arrays"]}
    saved = jax.tree.unflatten(
        structure, [_with_dtype(leaf, dtypes.get(name)) for name, leaf in zip(describe(wanted), leaves, strict=True)]
    )
    _require_same_arrays(path, saved=record["arrays"], wanted=describe(saved))
    state = _attempt_everywhere(path, lambda: _load(path, saved, record))
    _attempt_everywhere(path, lambda: _require_digests(state, record))
    return jax.tree.map(
        lambda array, leaf: array.astype(leaf.dtype) if array.dtype != leaf.dtype else array, state, wanted
    )


def _open_record(path: Path) -> Record:
    sealed = ocp.metadata(path).custom_metadata or {}
    if _sha256(sealed.get("record", "")) != sealed.get("sha256"):
        raise ValueError("wrong digest of the metadata")
    return json.loads(sealed["record"])


def _load(path: Path, placed: Any, record: Record) -> Any:
    # With all processes active, Orbax would wait for ever for the one that meets the damaged file.
    with _this_process_alone():
        state = ocp.load(path, placed)
    if describe(state) != record["arrays"]:
        raise ValueError("arrays of other shapes than were saved")
    # Orbax gives keys on a mesh of one device a sharding of its own, at which a step would be traced again.
    return jax.tree.map(_move, state, placed)


def _require_digests(state: Any, record: Record) -> None:
    found = digests(state)
    if changed := [name for name, digest in record["digests"].items() if found[name] != digest]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError("wrong values in " + ", ".join(changed[:5]) + more)


def _attempt(path: Path, action: Callable[[], Any]) -> Any:
    # Whatever a library raises over a damaged file (KeyError, UnicodeDecodeError, ...) means just that.
    try:
        return action()
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {reason(error)}") from error


def _attempt_everywhere(path: Path, action: Callable[[], Any]) -> Any:
    """Fails in all processes if it fails in one, so that all of them go on to the same checkpoint."""
    result, failure = None, None
    try:
        result = _attempt(path, action)
    except CheckpointError as error:
        failure = error
    if jax.process_count() > 1 and not np.all(multihost_utils.process_allgather(np.asarray(failure is None))):
        failure = failure or CheckpointError(f"checkpoint {path} is damaged: unreadable in another process")
    if failure is not None:
        raise failure
    return result


def _this_process_alone() -> ocp.Context:
    context, process = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    return context


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: str | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding) if dtype else leaf


def _move(array: jax.Array, placed: jax.ShapeDtypeStruct) -> jax.Array:
    return array if array.sharding == placed.sharding else jax.device_put(array, placed.sharding)


def _require_same_arrays(path: Path, *, saved: dict[str, str], wanted: dict[str, str]) -> None:
    differences = {
        "only in the checkpoint": [name for name in saved if name not in wanted],
        "only in the state": [name for name in wanted if name not in saved],
        "different": [
            f"{name} ({saved[name]} in the checkpoint, {wanted[name]} in the state)"
            for name in saved
            if name in wanted and saved[name] != wanted[name]
        ],
    }
    if any(differences.values()):
        parts = [f"{kind}: {', '.join(names)}" for kind, names in differences.items() if names]
        raise ValueError(f"checkpoint {path} holds other arrays than the state; " + "; ".join(parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reason(error: BaseException) -> str:
    """What went wrong, in one line; Orbax adds pages of storage settings, among them which array it was."""
    summary = re.split(r"\n|See full TensorStore|\[tensorstore_spec", str(error))[0].strip()[:300]
    array = re.search(r"""path\W+([^/'"\\]+)/\W""", str(error))
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return kind + summary + (f" (array {array[1]})" if array else "")
