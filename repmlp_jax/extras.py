"""What the extras of the package are for, and which modules they bring."""

import importlib.util

EXTRAS = {
    "onnx": ("ONNX files and int8", ("onnx", "onnxruntime")),
    "hub": ("models on the Hugging Face hub", ("huggingface_hub",)),
    "torch": ("weights in .pth, .pt, .tar and .bin files", ("torch",)),
}


def missing_from(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    _, modules = EXTRAS[extra]
    return [name for name in modules if importlib.util.find_spec(name) is None]
