"""One checkpoint on disk, which Orbax writes with a digest of every array; reading it compares the digests.

The digests are of arrays, not of files: Orbax's files depend on the processes and devices that write them, digests of
arrays do not. They also let an error name the array.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.host import host
from repmlp_jax.listing import listed
from repmlp_jax.storage import earlier_formats
from repmlp_jax.storage.digest import describe, digests

# Orbax logs, with a traceback from each thread, what it also raises.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in str(record.msg))


FORMAT = 2


class CheckpointError(RuntimeError):
    """Raised if a checkpoint could not be written or is damaged."""


class Record(TypedDict):
    """The metadata of a checkpoint; the keys of `arrays` and `digests` are the paths of the leaves.

    `environment` is as of the caller; {} in checkpoints of earlier versions, whose `step` is None if it is not known.
    """

    format: int
    step: int | None
    arrays: dict[str, str]
    digests: dict[str, int]
    metrics: dict[str, float]
    config: dict[str, Any]
    environment: dict[str, Any]


def make_record(
    step: int, state: Any, metrics: Mapping[str, float], config: Mapping[str, Any], environment: Mapping[str, Any]
) -> Record:
    """Describes a state; if it is spread over several processes, every process makes this call."""
    return Record(
        format=FORMAT,
        step=step,
        arrays=describe(state),
        digests=digests(state),
        metrics=dict(metrics),
        config=dict(config),
        environment=dict(environment),
    )


def write(path: Path, state: Any, record: Record) -> Any:
    """Starts writing a checkpoint; it appears at `path` when it is complete.

    Args:
        path: a folder that does not exist yet.
        state: PyTree of `jax.Array`s; it may be donated or deleted as soon as this returns.
        record: of the state.

    Returns:
        The save in progress; its `result()` waits for it, and raises its error.
    """
    # Orbax does not protect its metadata, so the record gets its own digest.
    text = json.dumps(record)
    return ocp.save_async(path, _with_what_is_there(state), custom_metadata={"record": text, "sha256": _sha256(text)})


def read_record(path: Path) -> Record:
    """Reads the metadata of a checkpoint.

    Raises:
        CheckpointError: if it is damaged.
    """
    return _attempt(path, lambda: _open_record(path))


def read(path: Path, abstract_state: Any, retyped: Collection[str] = ()) -> Any:
    """Reads a checkpoint; with several processes, every process makes this call.

    Args:
        path: the checkpoint.
        abstract_state: PyTree of `jax.ShapeDtypeStruct`s. The returned arrays have their shardings (None: the first
            device), whatever the shardings were when the state was saved.
        retyped: paths of arrays that may have been saved in another dtype and are cast.

    Returns:
        The state, bit for bit as it was saved, except the arrays that are cast.

    Raises:
        ValueError: if the checkpoint holds other arrays than `abstract_state`, or is of a newer format.
        CheckpointError: if it is damaged, or holds values that are NaN or infinite.
    """
    record = _attempt_everywhere(path, lambda: _open_record(path))
    if record["format"] > FORMAT:
        raise ValueError(f"checkpoint {path} is of format {record['format']}; this version reads formats 1 to {FORMAT}")
    wanted = _with_what_is_there(jax.tree.map(_placed, abstract_state))
    leaves, structure = jax.tree.flatten(wanted)
    dtypes = {name: record["arrays"][name].partition("[")[0] for name in retyped if name in record["arrays"]}
    named = dict(zip(describe(wanted), leaves, strict=True))
    named = {name: leaf.update(dtype=dtypes.get(name, leaf.dtype)) for name, leaf in named.items()}
    if record["format"] in earlier_formats.CHECKPOINTS:
        named = earlier_formats.as_stored(named, record["arrays"])
    pairs = zip(named.values(), leaves, strict=True)
    saved = jax.tree.unflatten(structure, [_whole_if_reshaped(*pair) for pair in pairs])
    _require_same_arrays(path, saved=record["arrays"], wanted=describe(saved))
    state = _attempt_everywhere(path, lambda: _load(path, saved, record))
    _attempt_everywhere(path, lambda: _require_digests(state, record))
    arrays = dict(zip(describe(state), jax.tree.leaves(state), strict=True))
    _attempt_everywhere(path, lambda: check_finite(arrays, "it"))
    state = jax.tree.map(_as_wanted, state, wanted)
    return abstract_state._replace(**state) if _is_named(abstract_state) else state


def _is_named(state: Any) -> bool:
    return isinstance(state, tuple) and hasattr(state, "_fields")


def _with_what_is_there(state: Any) -> Any:
    """A named tuple as a dict without the fields that are None: checkpoints of earlier versions lack these."""
    if not _is_named(state):
        return state
    return {name: value for name, value in state._asdict().items() if value is not None}


def _open_record(path: Path) -> Record:
    sealed = ocp.metadata(path).custom_metadata or {}
    if _sha256(sealed.get("record", "")) != sealed.get("sha256"):
        raise ValueError("wrong digest of the metadata")
    record = json.loads(sealed["record"])
    # Earlier versions wrote none of these; but the digest of a whole number, such as the state's step, is the number.
    has_step = record["arrays"].get("step") == "int32[]"
    return {"format": 1, "step": record["digests"]["step"] if has_step else None, "environment": {}} | record


def _load(path: Path, placed: Any, record: Record) -> Any:
    # With all processes active, Orbax would wait forever for a process that fails on a damaged file.
    with _this_process_alone():
        state = ocp.load(path, placed)
    if describe(state) != record["arrays"]:
        raise ValueError("arrays of other shapes than were saved")
    # Orbax gives random keys on a mesh of one device another sharding, which would retrace the step.
    return jax.tree.map(_move, state, placed)


def _require_digests(state: Any, record: Record) -> None:
    found = digests(state)
    if changed := [name for name, digest in record["digests"].items() if found[name] != digest]:
        raise ValueError(f"wrong values in {listed(changed)}")


def _attempt(path: Path, action: Callable[[], Any]) -> Any:
    # Libraries raise any kind of error on a damaged file (KeyError, UnicodeDecodeError, ...).
    try:
        return action()
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {reason(error)}") from error


def _attempt_everywhere(path: Path, action: Callable[[], Any]) -> Any:
    """Fails in all processes if it fails in one, so that all of them continue with the same checkpoint."""
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
    return leaf.update(sharding=leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def _whole_if_reshaped(saved: jax.ShapeDtypeStruct, wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Places an array of another shape whole on each process's host, since the sharding is for the wanted shape."""
    if saved.shape == wanted.shape:
        return saved
    return saved.update(sharding=jax.sharding.SingleDeviceSharding(host() or jax.local_devices()[0]))


def _as_wanted(array: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    if array.shape != wanted.shape:
        whole = np.asarray(array).reshape(wanted.shape)
        array = jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda index: whole[index])
    return array if array.dtype == wanted.dtype else array.astype(wanted.dtype)


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
    """An error in one line; Orbax's messages hold pages of storage settings, which include the array's name."""
    summary = re.split(r"\n|See full TensorStore|\[tensorstore_spec", str(error))[0].strip()[:300]
    array = re.search(r"""path\W+([^/'"\\]+)/\W""", str(error))
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return kind + summary + (f" (array {array[1]})" if array else "")
