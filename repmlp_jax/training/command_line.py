"""The command line of `repmlp-jax train` and `train.py`: flags, log levels, and errors in one line."""

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from repmlp_jax.printing import print_any_character
from repmlp_jax.storage.checkpoint_format import CheckpointError
from repmlp_jax.training.fields import described
from repmlp_jax.training.recipe_file import all_arguments, close_arguments, with_recipe

logger = logging.getLogger("repmlp_jax")

BAD_INPUT = 2


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the flags; an invalid flag ends the program with one line, and `--helpfull` with the recipe's fields."""
    print_any_character()
    # Orbax logs every step of its work through absl, at level "info".
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    logger.setLevel(logging.INFO)
    is_asked, arguments = "--helpfull" in arguments, [one for one in arguments if one != "--helpfull"]
    try:
        rest = flags.FLAGS(with_recipe("config", arguments))
        close_arguments(flags.FLAGS.config)
    except (AttributeError, KeyError) as error:
        # ml_collections quotes its message and puts the nearest field on a second line.
        message = str(error).strip("'\"").replace("\\'", "'").replace("\\n", "; ")
        message = message if "'" in message else repr(message)
        name = message.split("'")[1]
        is_set = any(argument.startswith(f"--config.{name}") for argument in arguments)
        hint = f"; --config.model_arguments.{name} is one of the model" if is_set and name in all_arguments() else ""
        _exit(f"--config has no field {message}{hint}")
    except (flags.Error, OSError, ValueError, TypeError) as error:
        _exit(str(error))
    if is_asked:
        app.usage(writeto_stdout=True)
        print(f"\n{described(flags.FLAGS.config)}")
        sys.exit()
    if stray := rest[1:]:
        _exit(f"{stray[0]!r} is not a flag: flags start with '--', and a value follows '=', as in --config.flip=False")
    return rest


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
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, CheckpointError) as error:
        absl_logging.debug("raised here:", exc_info=error)
        _exit(str(error))
    except KeyboardInterrupt as error:
        absl_logging.debug("raised here:", exc_info=error)
        print("stopped: the same command resumes from the last checkpoint, if there is one", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
