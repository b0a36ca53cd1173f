"""Whether the run in a folder may be resumed: what it has learned is what this run would have learned."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from repmlp_jax.storage.checkpoints import read_records
from repmlp_jax.training.config import FREE, FREE_ONCE_STARTED, OF_A_PROCESS, differences
from repmlp_jax.training.environment import check_environment
from repmlp_jax.training.optimizer import make_schedule


def check_processes(config: ConfigDict) -> None:
    """Raises ValueError if the processes of a run have different configurations."""
    check_same("configuration", {name: value for name, value in _plain(config).items() if name not in OF_A_PROCESS})


def check_same(what: str, value: Any) -> None:
    """Raises ValueError if something, which JSON can hold, is not the same in all processes of a run."""
    if jax.process_count() > 1:
        digest = np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode()))
        digests = multihost_utils.process_allgather(digest)
        if differing := [index for index, other in enumerate(digests.tolist()) if other != digests[0]]:
            raise ValueError(f"processes {differing} of {jax.process_count()} have another {what} than process 0")


def check_resumable(workdir: Path, config: ConfigDict, examples: int) -> None:
    """Compares a run with the one in the folder: with `config.json`, and with what each checkpoint holds.

    Args:
        workdir: the run's folder.
        config: of the run.
        examples: number of training examples.

    Raises:
        ValueError: if fields differ that change what is learned, or flags of JAX, or the number of examples; if a
            checkpoint is not that of its name, or `config.json` cannot be read.
    """
    folder = workdir / "checkpoints"
    records = {step: record for step, record in read_records(folder).items() if record}
    configs = {str(folder / str(step)): record["config"] for step, record in records.items() if record["config"]}
    free = (*FREE, "epochs", *(FREE_ONCE_STARTED if records else ()))
    for where, found in (_stored(workdir) | configs).items():
        if differing := differences(_plain(config), found, free):
            raise ValueError(
                f"{where} holds a run of another configuration: {'; '.join(differing)}. "
                f"Choose another workdir, or resume that run with its own configuration"
            )
    if records:
        newest = max(records)
        where = str(folder / str(newest))
        check_environment(records[newest]["environment"], examples, where)
        epochs = records[newest]["config"].get("epochs", config.epochs)
        _check_epochs(where, newest, epochs, config, examples // config.batch_size)


def _stored(workdir) -> dict[str, dict[str, Any]]:
    """The configuration in `config.json`, by the folder's name; empty without the file."""
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it: each checkpoint holds the configuration") from error
    if not isinstance(stored, dict):
        raise ValueError(
            f"{path} holds a {type(stored).__name__} and not the fields of a configuration. Remove it: each checkpoint "
            f"holds the configuration"
        )
    return {str(workdir): stored}


def _check_epochs(where, step, epochs, config, steps_per_epoch):
    """Raises ValueError if with another number of epochs the steps so far would have had other learning rates."""
    if step > config.epochs * steps_per_epoch:
        raise ValueError(
            f"epochs={config.epochs} ends at step {config.epochs * steps_per_epoch}, before {where}; set epochs to "
            f"{-(-step // steps_per_epoch)} or more"
        )
    if epochs == config.epochs:
        return
    then = ConfigDict(config)
    then.epochs = epochs
    steps = jnp.arange(step, dtype=jnp.int32)
    now_rates, rates = (np.asarray(jax.vmap(make_schedule(one, steps_per_epoch))(steps)) for one in (config, then))
    if not np.array_equal(now_rates, rates):
        raise ValueError(
            f"epochs is {config.epochs} now and {epochs} in {where}: with schedule={config.schedule!r} the learning "
            f"rate of earlier steps depends on it, first that of step {np.flatnonzero(now_rates != rates)[0] + 1}. "
            f"Start a run in another workdir, with init_from set to the model/ of this one, to train it further. A "
            f"run can be prolonged with schedule='steps' with drop_at=(), a constant rate"
        )


def _plain(config) -> dict[str, Any]:
    return json.loads(config.to_json())
