"""The command line of `repmlp-jax train` and `train.py`: flags, log levels, and errors in one line."""

import contextlib
import logging
import os
import shlex
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
        _exit(_loop_to_write(arguments) or str(error))
    if is_asked:
        app.usage(writeto_stdout=True)
        print(f"\n{described(flags.FLAGS.config)}")
        sys.exit()
    if stray := rest[1:]:
        _exit(f"{stray[0]!r} is not a flag: flags start with '--', and a value follows '=', as in --config.flip=False")
    return rest


def _loop_to_write(arguments: list[str]) -> str:
    """What to do instead of giving several values for a field that is one number; empty if no argument does."""
    from repmlp_jax.training.config import default_config

    default = default_config()
    program, *rest = arguments
    for place, (argument, after) in enumerate(zip(rest, [*rest[1:], ""], strict=True)):
        flag, equals, value = argument.partition("=")
        value = value if equals else after
        name = flag.lstrip("-").removeprefix("config.")
        values = value.strip("[]() ").replace(",", " ").split()
        if flag.lstrip("-").startswith("config.") and isinstance(default.get(name), int | float) and len(values) > 1:
            others = rest[:place] + rest[place + (1 if equals else 2) :]
            kept = [other for other in others if not other.lstrip("-").startswith("workdir")]
            start = ["python", program] if program.endswith(".py") else program.split()
            command = shlex.join([*start, *kept])
            loop = f'{command} "--config.{name}=${name}" "--workdir=runs/{name}_${name}"'
            message = (
                f"--config.{name}={value}: a run has one {name}. Write a loop: for {name} in {' '.join(values)}; do "
                f"{loop}; done"
            )
            first = int(values[0]) if values[0].isdecimal() else -1
            if name == "seed" and values == [str(first + place) for place in range(len(values))]:
                repeated = f"--config.seed={first} --repeat={len(values)}"
                message += f". Or use {repeated}, which also gives mean and deviation"
            return message
    return ""


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
