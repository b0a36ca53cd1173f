"""Trains a model, fuses it, and compares the two.

    repmlp-jax train digits          # handwritten digits, in under a minute
    repmlp-jax train cifar:wide_convnet --workdir=runs/wide --config.epochs=10
    repmlp-jax train --config=mine.py:variant
    repmlp-jax train digits --repeat=3      # three seeds in a row, and their mean and deviation

`python train.py`, in a copy of the repository, is the same. The same command resumes an interrupted run. On several
machines, start it on each with --distributed. Slurm, TPU and Kubernetes jobs are recognised. Elsewhere, also pass
--coordinator_address, --num_processes and --process_id.
"""

import sys
import textwrap
from pathlib import Path
from typing import Any

from absl import app, flags

from repmlp_jax.training.command_line import ask_for_deterministic_algorithms, parse_flags, report_errors
from repmlp_jax.training.recipe_file import define_recipe, recipes

_CONFIG = define_recipe("config", "digits", "File of a recipe, with a variant after ':'.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the recipe's name.")
_REPEAT = flags.DEFINE_integer("repeat", None, "Train with this many seeds, one after another.", lower_bound=2)
_NO_CACHE = flags.DEFINE_bool("no-cache", False, "Compile all, and keep no compiled program on disk.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Train together with other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")


def run(arguments: list[str]):
    """Runs the program and exits, with the name of the program as the first argument."""
    # absl shows the flags and the docstring of the main module as its help, and ml_collections reads sys.argv.
    sys.argv = arguments
    for flag in (_CONFIG, _WORKDIR, _REPEAT, _NO_CACHE, _DISTRIBUTED, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
        flags.FLAGS.register_key_flag_for_module(arguments[0], flags.FLAGS[flag.name])
    names = textwrap.fill(f"Recipes: {', '.join(recipes())}; by default digits.", 100)
    sys.modules["__main__"].__doc__ = f"{__doc__}\n{names}\n"
    app.run(_main, arguments, flags_parser=parse_flags)


def _main(_):
    with report_errors():
        from repmlp_jax.compilation_cache import keep_compiled_programs
        from repmlp_jax.tasks import train_and_evaluate
        from repmlp_jax.tasks.repeat import train_with_seeds
        from repmlp_jax.training.processes import check_processes, connect

        ask_for_deterministic_algorithms()
        keep_compiled_programs(not _NO_CACHE.value)
        processes = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        check_processes(_DISTRIBUTED.value, *processes)
        if _DISTRIBUTED.value:
            connect(*processes)
        flag: Any = flags.FLAGS[_CONFIG.name]
        recipe = Path(flag.config_filename).name.replace(".py", "").replace(":", "_")
        workdir = _WORKDIR.value or f"runs/{recipe}"
        if _REPEAT.value is None:
            train_and_evaluate(_CONFIG.value, workdir)
        else:
            train_with_seeds(_CONFIG.value, workdir, _REPEAT.value)
