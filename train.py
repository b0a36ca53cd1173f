"""Trains a model, fuses it, and puts both side by side.

    python train.py                         # handwritten digits, in under a minute
    python train.py --config=configs/cifar.py --workdir=runs/cifar --config.epochs=10
    python train.py --config=configs/cifar.py:wide_convnet
    python train.py --repeat 3              # three seeds in a row, and their mean and deviation

The same command resumes an interrupted run. On several machines, start it on each with --distributed; Slurm, TPU and
Kubernetes jobs are recognised, elsewhere add the three flags below it.
"""

from pathlib import Path

from absl import app, flags

from repmlp_jax.training.command_line import ask_for_deterministic_algorithms, parse_flags, report_errors
from repmlp_jax.training.recipe_file import define_recipe

_DIGITS = str(Path(__file__).with_name("configs") / "digits.py")
_CONFIG = define_recipe("config", _DIGITS, "File of the recipe, with a variant after ':'; by default the digits.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the recipe's name.")
_REPEAT = flags.DEFINE_integer("repeat", None, "Train with this many seeds, one after another.", lower_bound=2)
_NO_CACHE = flags.DEFINE_bool("no-cache", False, "Compile all, and keep no compiled program on disk.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Train together with other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0.")


def main(_):
    """Runs `train_and_evaluate` on what the flags say."""
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
        recipe = Path(flags.FLAGS["config"].config_filename).name.replace(".py", "").replace(":", "_")
        workdir = _WORKDIR.value or f"runs/{recipe}"
        if _REPEAT.value is None:
            train_and_evaluate(_CONFIG.value, workdir)
        else:
            train_with_seeds(_CONFIG.value, workdir, _REPEAT.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
