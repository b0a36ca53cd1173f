"""The flag `--config`: a recipe's file, whose fields, and every argument of a model, other flags can set."""

import ast
import functools
import importlib.machinery
import importlib.util
import inspect
import itertools
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from repmlp_jax.nearest import lookup, nearest
from repmlp_jax.training.recipe import NoSuchVariantError

flags.disclaim_key_flags()  # `--help` shows the flag as one of the program that defines it.


class RecipeError(flags.Error):
    """A recipe that cannot be read; absl passes it on as it is, unlike a ValueError."""


def recipes() -> dict[str, str]:
    """The recipes of the library, name → file: in a package that is installed, beside one in its repository."""
    package = Path(__file__).parents[1]
    folder = next(filter(Path.is_dir, (package / "configs", package.parent / "configs")), package)
    return {path.stem: str(path) for path in sorted(folder.glob("*.py"))}


def define_recipe(name: str, default: str, description: str) -> flags.FlagHolder:
    """Defines the flag of the recipe, and with it those of its fields; `with_recipe` adds the default recipe."""
    # ml_collections would read a default recipe at once, before its errors can be reported.
    holder = config_flags.DEFINE_config_file(name, None, description)
    flag: Any = flags.FLAGS[name]
    flag.parser = _RecipeParser()
    flag.default_recipe = default
    return holder


def with_recipe(name: str, arguments: list[str]) -> list[str]:
    """The command line with the file of the recipe that its first argument names; without one, of the default recipe.

    Raises:
        RecipeError: if there is no such recipe, or the flag names a file as well.
    """
    program, *rest = arguments
    rest = flags.FLAGS.read_flags_from_files(rest)
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else None
    given = itertools.takewhile(lambda argument: argument != "--", rest)
    if any(argument.partition("=")[0] in (f"-{name}", f"--{name}") for argument in given):
        if chosen is not None:
            raise RecipeError(f"{chosen!r} and --{name} both name a recipe: give one of them")
        return [program, *rest]
    flag: Any = flags.FLAGS[name]
    recipe, colon, variant = (chosen or flag.default_recipe).partition(":")
    if recipe.endswith(".py"):
        raise RecipeError(f"{chosen!r} is a file, which a flag names: --{name}={chosen}")
    try:
        file = lookup(recipes(), recipe, "recipe")
    except ValueError as error:
        raise RecipeError(f"{error}. --{name}=FILE takes a recipe of your own") from None
    return [program, f"--{name}={file}{colon}{variant}", *rest]


def load_recipe(path: str) -> ConfigDict:
    """Calls the `get_config` of a recipe's file, with what follows a ":" as its argument.

    Raises:
        RecipeError: if that gives no configuration; the message names the file and the line.
    """
    file, colon, variant = path.partition(":")
    _check_file(file)
    name = "repmlp_jax_recipe"
    loader = importlib.machinery.SourceFileLoader(name, file)
    specification: Any = importlib.util.spec_from_file_location(name, file, loader=loader)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise RecipeError(f"{file} has no function get_config, which returns the configuration")
        given = [variant] if colon else []
        try:
            inspect.signature(get_config).bind(*given)
        except TypeError:
            wrong = "has no variants: nothing may follow a ':'" if colon else f"needs a variant: {file}:VARIANT"
            raise RecipeError(f"{file} {wrong}") from None
        config = get_config(*given)
    except NoSuchVariantError as error:
        raise RecipeError(str(error)) from error
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(_place(error, file)) from error
    if not isinstance(config, ConfigDict):
        code = getattr(inspect.unwrap(get_config), "__code__", None)
        place = f"{file}, line {code.co_firstlineno}" if code else file
        what = f"a {type(config).__name__} and not a ConfigDict" if config is not None else "None: is there no return?"
        raise RecipeError(f"{place}: get_config returns {what}")
    return ConfigDict(config)


def close_arguments(config: ConfigDict) -> None:
    """Leaves those arguments of the model that the recipe or a flag has set."""
    unset = _unset()
    given = {
        name: value for name, value in config.model_arguments.items() if name not in unset or value is not unset[name]
    }
    with config.unlocked():
        del config.model_arguments
        config.model_arguments = ConfigDict(given)


class _RecipeParser(flags.ArgumentParser):
    def parse(self, path: str) -> ConfigDict:
        config = load_recipe(path)
        given = config.get("model_arguments", {})
        if not isinstance(given, ConfigDict):
            raise RecipeError(f"{path}: model_arguments is {given!r} and not a dictionary")
        opened = _OpenArguments(_unset() | dict(given.items()), type_safe=False)
        with config.unlocked(), config.ignore_type():
            # A flag may also set all of them, by a dictionary of any kind.
            config.model_arguments = FieldReference(opened, field_type=ConfigDict)
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"


class _Literal:
    """The type of a field that a flag sets by a Python literal; other text stands for itself."""


class _LiteralParser(flags.ArgumentParser):
    def parse(self, argument):
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


config_flags.register_flag_parser_for_type(_Literal, _LiteralParser())


class _OpenArguments(ConfigDict):
    """The arguments of all models while flags are read: a flag may set those that the recipe does not."""

    def get_type(self, key):
        self.__getattr__(key)  # raises an error that names the nearest
        return bool if all_arguments().get(key) is bool else _Literal


_UNSET = object()


def _unset() -> dict[str, Any]:
    """Every argument with what stands for "not set": None for booleans, as their flags take no other object."""
    return {name: None if annotation is bool else _UNSET for name, annotation in all_arguments().items()}


@functools.cache
def all_arguments() -> dict[str, Any]:
    """Name → annotation; the class that takes an argument is known once `--config.model` is."""
    from repmlp_jax.models.registry import MODELS
    from repmlp_jax.training.model_arguments import arguments_of

    # What a published model means by an argument counts more than what a class of your own does.
    classes = reversed(dict.fromkeys(model_class for model_class, _ in MODELS.values()))
    return {name: annotation for model_class in classes for name, annotation in arguments_of(model_class).items()}


def _check_file(name: str):
    path = Path(name)
    if not name or name.startswith("--"):
        raise RecipeError("--config needs the file of a recipe: --config=FILE")
    if path.is_dir():
        inside = ", ".join(str(other) for other in sorted(path.glob("*.py"))) or "no Python file"
        raise RecipeError(f"--config={name} is a folder, with {inside}; it needs a file")
    if not path.is_file():
        there = [str(other) for other in sorted(path.parent.glob("*.py"))]
        hint = f"the nearest is {nearest(name, there)}" if there else f"there is no Python file in {path.parent}"
        raise RecipeError(f"there is no configuration {name}; {hint}")


def _place(error: BaseException, file: str) -> str:
    """An error in a recipe with its file and line."""
    path = Path(file).resolve()
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path
    ]
    text = str(error)
    if isinstance(error, SyntaxError) and not lines:  # the recipe itself cannot be compiled
        lines, text = [error.lineno], error.msg
    place = f"{file}, line {lines[-1]}" if lines and lines[-1] else file
    return f"{place}: {type(error).__name__}" + (f": {' '.join(text.split())}" if text else "")
