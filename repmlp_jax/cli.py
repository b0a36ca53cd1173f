"""The command line `repmlp-jax`, which is also `python -m repmlp_jax`."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from repmlp_jax.local_path import local_path
from repmlp_jax.printing import print_any_character

BAD_INPUT = 2
app = typer.Typer(
    help="RepMLP in JAX: list models, import official weights, train, fuse, evaluate, predict and export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plot = typer.Typer(
    help="Draws pictures of a model's weights, of a run, and of fusing.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(plot, name="plot")

ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder or .safetensors file of a saved model, or hf://OWNER/NAME.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Picture = Annotated[Path, typer.Argument(help="File of the picture: .png, or .svg or .pdf.")]
Block = Annotated[int, typer.Option(min=0, help="Which RepMLP block, counted from 0.")]


@contextlib.contextmanager
def one_line_errors():
    """Ends the program with one line on an error; REPMLP_JAX_DEBUG=1 shows the traceback."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # Click ends quietly where nobody reads the output any more.
        raise
    except Exception as error:  # A bad file makes the libraries that read it raise any kind of error.
        if os.environ.get("REPMLP_JAX_DEBUG"):
            raise
        _print_error(error)
        raise typer.Exit(BAD_INPUT) from error


def _print_error(error: Exception):
    """Prints an error on one line; one that no user is expected to cause with its type."""
    message = " ".join(line.strip() for line in str(error).splitlines())
    if not isinstance(error, ValueError | TypeError | OSError | ImportError) or not message:
        message = f"{': '.join(filter(None, (type(error).__name__, message)))} (REPMLP_JAX_DEBUG=1 shows where)"
    print("error:", message, file=sys.stderr)


def _print_version(wanted: bool) -> bool:
    if not wanted:
        return False
    _print_environment()
    raise typer.Exit()


def _print_environment():
    import jax

    from repmlp_jax.version import versions

    for name, version in versions().items():
        print(f"{name:12}{version}")
    try:
        devices = jax.devices()
        found = f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS may name a missing platform
        reason, *_ = str(error).strip().splitlines() or ["JAX found none"]
        found = f"none: {reason}"
    print(f"{'devices':12}{found}")


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the versions and the devices in use."
        ),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compile all, and keep no compiled program on disk.")
    ] = False,
):
    """Options of all commands."""
    from repmlp_jax.compilation_cache import keep_compiled_programs

    keep_compiled_programs(not no_cache)


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Which models, with the wildcards of the shell.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Lists models with the size of their images, parameters and MACs.

    Parameters and multiply-accumulates (MACs) are those of the fused model. Counting them takes about a second for each
    model.

    Example: repmlp-jax list "RepMLPNet*"
    """
    with one_line_errors():
        from repmlp_jax import list_models
        from repmlp_jax.fusing.report import fused_size
        from repmlp_jax.models.randomness import abstract
        from repmlp_jax.models.registry import MODELS, create_model

        names = list_models(pattern)
        if not names:
            raise ValueError(f"no model matches {pattern!r}: repmlp-jax list shows all")
        rows: list[dict[str, Any]] = []
        if not as_json:
            print(f"{'model':36}{'class':14}{'images':>11}{'parameters':>14}{'MACs':>18}")
        for name in names:
            model = abstract(create_model, name)
            parameters, macs = fused_size(model)
            row = {"model": name, "class": MODELS[name][0].__name__, "images": model.input_shape}
            rows.append(row | dict(parameters=parameters, macs=macs))
            if not as_json:
                size = "×".join(map(str, model.input_shape))
                print(f"{name:36}{row['class']:14}{size:>11}{parameters:>14,}{macs:>18,}", flush=True)
        if as_json:
            print(json.dumps(rows, indent=1))


@app.command()
def info():
    """Prints versions, devices, and which extras are installed.

    For each extra it says what it is for.

    Example: repmlp-jax info
    """
    from repmlp_jax.extras import EXTRAS, missing_from

    _print_environment()
    for extra, (purpose, _) in EXTRAS.items():
        state = f'not installed: pip install "repmlp_jax[{extra}]"' if missing_from(extra) else "installed"
        print(f"{f'[{extra}]':12}{state}, for {purpose}")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="Name of a model, or folder of a saved one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Shows what fusing does to each block of a model.

    For each block it prints parameters and multiply-accumulates before and after, and what becomes of each norm.

    Example: repmlp-jax summary RepMLPNet-T224
    """
    with one_line_errors():
        report = _report(model)
        print(report.to_json() if as_json else report)


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Official or mmpretrain weights: .pth, .pt, .tar or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder or .safetensors file to save the model in.")],
    model: Annotated[str, typer.Option(help="Name of the model that the weights belong to.")],
    num_classes: Annotated[int | None, typer.Option(help="Number of classes, if it is not 1000.")] = None,
    skip_head: Annotated[bool, typer.Option("--skip-head", help="Initialise a new classifier.")] = False,
    entry: Annotated[str | None, typer.Option(help="Entry of a training checkpoint, such as state_dict_ema.")] = None,
    all_problems: Annotated[bool, typer.Option("--all-problems", help="List everything that does not fit.")] = False,
    overwrite: Overwrite = False,
):
    """Imports official PyTorch weights as a saved model.

    The weights may be those of the trained or of the deployed model.

    Example: repmlp-jax import RepMLPNet-T224.pth t224 --model RepMLPNet-T224
    """
    with one_line_errors():
        from flax import nnx

        from repmlp_jax import create_model, from_torch, fuse_params, load_torch_file, save_model
        from repmlp_jax.models.randomness import abstract
        from repmlp_jax.models.state import MisfitError
        from repmlp_jax.storage.preprocessing import IMAGENET_MEAN, IMAGENET_STD

        _refuse_existing(out, overwrite)
        options: dict = {} if num_classes is None else {"num_classes": num_classes}
        state_dict = load_torch_file(file, entry=entry)
        # Weights are drawn only for a classifier that the file does not provide.
        net = (
            create_model(model, **options, rngs=nnx.Rngs(0)) if skip_head else abstract(create_model, model, **options)
        )
        try:
            net = from_torch(net, state_dict, head="skip" if skip_head else "load")
        except MisfitError as error:
            if all_problems:
                print("\n".join(error.problems), file=sys.stderr)
            raise
        if any(key.endswith("fc3.bias") for key in state_dict):
            print("the weights are of the deployed layout: the model is fused")
            net = fuse_params(net)
        save_model(out, net, preprocessing=dict(mean=IMAGENET_MEAN, std=IMAGENET_STD), overwrite=overwrite)
        print(f"saved: {out}")


@app.command()
def fuse(
    model: ModelFolder,
    out: Annotated[Path, typer.Argument(help="Folder or .safetensors file to save the fused model in.")],
    check: Annotated[bool, typer.Option(help="Compare the outputs of both models on a random image.")] = True,
    time: Annotated[bool, typer.Option("--time", help="Measure both models on one image.")] = False,
    overwrite: Overwrite = False,
):
    """Fuses a saved model.

    The command compares the outputs of both models, and saves the fused one only if they are equal up to rounding.
    --time prints the milliseconds of a compiled call with one image, before and after fusing, on the device in use: the
    median of 15 calls each.

    Example: repmlp-jax fuse runs/digits/model fused
    """
    with one_line_errors():
        import jax
        import jax.numpy as jnp

        from repmlp_jax import fuse_params, fuse_report, save_model
        from repmlp_jax.deploy.timing import seconds_per_image
        from repmlp_jax.fusing.equal import check_equal
        from repmlp_jax.fusing.folding import Folding
        from repmlp_jax.fusing.fuse import fusable_modules
        from repmlp_jax.models.images import input_shape_of
        from repmlp_jax.storage.models import load

        _refuse_existing(out, overwrite)
        saved = load(model)
        if not fusable_modules(saved.model):
            raise ValueError(f"{model} is fused already")
        report = fuse_report(saved.model)
        assert report.macs is not None, "every model of list_models() has an input_shape"
        fused = fuse_params(saved.model)
        if check:
            image = jax.ShapeDtypeStruct((1, *input_shape_of(saved.model)), jnp.float32)
            check_equal(saved.model, fused, Folding.of("fuse", image, call=None, only=None, dense_groups=False))
        save_model(out, fused, preprocessing=saved.preprocessing, overwrite=overwrite)
        for name, (before, after) in (("parameters", report.parameters), ("multiply-accumulates", report.macs)):
            print(f"{name:22}{before:>16,} → {after:,}")
        if check:
            print("outputs for a random image are equal, up to rounding")
        if time:
            old, new = (1000 * seconds for seconds in seconds_per_image([saved.model, fused]))
            print(f"{'milliseconds an image':22}{old:>16,.2f} → {new:,.2f}, {old / new:.2f} times as fast")
        print(f"saved: {out}")


@app.command(add_help_option=False, context_settings=dict(ignore_unknown_options=True))
def train(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="A recipe, and flags, which --help lists.")
    ] = None,
):
    """Trains a model by a recipe, fuses it, and compares the two.

    `train.py` of the repository is the same program. A recipe is one of those that come with the library, such as
    digits, cifar or cifar:wide_convnet; --config=FILE takes your own. Flags set its fields, as
    --config.epochs=10. The same command resumes an interrupted run.

    Example: repmlp-jax train digits --workdir=runs/digits
    """
    with one_line_errors():
        from repmlp_jax.tasks.program import run
    run([context.command_path, *(arguments or [])])


@app.command()
def evaluate(
    model: ModelFolder,
    dataset: Annotated[str, typer.Option(help="cifar10, digits, folder, or a prepared TFDS dataset.")],
    data_dir: Annotated[
        str | None, typer.Option(help="Of folder: the folder. Else that of TFDS datasets, by default TFDS_DATA_DIR.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Evaluates a saved model on a dataset.

    The images are those of the dataset's validation split, or of its test split if it has none. With --dataset folder
    the pictures are files in val/CLASS/ or test/CLASS/ of --data-dir. If it has neither, they are all those in CLASS/,
    or the share of them that the model's training held out.

    Example: repmlp-jax evaluate runs/digits/fused --dataset digits
    """
    with one_line_errors():
        from repmlp_jax.deploy.predict import evaluate

        scores = evaluate(model, dataset, data_dir, batch_size)
        if as_json:
            print(json.dumps(scores))
        else:
            top_5 = f"top 5 {scores['top_5_accuracy']:.2%}, " if "top_5_accuracy" in scores else ""
            loss = f"loss {scores['loss']:.4f} nats"
            print(f"accuracy {scores['accuracy']:.2%}, {top_5}{loss}, {scores['images']:,} images")


@app.command()
def predict(
    model: ModelFolder,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", help="Pictures that OpenCV reads, or folders of such pictures.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Classifies pictures.

    It prints the most probable classes of each picture. A picture is rotated according to its EXIF orientation and
    resized, and its centre is cropped, as in the evaluation on ImageNet: the shorter side becomes the model's size /
    0.875. A picture that is not larger than the model's images is only resized to their size. If pictures cannot be
    read, the command reports them, classifies the others, and exits with code 2.

    --json prints an object with an entry IMAGE: [[class, probability], …] for each picture. If an IMAGE is named twice,
    it prints a list of [IMAGE, [[class, probability], …]] in the order of the arguments.

    Example: repmlp-jax predict t224 cat.jpg dog.jpg
    """
    with one_line_errors():
        from repmlp_jax.deploy.predict import predictions

        found = list(predictions(model, images, top))
        errors = [error for _, error in found if isinstance(error, Exception)]
        classified = [(str(path), classes) for path, classes in found if not isinstance(classes, Exception)]
        for error in errors:
            _print_error(error)
        if as_json:
            given_once = len({str(path) for path, _ in found}) == len(found)
            print(json.dumps(dict(classified) if given_once else classified))
        else:
            for name, classes in classified:
                print(name)
                for class_name, probability in classes:
                    print(f"  {probability:7.2%}  {class_name}")
        if errors:
            raise typer.Exit(BAD_INPUT)


@app.command()
def export(
    model: ModelFolder,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    format: Annotated[
        Literal["jax", "onnx", "torch"],
        typer.Option(help="jax: a program for JAX alone; torch: .safetensors weights for the official code."),
    ] = "jax",
    opset: Annotated[int | None, typer.Option(help="Of ONNX: version of its operators, by default 17.")] = None,
    preprocess: Annotated[bool, typer.Option("--preprocess", help="Of ONNX: uint8 pixels go in.")] = False,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Of ONNX: leave a trained model as it is.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Of ONNX: round weights and products to int8.")] = False,
    dataset: Annotated[str | None, typer.Option(help="Of --int8: to calibrate with and test on.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Of --dataset, as of evaluate.")] = None,
    largest_loss: Annotated[
        float | None, typer.Option(help="Of --int8: share of accuracy (0.01) or outputs (0.05) that may be lost.")
    ] = None,
    overwrite: Overwrite = False,
):
    """Exports a saved model as a file for JAX, ONNX or PyTorch.

    The file runs without this library. For JAX and ONNX the model is fused first.

    --int8 prints size, time and error before and after. Without --dataset only products of matrices are in int8. With
    it convolutions are, too, calibrated with 256 of its training images, and the accuracy on up to 2,000 test images is
    printed. What loses more than --largest-loss is not written.

    Example: repmlp-jax export fused fused.onnx --format onnx
    """
    with one_line_errors():
        from repmlp_jax import export_model, export_onnx, export_torch
        from repmlp_jax.storage.models import load

        of_onnx = {"--opset": opset, "--preprocess": preprocess, "--no-fuse": no_fuse, "--int8": int8}
        of_int8 = {"--dataset": dataset, "--data-dir": data_dir, "--largest-loss": largest_loss}
        _refuse_without(of_onnx, format == "onnx", "--format onnx")
        _refuse_without(of_int8, int8, "--int8")
        if int8 and no_fuse:
            raise ValueError("--int8 needs a fused model: leave out --no-fuse")
        _refuse_existing(out, overwrite)
        saved = load(model)
        about: dict[str, Any] = dict(preprocessing=saved.preprocessing, overwrite=overwrite)
        if format == "torch":
            export_torch(saved.model, out, overwrite=overwrite)
        elif format == "jax":
            export_model(saved.model, out, **about)
        else:
            about |= dict(preprocess=preprocess) | ({} if opset is None else dict(opset=opset))
            if int8:
                from repmlp_jax.deploy.onnx_int8 import export_onnx_int8
                from repmlp_jax.deploy.samples import samples

                train, test = (None, None) if dataset is None else samples(saved, model, dataset, data_dir)
                about |= dict(calibration=train, test=test, largest_loss=largest_loss)
                print(export_onnx_int8(saved.model, out, **about))
            else:
                export_onnx(saved.model, out, fuse=not no_fuse, **about)
        print(f"saved: {out}")


@app.command()
def quantise(
    model: ModelFolder,
    out: Annotated[Path, typer.Argument(help="Folder to save the model in int8 in.")],
    overwrite: Overwrite = False,
):
    """Rounds the kernels of a saved model to int8.

    A model that is not fused is fused first. The result is a saved model of a quarter of the size, which `evaluate` and
    `predict` take. On a CPU it is slower: `export --format onnx --int8` writes what is faster there.

    Example: repmlp-jax quantise fused in_int8
    """
    with one_line_errors():
        from repmlp_jax import fuse_params, quantise_params, save_model
        from repmlp_jax.fusing.fuse import fusable_modules
        from repmlp_jax.quantisation.quantise import is_quantised, quantise_report
        from repmlp_jax.storage.models import load

        _refuse_existing(out, overwrite)
        saved = load(model)
        if is_quantised(saved.model):
            raise ValueError(f"{model} is in int8 already")
        net = saved.model
        if fusable_modules(net):
            print(f"{model} is not fused: it is fused first")
            net = fuse_params(net)
        before, after = quantise_report(net).nbytes
        save_model(out, quantise_params(net), preprocessing=saved.preprocessing, overwrite=overwrite)
        print(f"{'bytes of parameters':22}{before:>16,} → {after:,}")
        print(f"saved: {out}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, whose model/ is uploaded, or of a saved model.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; it is made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Let nobody else read it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
):
    """Uploads a saved model to the Hugging Face hub.

    It also writes a model card, README.md, with the scores and the recipe of the run, and how the model is loaded.
    Anyone who can read the repository can pass hf://OWNER/NAME as the folder of a model. The command needs pip install
    "repmlp_jax[hub]", and `hf auth login` with a token that may write.

    Example: repmlp-jax push runs/digits OWNER/digits
    """
    with one_line_errors():
        from repmlp_jax.deploy.push import push

        print(f"pushed: {push(folder, repo, private=private, overwrite=overwrite)}")


@plot.command("kernels")
def plot_kernels(
    model: ModelFolder,
    out: Picture,
    block: Block = 0,
    pixel: Annotated[tuple[int, int] | None, typer.Option(help="Row and column of the output pixel.")] = None,
    output_channel: Annotated[int, typer.Option(min=0, help="Channel of the output pixel.")] = 0,
    input_channel: Annotated[int | None, typer.Option(min=0, help="Input channel.")] = None,
    overwrite: Overwrite = False,
):
    """Draws the weights that lead to one output pixel.

    The panels are FC3, the convolutions, and the fused FC3 (Figure 5 of the paper). By default the output pixel is the
    middle of the partition in channel 0, and the input channel is the first of its group. If MODEL holds no trained
    RepMLP block, because it is fused or another model, all its kernels are drawn.

    Example: repmlp-jax plot kernels runs/digits/model kernels.png --pixel 1 2
    """
    channels: dict[str, Any] = dict(input_channel=input_channel, output_channel=output_channel)

    def draw(plots):
        from flax import nnx

        from repmlp_jax import load_model
        from repmlp_jax.plots.kernels import TRAINED

        net = load_model(model)
        is_trained = any(isinstance(node, TRAINED) for _, node in nnx.iter_graph(net))
        of_a_block = {"--block": block, "--pixel": pixel, "--output-channel": output_channel}
        _refuse_without(
            of_a_block | {"--input-channel": input_channel}, is_trained, "a model with trained RepMLP blocks"
        )
        return (
            plots.fc3_kernels(_block(net, model, block), pixel, **channels) if is_trained else plots.plot_kernels(net)
        )

    _save_picture(draw, out, overwrite)


@plot.command("receptive-field")
def plot_receptive_field(model: ModelFolder, out: Picture, block: Block = 0, overwrite: Overwrite = False):
    """Draws the weights that lead to nine output pixels.

    The colour of an input pixel is the magnitude of its weights. MODEL may be trained or fused; the picture shows the
    fused weights.

    Example: repmlp-jax plot receptive-field runs/digits/fused field.png
    """

    def draw(plots):
        from repmlp_jax import load_model

        return plots.receptive_fields(_block(load_model(model), model, block))

    _save_picture(draw, out, overwrite)


@plot.command("identity")
def plot_identity(out: Picture, overwrite: Overwrite = False):
    """Draws how a convolution becomes a fully-connected layer.

    Example: repmlp-jax plot identity identity.png
    """
    _save_picture(lambda plots: plots.identity_trick(), out, overwrite)


@plot.command("report")
def plot_report(
    model: Annotated[str, typer.Argument(help="Name of a model, or folder of a saved one.")],
    out: Picture,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Sum up blocks whose paths begin with the same DEPTH names.")
    ] = None,
    overwrite: Overwrite = False,
):
    """Draws what fusing does to each block of a model.

    The bars are parameters and multiply-accumulates, before and after.

    Example: repmlp-jax plot report RepMLPNet-T224 report.png --depth 2
    """
    _save_picture(lambda plots: plots.fuse_bars(_report(model), depth), out, overwrite)


@plot.command("curves")
def plot_curves(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, with metrics.csv.")],
    out: Picture,
    overwrite: Overwrite = False,
):
    """Draws the loss and the scores of a run over its epochs.

    Example: repmlp-jax plot curves runs/digits curves.png
    """
    _save_picture(lambda plots: plots.learning_curves(plots.read_rows(run)), out, overwrite)


def _report(model: str):
    """The fuse report of a model, given by its name or its folder."""
    from repmlp_jax import create_model, fuse_report, load_model
    from repmlp_jax.models.randomness import abstract
    from repmlp_jax.storage.models import is_saved_model, model_path

    if is_saved_model(path := model_path(model)):
        return fuse_report(load_model(path))
    return fuse_report(abstract(create_model, model))


def _block(model: Any, folder: Path, number: int):
    """The RepMLP block with this number in a model from a folder; prints its path."""
    from flax import nnx

    from repmlp_jax.fusing.modules import dotted
    from repmlp_jax.plots.kernels import FUSED, TRAINED

    blocks = [(dotted(path), node) for path, node in nnx.iter_graph(model) if isinstance(node, TRAINED | FUSED)]
    if not blocks:
        raise ValueError(f"{folder} is a {type(model).__name__} that holds no RepMLP block, trained or fused")
    if number >= len(blocks):
        paths = ", ".join(path for path, _ in blocks)
        raise ValueError(f"{folder} has no block {number}: its blocks are 0 to {len(blocks) - 1} ({paths})")
    path, block = blocks[number]
    print(f"block {number} of {len(blocks)}, counted from 0: {path}")
    return block


def _save_picture(draw: Callable, out: Path, overwrite: bool):
    """Saves the figure of `draw(plots)`, unless the file exists or its name has no suffix."""
    with one_line_errors():
        from repmlp_jax import plots

        out = local_path(out)
        _refuse_existing(out, overwrite)
        if not out.suffix:
            raise ValueError(f"{out} has no ending that says which picture it is: use {out}.png, or .svg or .pdf")
        figure = draw(plots)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120)
        print(f"saved: {out}")


def _refuse_without(options: dict[str, Any], is_given: bool, what: str):
    """Refuses options that belong to another one, unless that is given."""
    if not is_given and (names := [name for name, value in options.items() if value not in (None, False)]):
        raise ValueError(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} of {what}")


def _refuse_existing(out: Path, overwrite: bool):
    if local_path(out).exists() and not overwrite:
        raise FileExistsError(f"{out} exists; --overwrite replaces it")


def main():
    """Runs the command line; a usage error also ends it with one line."""
    print_any_character()
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer does not export the class of its usage errors.
            raise
        # Without arguments the message is the help.
        prefix = "" if error.format_message().startswith("Usage:") else "error: "
        print(prefix + error.format_message(), file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code or 0)
