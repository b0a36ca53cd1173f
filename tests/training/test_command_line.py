import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from absl import logging as absl_logging
from cases import abstract
from pages import PAGES

from repmlp_jax.models.registry import create_model
from repmlp_jax.storage.checkpoint_format import CheckpointError
from repmlp_jax.tasks import check_task_fields, classification
from repmlp_jax.tasks.faces import task as faces
from repmlp_jax.tasks.segmentation import task as segmentation
from repmlp_jax.training import recipe_file, sharding, train_and_evaluate
from repmlp_jax.training.command_line import ask_for_deterministic_algorithms, parse_flags, report_errors
from repmlp_jax.training.config import check_config, default_config
from repmlp_jax.training.processes import check_processes

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
LINE = re.compile(r"(?:python train\.py|repmlp-jax train) +((?:[a-z]\S* *)?(?:--[^\s`]+\s*)*)")


def load(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def defined_flags():
    """Those of the program, which importing it defines."""
    load(REPOSITORY / "train.py")


@pytest.fixture
def parse(defined_flags, monkeypatch):
    """Parses arguments as the program does."""

    def parse(*arguments):
        # ml_collections looks there for the fields of --config.
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        return parse_flags(sys.argv)

    yield parse
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digit.py"], "there is no configuration configs/digit.py; the nearest is configs/digits.py"),
        (["--config", "configs/cifr.py"], "there is no configuration configs/cifr.py; the nearest is configs/cifar.py"),
        (["--config=nowhere/x.py"], "there is no configuration nowhere/x.py; there is no Python file in nowhere"),
        (
            ["--config=configs/digits.py", "--config.epoch=3"],
            '--config has no field \'epoch\'; Did you mean "epochs" instead of "epoch"?',
        ),
        (
            ["--config=configs/cifar.py:conv9", "--config.seed=0,1,2", "--workdir=runs/x"],
            "--config.seed=0,1,2: a run has one seed. Write a loop: for seed in 0 1 2; do python train.py "
            '--config=configs/cifar.py:conv9 "--config.seed=$seed" "--workdir=runs/seed_$seed"; done. Or use '
            "--config.seed=0 --repeat=3, which also gives mean and deviation",
        ),
        (
            ["--config.learning_rate", "[0.1, 0.2]"],
            "--config.learning_rate=[0.1, 0.2]: a run has one learning_rate. Write a loop: for learning_rate in 0.1 "
            '0.2; do python train.py "--config.learning_rate=$learning_rate" '
            '"--workdir=runs/learning_rate_$learning_rate"; done',
        ),
        (["--repeat=1"], "flag --repeat=1: 1 is not integer >= 2"),
        (
            ["--config=configs/digits.py", "--config.epochs=ten"],
            "flag --config.epochs=ten: invalid literal for int() with base 10: 'ten'",
        ),
        (["--config=configs/digits.py:small"], "configs/digits.py has no variants: nothing may follow a ':'"),
        (
            ["--config=configs/cifar.py:wide"],
            "configs/cifar.py has no variant 'wide'; it has wide_convnet, no_local, no_global, fc3_conv9, conv9",
        ),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
        (
            ["--config=configs/digits.py", "--config.mesh.model=2"],
            "--config has no field 'model'",
        ),
        (
            ["--config.model_arguments.num_clases=3"],
            '--config has no field \'num_clases\'; Did you mean "num_classes" instead of "num_clases"?',
        ),
        (["--config="], "--config needs the file of a recipe: --config=FILE"),
        (
            ["--config=configs/digits.py", "somewhere"],
            "'somewhere' is not a flag: flags start with '--', and a value follows '=', as in --config.flip=False",
        ),
        (
            ["--config.flip", "False"],
            "'False' is not a flag: flags start with '--', and a value follows '=', as in --config.flip=False",
        ),
        (
            ["digit", "--config.epochs=1"],
            f"no recipe is called 'digit'; the nearest is 'digits'. There are: {', '.join(recipe_file.recipes())}. "
            "--config=FILE takes a recipe of your own",
        ),
        (
            ["cifar:wide"],
            "configs/cifar.py has no variant 'wide'; it has wide_convnet, no_local, no_global, fc3_conv9, conv9",
        ),
        (["configs/cifar.py"], "'configs/cifar.py' is a file, which a flag names: --config=configs/cifar.py"),
        (["digits", "--config=mine.py"], "'digits' and --config both name a recipe: give one of them"),
        (["--num_processes=two"], "flag --num_processes=two: invalid literal for int() with base 10: 'two'"),
    ],
)
def test_a_mistake_is_one_line(parse, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("def get_config(:\n    pass", "line 1: SyntaxError: invalid syntax"),
        ("x = 1\n\ndef get_config():\n    return {}['epochs']", "line 4: KeyError: 'epochs'"),
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("import os\nfrom os import nothing", "line 2: ImportError: cannot import name 'nothing' from 'os'"),
        ("def get_config():\n    pass", "line 1: get_config returns None: is there no return?"),
        ("def get_config():\n    return dict(epochs=1)", "line 1: get_config returns a dict and not a ConfigDict"),
        ("config = 1", " has no function get_config, which returns the configuration"),
        (
            "from repmlp_jax.training import default_config\ndef get_config():\n    config = default_config()\n"
            "    config.epochs = 'ten'\n    return config",
            "line 4: TypeError: Could not override field 'epochs'",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_with_its_place(parse, capsys, tmp_path, recipe, message):
    path = tmp_path / "mine.py"
    path.write_text(recipe)
    with pytest.raises(SystemExit) as stop:
        parse(f"--config={path}")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    separator = "" if message.startswith(" ") else ", "
    assert line.startswith(f"error: {path}{separator}{message}")


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        (["num_classes=102"], "num_classes", 102),
        (["num_classes", "102"], "num_classes", 102),
        (["rematerialise=True"], "rematerialise", True),
        (["rematerialise"], "rematerialise", True),
        (["dtype=bfloat16"], "dtype", "bfloat16"),
        (["image_size=(16, 16)"], "image_size", (16, 16)),
        (["image_size=16"], "image_size", 16),  # in place of a pair that the recipe has
        (["image_size=None"], "image_size", None),
        (["stochastic_depth=0.1"], "stochastic_depth", 0.1),
        (["partition_sizes=((4, 4), (2, 2))"], "partition_sizes", ((4, 4), (2, 2))),
    ],
)
def test_a_flag_sets_any_argument_of_a_model(parse, flag, name, value):
    parse("--config=configs/digits.py", f"--config.model_arguments.{flag[0]}", *flag[1:])
    arguments = flags.FLAGS.config.model_arguments
    assert arguments[name] == value
    assert type(arguments[name]) is type(value)
    recipe = load(CONFIGS / "digits.py").get_config().model_arguments
    assert {**arguments, name: 0} == {**recipe, name: 0}


def test_a_recipe_is_taken_by_its_name(parse):
    parse("cifar:wide_convnet", "--config.seed=3")
    assert (flags.FLAGS.config.model, flags.FLAGS.config.seed) == ("wide_convnet", 3)
    assert flags.FLAGS["config"].config_filename == f"{CONFIGS}/cifar.py:wide_convnet"


def test_full_help_shows_the_fields_with_the_values_of_the_recipe(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--helpfull", "--config=configs/cifar.py:wide_convnet", "--config.epochs=7")
    shown = capsys.readouterr().out
    assert end.value.code is None
    assert re.search(r"^  --workdir: ", shown, re.MULTILINE)
    assert "\n  --config.model='wide_convnet'\n      one of list_models()\n" in shown
    assert "\n  --config.epochs=7\n" in shown
    assert set(re.findall(r"^  --config\.(\w+)=", shown, re.MULTILINE)) == set(default_config())


def test_a_flag_sets_all_arguments_of_a_model(parse):
    parse("--config=configs/digits.py", "--config.model_arguments={'num_classes': 3, 'widths': (4,)}")
    assert flags.FLAGS.config.model_arguments.to_dict() == dict(num_classes=3, widths=(4,))


@pytest.mark.parametrize("kind", ["FrozenConfigDict(config)", "config.lock()"])
def test_a_recipe_may_return_any_kind_of_config_dict(parse, tmp_path, kind):
    path = tmp_path / "mine"
    path.write_text(
        "from ml_collections import FrozenConfigDict\nfrom repmlp_jax.training import default_config\n"
        f"def get_config():\n    config = default_config()\n    return {kind}\n"
    )
    parse(f"--config={path}", "--config.epochs=3", "--config.model_arguments.num_classes=7")
    config = check_config(flags.FLAGS.config)
    assert config.epochs == 3
    assert config.model_arguments.to_dict() == dict(num_classes=7)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        TypeError("wrong"),
        ImportError("wrong"),
        OSError("wrong"),
        FloatingPointError("wrong"),
        CheckpointError("wrong"),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, error):
    with pytest.raises(SystemExit) as stop, report_errors():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: wrong\n"


def test_what_a_user_cannot_mend_is_raised():
    with pytest.raises(ZeroDivisionError), report_errors():
        raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.parametrize("program", [("train.py",), ("-m", "repmlp_jax", "train")])
def test_help_shows_the_recipes_and_the_flags_of_the_program(program):
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True)
    for part in (
        "repmlp-jax train cifar:wide_convnet",
        "Recipes: cifar, default, digits, ",
        "--workdir:",
        "--helpfull",
    ):
        assert part in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model=pure_mpl"], "no model is called 'pure_mpl'; the nearest is 'pure_mlp'"),
        (["--config=configs/digit.py"], "there is no configuration configs/digit.py"),
    ],
)
@pytest.mark.parametrize("program", [(REPOSITORY / "train.py",), ("-m", "repmlp_jax", "train")])
def test_the_program_ends_with_one_line_and_exit_code_2(tmp_path, program, arguments, message):
    # From elsewhere: the default recipe is found with the library.
    command = [sys.executable, *program, f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def recipes():
    for path in sorted(CONFIGS.glob("*.py")):
        for variant in getattr(load(path), "VARIANTS", [""]):
            is_small = path.stem in ("cifar", "digits", "default", "face_orl", "segmentation_camvid")
            marks = () if is_small else pytest.mark.slow
            yield pytest.param(path, variant, id=f"{path.stem}:{variant}".rstrip(":"), marks=marks)


@pytest.mark.parametrize(("path", "variant"), list(recipes()))
def test_every_recipe_builds_its_model(path, variant):
    config = load(path).get_config(*filter(None, [variant]))
    check_config(config)
    model = abstract(create_model, config.model, **config.model_arguments)
    height, width, features = model.input_shape
    images = jax.ShapeDtypeStruct((2, height, width, features), "float32")
    model.eval()
    outputs = jax.eval_shape(lambda model, images: model(images), model, images).shape
    expected = {
        "cifar10": (10,),
        "digits": (10,),
        "imagenet2012": (1000,),
        "camvid": (height, width, 11),
        "cityscapes": (height, width, 19),
    }
    assert outputs == (2, *expected.get(config.dataset, (getattr(model, "embedding_features", 0),)))
    assert {"cifar10": (32, 32, 3), "digits": (8, 8, 1)}.get(config.dataset, model.input_shape) == model.input_shape


def command_lines():
    """The arguments of every `python train.py` and `repmlp-jax train` in the README, the docs and the recipes."""
    recipes = [path.relative_to(REPOSITORY).as_posix() for path in sorted(CONFIGS.glob("*.py"))]
    for page in [*PAGES, *recipes]:
        text = (REPOSITORY / page).read_text().replace("\\\n", " ")
        for number, line in enumerate(LINE.findall(text)):
            if "…" not in line:  # which stands for any recipe
                marks = [pytest.mark.slow] if re.search(r"imagenet|/face\.py|/segmentation\.py", line) else []
                yield pytest.param(line.replace("HOST:PORT", "host:1234").split(), id=f"{page}:{number}", marks=marks)


class DataIsReadError(Exception):
    """Raised in place of reading a dataset."""


@pytest.fixture
def parse_line(parse, monkeypatch, tmp_path):
    """Parses the arguments of a page, in a folder with the recipes."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    page = (REPOSITORY / "docs/how_to/data.md").read_text()
    (recipe,) = re.findall(r"```python\n((?:(?!```).)*def get_config(?:(?!```).)*)```", page, re.DOTALL)
    (tmp_path / "shapes.py").write_text(recipe)
    monkeypatch.chdir(tmp_path)

    def parse_line(arguments):
        parse(*arguments)
        given = flags.FLAGS.flag_values_dict()
        check_processes(
            *(given[name] for name in ("distributed", "coordinator_address", "num_processes", "process_id"))
        )
        return flags.FLAGS.config

    return parse_line


@pytest.mark.parametrize("arguments", [pytest.param(*line.values, id=line.id) for line in command_lines()])
def test_every_command_line_of_the_docs_is_understood(parse_line, arguments):
    config = check_config(parse_line(arguments))
    check_task_fields(config)


@pytest.mark.parametrize("arguments", list(command_lines()))
def test_every_command_line_of_the_docs_comes_to_its_data(parse_line, monkeypatch, tmp_path, arguments):
    def stop(*_, **__):
        raise DataIsReadError

    for module, names in {
        classification: ("load_dataset", "open_dataset"),
        faces: ("load_faces", "load_test_faces"),
        segmentation: ("load_street_scenes",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, stop)
    one_device = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: one_device)
    config = parse_line(arguments)
    with pytest.raises(DataIsReadError):
        train_and_evaluate(config, tmp_path / "run")


def test_log_lines_are_plain(parse):
    parse("--config=configs/digits.py")
    record = logging.LogRecord("repmlp_jax", logging.WARNING, "loop.py", 1, "resuming from step %d", (3,), None)
    assert absl_logging.get_absl_handler().format(record) == "resuming from step 3"


def test_flags_change_a_recipe(parse):
    parse("--config=configs/cifar.py:wide_convnet", "--config.seed=3", "--workdir=x")
    assert flags.FLAGS.config.model == "wide_convnet"
    assert flags.FLAGS.config.seed == 3
    assert flags.FLAGS.workdir == "x"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("  ", "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_deterministic_algorithms_are_asked_for(monkeypatch, caplog, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    ask_for_deterministic_algorithms()
    assert os.environ["XLA_FLAGS"] == after
    assert not caplog.records


def test_a_file_of_xla_flags_stays_as_it_is(monkeypatch, caplog, tmp_path):
    path = tmp_path / "flags"
    path.write_text("--xla_cpu_enable_fast_math=false")
    monkeypatch.setenv("XLA_FLAGS", str(path))
    with caplog.at_level(logging.WARNING, "repmlp_jax"):
        ask_for_deterministic_algorithms()
    assert os.environ["XLA_FLAGS"] == str(path)
    (record,) = caplog.records
    assert f"the file {path}" in record.getMessage()
    assert "add --xla_gpu_deterministic_ops=true to it" in record.getMessage()
    # What it says is right: XLA takes the file, with what was there and with what is added, and then no warning comes.
    path.write_text(path.read_text() + "\n--xla_gpu_deterministic_ops=true\n")
    caplog.clear()
    ask_for_deterministic_algorithms()
    assert not caplog.records
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
