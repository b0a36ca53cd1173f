"""The card of a model on the Hugging Face hub: what it is, its scores and its recipe, and how it is loaded."""

from pathlib import Path
from typing import Any

from repmlp_jax.extras import name_extra
from repmlp_jax.fusing.fuse import fusable_modules
from repmlp_jax.fusing.report import count_parameters
from repmlp_jax.listing import listed
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.storage.hub import is_on_hub
from repmlp_jax.storage.models import SavedModel
from repmlp_jax.storage.preprocessing import statistics_of

TASKS = {
    "classification": "image-classification",
    "faces": "image-feature-extraction",
    "segmentation": "image-segmentation",
}
SIZES = "parameters", "macs", "images_per_second"  # in the rows of results.json, beside the scores
AVERAGES = {"ema": "trained", "ema_fused": "fused"}  # rows without sizes, and those that have the same


def model_card(
    repository: str, saved: SavedModel, results: dict[str, Any], config: dict[str, Any], made_with: dict[str, str]
) -> str:
    """The text, in Markdown.

    Args:
        repository: OWNER/NAME.
        saved: the model.
        results: of the run, as in `results.json`; empty if it is not known.
        config: of the run, as in `config.json`; empty if it is not known.
        made_with: library → version.
    """
    task = [f"pipeline_tag: {TASKS[config['task']]}"] if config.get("task") in TASKS else []
    head = ["---", "library_name: repmlp_jax", *task, "tags: [repmlp, jax, flax]", "---"]
    parts = [_what(repository, saved, config), _usage(repository, saved), _scores(results), _recipe(config, made_with)]
    return "\n\n".join(["\n".join(head), *filter(None, parts)]) + "\n"


def _what(repository, saved, config) -> str:
    dataset = config.get("dataset")
    size = "×".join(map(str, input_shape_of(saved.model)))
    called = f"`{config['model']}`, a {type(saved.model).__name__}" if config else f"A {type(saved.model).__name__}"
    trained = f", trained on {'pictures in folders' if dataset == 'folder' else dataset}" if dataset else ""
    text = f"# {repository.partition('/')[2]}\n\n{called} of [RepMLP](https://arxiv.org/abs/2105.01883){trained}: "
    text += f"{count_parameters(saved.model):,} parameters, images of {size}."
    if names := saved.preprocessing.get("class_names"):
        text += f" It has {len(names)} classes: {listed(names, shown=20)}."
    return text


def _usage(repository, saved) -> str:
    shape = input_shape_of(saved.model)
    mean, std = (list(values) for values in statistics_of(saved.preprocessing, shape[-1]))
    images = f"images: float32 (N, {', '.join(map(str, shape))}), (pixels / 255 - {mean}) / {std}"
    is_fused = not fusable_modules(saved.model)
    lines = [
        f'from repmlp_jax import {"" if is_fused else "fuse_params, "}load_model  # pip install "repmlp_jax[hub]"',
        f'model = load_model("hf://{repository}")' + ("  # it is fused already" if is_fused else ""),
        *([] if is_fused else ["model = fuse_params(model)  # the same outputs, by fewer and faster layers"]),
        f"outputs = model(images)  # {images}",
    ]
    if not (module := type(saved.model).__module__).startswith("repmlp_jax."):
        lines.insert(1, f"import {module}  # which registers {type(saved.model).__name__}")
    return "\n".join(["## Use", "", "```python", *lines, "```"])


def _scores(results) -> str:
    rows = {name: results[name] for name in ("trained", "fused") if name in results}
    if not rows:
        return ""
    rows |= {name: rows[like] | results[name] for name, like in AVERAGES.items() if name in results}
    scores = [name for name, value in rows["trained"].items() if name not in SIZES and isinstance(value, float)]
    lines = [f"| | {' | '.join(scores)} | parameters | multiply-accumulates |", "|---" * (len(scores) + 3) + "|"]
    for name, row in rows.items():
        cells = [f"{row[score]:.4f}" for score in scores]
        lines.append(f"| {' | '.join([name, *cells, format(row['parameters'], ','), format(row['macs'], ',')])} |")
    return "\n".join(["## Scores", "", *lines])


def _recipe(config, made_with) -> str:
    if not config:
        return ""
    with name_extra():
        from repmlp_jax.training.config import OF_A_PROCESS, default_config

    default = default_config().to_dict()
    changed = {name: value for name, value in config.items() if name not in OF_A_PROCESS}
    changed = {name: value for name, value in changed.items() if _plain(value) != _plain(default.get(name))}
    if changed.get("init_from") and not is_on_hub(changed["init_from"]):
        changed["init_from"] = Path(changed["init_from"]).name  # where it lay is nobody's business
    used = ", ".join(f"{name} {version}" for name, version in made_with.items())
    lines = [f"- `{name} = {value!r}`" for name, value in changed.items()]
    return "\n".join(["## Recipe", "", f"The fields that differ from `default_config()`, with {used}:", "", *lines])


def _plain(value) -> Any:
    """A value as JSON has it."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
