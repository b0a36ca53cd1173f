"""What a run ends with: the trained and the fused model on disk, and a table that puts them side by side."""

import json
from pathlib import Path

import jax
from flax import nnx
from tqdm import tqdm

from repmlp_jax.data import Dataset
from repmlp_jax.fuse import fuse_params
from repmlp_jax.report import fuse_report
from repmlp_jax.saved import save_model
from repmlp_jax.training.evaluation import Evaluator
from repmlp_jax.training.metrics import replace_text


def fuse_and_save(workdir: Path, model: nnx.Module, dataset: Dataset, evaluator: Evaluator) -> dict:
    """Fuses a trained model, saves both, compares them and prints the table.

    Returns:
        A dict with `trained` and `fused`, each with accuracy (of 1), parameters, macs (multiply-accumulates an image)
        and images_per_second; `largest_logit_difference` on the test images, and their `largest_logit`.
    """
    model.eval()
    fused = fuse_params(model)
    report = fuse_report(model)
    comparison = evaluator.compare(model, fused)
    columns = zip(
        ("trained", "fused"),
        comparison.accuracies,
        report.parameters,
        report.macs,
        comparison.images_per_second,
        strict=True,
    )
    results = {
        name: dict(accuracy=accuracy, parameters=parameters, macs=macs, images_per_second=speed)
        for name, accuracy, parameters, macs, speed in columns
    }
    results["largest_logit_difference"] = comparison.largest_difference
    results["largest_logit"] = comparison.largest_logit
    if jax.process_index() == 0:
        preprocessing = dict(mean=dataset.mean, std=dataset.std, class_names=dataset.class_names)
        for name, saved in (("model", model), ("fused", fused)):
            save_model(workdir / name, _on_this_process(saved), preprocessing=preprocessing, overwrite=True)
        replace_text(workdir / "results.json", json.dumps(results, indent=1))
        tqdm.write(_table(results) + f"\nsaved: {workdir / 'model'} and {workdir / 'fused'}")
    return results


def _on_this_process(model):
    """The model with arrays that no other process has a part of."""
    return jax.tree.map(lambda array: array.addressable_data(0), model)


def _table(results) -> str:
    lines = [f"{'':9}{'accuracy':>10}{'parameters':>14}{'MACs':>16}{'images/s':>12}"]
    for name in ("trained", "fused"):
        row = results[name]
        lines.append(
            f"{name:9}{row['accuracy']:>10.2%}{row['parameters']:>14,}{row['macs']:>16,}"
            f"{row['images_per_second']:>12,.0f}"
        )
    lines.append(
        f"largest logit difference {results['largest_logit_difference']:.2g} (largest logit "
        f"{results['largest_logit']:.3g})"
    )
    return "\n".join(lines)
