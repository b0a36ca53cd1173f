"""The models of configs/cifar.py, small, on the digits: what `--quick` trains. To be run from the repository root."""

from configs import cifar, digits


def get_config(variant=""):
    """The recipe of a variant."""
    model = cifar.get_config(variant).model
    config = digits.get_config()
    config.model = model
    if model == "wide_convnet":
        # It has no partitions.
        del config.model_arguments["partition_size"], config.model_arguments["conv_kernels"]
    return config
