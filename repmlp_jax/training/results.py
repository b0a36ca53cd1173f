"""The results of a run: the trained and the fused model on disk, and a table of both."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.fuse import fuse_params
from repmlp_jax.interop.report import fuse_report
from repmlp_jax.progress import print_line
from repmlp_jax.storage.models import check_may_write, save_model
from repmlp_jax.training.metrics import PICTURE, replace_text
from repmlp_jax.training.sharding import on_this_process

SAVED = "model", "fused"
SAVED_AVERAGES = "ema", "ema_fused"


def check_results(workdir: Path, *, averaged: bool = False):
    """Refuses a folder in which `fuse_and_save` would not replace what is there; raises FileExistsError."""
    for name in SAVED + (SAVED_AVERAGES if averaged else ()):
        check_may_write(workdir / name, overwrite=True)


def fuse_and_save(
    workdir: Path, model: nnx.Module, task, weights: dict, training: dict | None, *, average: nnx.Module | None = None
) -> dict:
    """Fuses a trained model, saves both, compares them and prints the table; the same with an average of the weights.

    Args:
        workdir: the run's folder.
        model: the trained model.
        task: its task.
        weights: which weights they are: `which`, "last" or "best", the `step` and `epoch` that they are of, and
            `steps_trained`.
        training: what the training took, as of `Times.figures`; None in all processes but the first.
        average: the model with the average of the weights; None: there is none.

    Returns:
        A dict of `trained` and `fused`, each with the task's scores, parameters, macs (multiply-accumulates per image)
        and images_per_second; `baselines`, name → scores that a model has to beat; `largest_output_difference` on the
        test images at the highest matmul precision, and their `largest_output`; `largest_output_difference_as_run`, at
        the devices' default precision; `computed_in`, a dtype; `weights` and `training`. With an average also `ema` and
        `ema_fused`, each with the task's scores, and `largest_output_difference_ema`.
    """
    model = on_this_process(model)
    model.eval()
    fused = fuse_params(model)
    report = fuse_report(model)
    assert report.macs is not None, "tasks read the input_shape of their models"
    comparison = task.evaluator.compare(model, fused)
    results: dict = {}
    for index, name in enumerate(("trained", "fused")):
        sizes = dict(parameters=report.parameters[index], macs=report.macs[index])
        results[name] = comparison.scores[index] | sizes | dict(images_per_second=comparison.images_per_second[index])
    results["baselines"] = task.baselines()
    results["largest_output_difference"] = comparison.largest_difference
    results["largest_output"] = comparison.largest_output
    results["largest_output_difference_as_run"] = comparison.difference_as_run
    results["computed_in"] = _compute_dtype(model)
    results |= dict(weights=weights, training=training)
    models = dict(zip(SAVED, (model, fused), strict=True))
    if average is not None:
        average = on_this_process(average)
        average.eval()
        models |= zip(SAVED_AVERAGES, (average, fuse_params(average)), strict=True)
        of_averages = task.evaluator.compare(*(models[name] for name in SAVED_AVERAGES), runs=1)
        results |= zip(SAVED_AVERAGES, of_averages.scores, strict=True)
        results["largest_output_difference_ema"] = of_averages.largest_difference
    if jax.process_index() == 0:
        for name, saved in models.items():
            save_model(workdir / name, saved, preprocessing=task.preprocessing, overwrite=True)
        if hasattr(task, "report"):  # which tasks for earlier versions lack
            task.report(workdir, comparison)
        task.draw(workdir, fused)
        replace_text(workdir / "results.json", json.dumps(results, indent=1))
        print_line(_table(results, task.scores))
        print_line(_which_weights(weights, task.best))
        print_line(f"saved: {' and '.join(str(workdir / name) for name in models)}")
        if (picture := workdir / PICTURE).exists():  # There are no curves without epochs.
            print_line(f"curves: {picture}")
    return results


def _compute_dtype(model) -> str:
    """The dtype that a model computes float32 images in."""
    arguments = json.loads(getattr(model, "arguments", "{}"))
    return arguments.get("dtype") or jnp.promote_types(jnp.float32, arguments.get("param_dtype", "float32")).name


def score(name: str, value: float) -> str:
    """Formats a score: a loss as a number, a share in per cent."""
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2%}"


def _which_weights(weights, best) -> str:
    if not weights["steps_trained"]:
        return "weights: those before training"
    if weights["which"] == "last":
        return f"weights: the last, of epoch {weights['epoch']}"
    return f"weights: those of the best test {best.replace('_', ' ')}, of epoch {weights['epoch']}"


def _table(results, scores) -> str:
    shown = [name for name in scores if name != "loss"]
    widths = [max(10, len(name) + 2) for name in shown]
    averages = {name.replace("_", " "): results[name] for name in SAVED_AVERAGES if name in results}
    margin = 2 + max(map(len, ("trained", *averages, *results["baselines"])))

    def line(head, row):
        cells = "".join(f"{score(name, row[name]):>{width}}" for name, width in zip(shown, widths, strict=True))
        return f"{head:{margin}}{cells}"

    heads = "".join(f"{name.replace('_', ' '):>{width}}" for name, width in zip(shown, widths, strict=True))
    lines = [f"{'':{margin}}{heads}{'parameters':>14}{'MACs':>18}{'images/s':>12}"]
    for name in ("trained", "fused"):
        row = results[name]
        sizes = f"{row['parameters']:>14,}{row['macs']:>18,}{row['images_per_second']:>12,.0f}"
        lines.append(line(name, row) + sizes)
    lines += [line(name, row) for name, row in (averages | results["baselines"]).items()]
    exact, as_run = results["largest_output_difference"], results["largest_output_difference_as_run"]
    is_exact = results["computed_in"] in ("float32", "float64")
    rounded = "" if is_exact else f", computed in {results['computed_in']}"
    lines.append(
        f"largest difference of an output {exact:.2g} (largest output {results['largest_output']:.3g}){rounded}"
    )
    if as_run > exact and is_exact:
        kinds = " and ".join(sorted({device.device_kind for device in jax.local_devices()}))
        lines.append(
            f"as run on {kinds} {as_run:.2g}: by default it multiplies float32 in fewer bits; with "
            f"JAX_DEFAULT_MATMUL_PRECISION=highest it does not"
        )
    return "\n".join(lines)
