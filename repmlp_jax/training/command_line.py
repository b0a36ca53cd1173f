"""The command line of `train.py`: flags, log levels, and errors in one line."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging

from repmlp_jax.nearest import nearest
from repmlp_jax.printing import print_any_character
from repmlp_jax.storage.checkpoint_format import CheckpointError

logger = logging.getLogger("repmlp_jax")

BAD_INPUT = 2


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; an invalid flag ends the program with one line."""
    print_any_character()
    # Orbax logs every step of its work through absl, at level "info".
    absl_logging.set_verbosity(absl_logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        recipe = _recipe_file(arguments)
        if recipe:
            _check_file(recipe)
        return flags.FLAGS(arguments)
    except AttributeError as error:
        # ml_collections quotes its message and puts the nearest field on a second line.
        _exit("--config has no field " + str(error).strip("'").replace("\\'", "'").replace("\\n", "; "))
    except (flags.Error, OSError, ValueError) as error:
        if "get_config() takes 0 positional arguments" in str(error):
            _exit(f"{recipe} has no variants: nothing may follow a ':'")
        # An error in a recipe arrives as a traceback; the last line is the recipe's own message.
        _exit(str(error).strip().splitlines()[-1].strip() if "Traceback" in str(error) else str(error))


def ask_for_deterministic_algorithms():
    """Makes XLA compile the same GPU arithmetic in every process, unless XLA_FLAGS already sets this.

    By default XLA picks algorithms by timing them and sums in any order, so two runs differ in their last bits.
    Call this before JAX looks for devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = with_xla_flag(flags, "--xla_gpu_deterministic_ops=true")


def with_xla_flag(flags: str, flag: str) -> str:
    """Adds a flag to a value of XLA_FLAGS.

    XLA reads a value that does not start with "--" as the name of a file of flags. Such a value is returned unchanged;
    if the file lacks the flag, a warning asks the user to add it.
    """
    if is_file_of_xla_flags(flags):
        try:
            found = Path(flags).read_text()
        except OSError:
            found = ""  # XLA reports that it cannot read the file.
        if flag.partition("=")[0] not in found:
            logger.warning("XLA_FLAGS names the file %s, which is left as it is: add %s to it", flags, flag)
        return flags
    return f"{flags} {flag}".strip()


def is_file_of_xla_flags(flags: str) -> bool:
    """Whether XLA reads a value of XLA_FLAGS as the name of a file."""
    return bool(flags.strip()) and not flags.strip().startswith("--")


@contextlib.contextmanager
def report_errors():
    """Ends the program with one line on an error that a user can fix; --verbosity=1 adds the traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, CheckpointError) as error:
        absl_logging.debug("raised here:", exc_info=error)
        _exit(str(error))


def _recipe_file(arguments: list[str]) -> str:
    """The file that --config names, without its variant; empty without --config."""
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
