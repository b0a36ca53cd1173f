"""What a person sees of `train.py`: errors in one line, and no more log than they need."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging

from repmlp_jax.nearest import nearest
from repmlp_jax.storage.checkpoint_format import CheckpointError

logger = logging.getLogger("repmlp_jax")

BAD_INPUT = 2


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; a mistake in them ends the program with one line."""
    # Orbax reports each step of its work at the level "info", through absl.
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("repmlp_jax").setLevel(logging.INFO)
    try:
        recipe = _recipe_file(arguments)
        if recipe:
            _check_file(recipe)
        return flags.FLAGS(arguments)
    except AttributeError as error:
        # ml_collections' message, in quotes, has the nearest field in a second line.
        _exit("--config has no field " + str(error).strip("'").replace("\\'", "'").replace("\\n", "; "))
    except (flags.Error, OSError, ValueError) as error:
        if "get_config() takes 0 positional arguments" in str(error):
            _exit(f"{recipe} has no variants: nothing may follow a ':'")
        # An error within a recipe comes as a whole traceback; its last line is the recipe's own.
        _exit(str(error).strip().splitlines()[-1].strip() if "Traceback" in str(error) else str(error))


def ask_for_deterministic_algorithms():
    """Makes XLA compile the same arithmetic for a GPU in every process, unless the user's XLA_FLAGS say otherwise.

    By itself it chooses algorithms by timing them, and adds up in any order: two runs then differ in their last bits.
    To be called before JAX looks for devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = with_xla_flag(flags, "--xla_gpu_deterministic_ops=true")


def with_xla_flag(flags: str, flag: str) -> str:
    """A value of XLA_FLAGS with one more flag.

    XLA takes a value that does not start with "--" for the name of a file of flags. Such a value stays as it is, and a
    warning says what to add to the file, unless the file has the flag.
    """
    if is_file_of_xla_flags(flags):
        try:
            found = Path(flags).read_text()
        except OSError:
            found = ""  # XLA itself will say that it cannot read the file.
        if flag.partition("=")[0] not in found:
            logger.warning("XLA_FLAGS names the file %s, which is left as it is: add %s to it", flags, flag)
        return flags
    return f"{flags} {flag}".strip()


def is_file_of_xla_flags(flags: str) -> bool:
    """Whether a value of XLA_FLAGS is the name of a file, by XLA's rule."""
    return bool(flags.strip()) and not flags.strip().startswith("--")


@contextlib.contextmanager
def report_errors():
    """Ends the program with one line for what a user can mend; --verbosity=1 shows where it was raised."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, CheckpointError) as error:
        absl_logging.debug("raised here:", exc_info=error)
        _exit(str(error))


def _recipe_file(arguments: list[str]) -> str:
    """The file that --config names, without its variant; empty where it is not given."""
    recipe = ""
    for argument, next_argument in zip(arguments, [*arguments[1:], ""], strict=True):
        name, given, value = argument.partition("=")
        if name in ("-config", "--config"):
            recipe = value if given else next_argument
    return recipe.partition(":")[0]


def _check_file(name: str):
    path = Path(name)
    if not path.is_file():
        there = [str(other) for other in sorted(path.parent.glob("*.py"))]
        hint = f"the nearest is {nearest(name, there)}" if there else f"there is no Python file in {path.parent}"
        raise FileNotFoundError(f"there is no configuration {name}; {hint}")


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
