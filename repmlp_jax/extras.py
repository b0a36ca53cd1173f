"""What the extras of the package are for, which modules they bring, and the error where one of these is missing."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

EXTRAS = {
    "train": (
        "training, datasets, predictions and plots",
        (
            # It is not built for Windows.
            *(() if sys.platform == "win32" else ("array_record",)),
            *("cv2", "grain", "matplotlib", "ml_collections", "PIL", "sklearn", "tensorboardX"),
            *("tensorflow_datasets", "tqdm"),
        ),
    ),
    "onnx": ("ONNX files and int8", ("onnx", "onnxruntime")),
    "hub": ("models on the Hugging Face hub", ("huggingface_hub",)),
    "torch": ("weights in .pth, .pt, .tar and .bin files, not in .safetensors", ("torch",)),
}


def missing_from(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    _, modules = EXTRAS[extra]
    return [name for name in modules if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def name_extra() -> Iterator[None]:
    """Where an import within fails for want of an extra, the error says which one and how to install it.

    Raises:
        ModuleNotFoundError: in place of the one about the module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, (purpose, modules) in EXTRAS.items():
            if module in modules:
                raise ModuleNotFoundError(
                    f'{module} is not installed. For {purpose} run pip install "repmlp_jax[{extra}]"', name=module
                ) from error
        raise
