"""What does int8 cost in accuracy, and what does it save in size and time, beside the fused model in float32?

    python benchmarks/quantisation.py
    python benchmarks/quantisation.py --model runs/cifar/model --dataset cifar10 --images 2000

Without a model the digits' recipe is trained, once for each seed, and figures are means over these models. The kernels
of the trained model are rounded, too, to see whether it is the fusing that makes rounding hurt. Ratios of time are of
medians, measured in turn in one process.
"""

import argparse
import runpy
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import interleaved, record

from repmlp_jax import fuse_params, save_model
from repmlp_jax.blocks.repmlp import FusedRepMLP, PartitionPerceptron
from repmlp_jax.compilation_cache import keep_compiled_programs
from repmlp_jax.data import augment, load_dataset
from repmlp_jax.quantisation.quantise import quantise_params, summed_axes
from repmlp_jax.quantisation.quantised import round_to_int8
from repmlp_jax.storage.models import load
from repmlp_jax.training import train_and_evaluate

DIGITS = Path(__file__).parents[1] / "configs" / "digits.py"
FLOAT = "fused, float32"
IN_INT8 = "fused, int8 weights"


def main():
    """Trains, measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", help="of the model; digits or cifar10")
    parser.add_argument("--model", type=Path, help="folder of a saved model, not fused, in place of training")
    parser.add_argument("--images", type=int, help="evaluate on so many of the test images; by default on all")
    parser.add_argument("--seeds", type=int, default=3, help="how many models to train")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    keep_compiled_programs()

    dataset = load_dataset(options.dataset)
    images, labels = (array[: options.images] for array in dataset.test)
    with tempfile.TemporaryDirectory() as workdir:
        folders = [options.model] if options.model else trained_on_digits(options.seeds, Path(workdir))
        saved = [load(folder) for folder in folders]
    judged = [judge(model, preprocessing, images, labels) for model, preprocessing in saved]
    measured = dict(
        dataset=options.dataset,
        models=len(saved),
        images=len(labels),
        forms={form: mean([one[form] for one in judged]) for form in judged[0]},
        rounding_of_fc3=mean([rounding_of_fc3(model) for model, _ in saved]),
        seconds={},
    )
    fused = fuse_params(saved[0].model)
    models = in_all_forms(fused)
    measured["bytes_on_disk"] = {form: bytes_on_disk(model) for form, model in models.items()}
    for batch_size in options.batch_sizes:
        x = normalised(saved[0].preprocessing, images[:batch_size])
        timed = {form: lambda model=model, x=x: forward(model, x) for form, model in models.items()}
        measured["seconds"][f"batch {batch_size}"] = interleaved(timed, options.runs)
    show(measured)
    name = "quantisation" if options.dataset == "digits" else f"quantisation_{options.dataset}"
    print("recorded:", record(name, measured))


def trained_on_digits(seeds: int, workdir: Path) -> list[Path]:
    """The folders of models that are trained now."""
    folders = []
    for seed in range(seeds):
        config = runpy.run_path(str(DIGITS))["get_config"]()
        config.seed = seed
        train_and_evaluate(config, workdir / str(seed))
        folders.append(workdir / str(seed) / "model")
    return folders


@jax.jit
def forward(model, x):
    """The logits."""
    return model(x)


def normalised(preprocessing, images):
    """Images as the model takes them."""
    return augment.normalise(jnp.asarray(images), preprocessing["mean"], preprocessing["std"])


def in_all_forms(fused):
    """The fused model in float32 and in int8."""
    return {FLOAT: fused, IN_INT8: quantise_params(fused)}


def judge(model, preprocessing, images, labels) -> dict[str, dict]:
    """Form → its accuracy; how often it says what the float32 one says; and how far its logits are off."""
    fused = fuse_params(model)
    models = in_all_forms(fused) | {"trained, float32": model, "trained, int8 weights": in_int8(model)}
    reference, judged = logits(fused, preprocessing, images), {}
    for form, quantised in models.items():
        found = logits(quantised, preprocessing, images)
        judged[form] = dict(
            accuracy=float(np.mean(found.argmax(1) == labels)),
            says_what_float32_says=float(np.mean(found.argmax(1) == reference.argmax(1))),
            relative_error_of_logits=rms(found - reference) / rms(reference),
        )
    return judged


def logits(model, preprocessing, images) -> np.ndarray:
    """Of all images, some hundred at a time."""
    parts = np.array_split(images, max(1, len(images) // 500))
    return np.concatenate([np.asarray(forward(model, normalised(preprocessing, part))) for part in parts])


def in_int8(model):
    """A trained model with its kernels rounded to int8 and made floating-point again."""
    model = nnx.clone(model)
    for _, layer in nnx.iter_graph(model):
        if isinstance(layer, PartitionPerceptron | nnx.Conv | nnx.Linear | nnx.LinearGeneral):
            layer.kernel = nnx.Param(rounded(layer))
    return model


def rounded(layer):
    """A layer's kernel rounded to int8 and made floating-point again."""
    values, scale = round_to_int8(layer.kernel[...], summed(layer))
    return values.astype(scale.dtype) * scale


def summed(layer):
    """As `summed_axes`, of what trains, too."""
    return (1, 2, 3) if isinstance(layer, PartitionPerceptron) else summed_axes(layer)


def rounding_of_fc3(model) -> dict[str, dict]:
    """How coarse int8 is for FC3 before and after fusing: means over the model's blocks."""
    fused = fuse_params(model)
    holders = {"trained": (model, PartitionPerceptron), "fused": (fused, FusedRepMLP)}
    return {
        name: mean([rounding(layer) for _, layer in nnx.iter_graph(holder) if isinstance(layer, kind)])
        for name, (holder, kind) in holders.items()
    }


def rounding(layer) -> dict:
    """What rounding changes, of the size of the kernel; and how far weights differ in size, which makes it coarse."""
    kernel = np.asarray(layer.kernel[...])
    sizes = np.sqrt(np.square(kernel).mean(summed(layer)))
    return dict(
        relative_error=rms(rounded(layer) - kernel) / rms(kernel),
        largest_weight_of_a_channel_to_its_rms=float((np.abs(kernel).max(summed(layer)) / sizes).mean()),
        largest_weight_of_all_to_their_rms=float(np.abs(kernel).max() / rms(kernel)),
    )


def bytes_on_disk(model) -> int:
    """The size of its saved weights."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", model)
        return (Path(folder) / "model" / "weights.safetensors").stat().st_size


def mean(rows: list[dict]) -> dict:
    """The mean of dicts of numbers, or of such dicts."""
    first = rows[0]
    return {
        name: mean([row[name] for row in rows])
        if isinstance(first[name], dict)
        else float(np.mean([row[name] for row in rows]))
        for name in first
    }


def rms(array) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def show(measured):
    """Prints what was measured."""
    print(f"{measured['dataset']}: {measured['models']} models, {measured['images']} images each")
    for form, row in measured["forms"].items():
        numbers = (
            f"accuracy {row['accuracy']:7.2%}",
            f"says what float32 says {row['says_what_float32_says']:7.2%}",
            f"logits off by {row['relative_error_of_logits']:.2g}",
        )
        print(f"{form:50}", "   ".join(numbers))
    for name, row in measured["rounding_of_fc3"].items():
        print(f"FC3, {name}: ", ", ".join(f"{what.replace('_', ' ')} {value:.3g}" for what, value in row.items()))
    for form, size in measured["bytes_on_disk"].items():
        print(f"{form:50} {size:>12,} bytes on disk", end="")
        for batch, rows in measured["seconds"].items():
            print(f"   {rows[form]['median'] / rows[FLOAT]['median']:6.2f} × the time, {batch}", end="")
        print()


if __name__ == "__main__":
    main()
