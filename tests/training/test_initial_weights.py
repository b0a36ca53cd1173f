"""Weights to start from: what is refused, and what is said of it."""

import numpy as np
import pytest
from cases import abstract, randomised
from safetensors.numpy import save_file

from repmlp_jax import PureMLP, RepMLPNet, fuse_params, save_model, to_torch
from repmlp_jax.interop.initial_weights import with_weights_of

SIZES = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1,))


def test_a_file_with_nan_is_refused(tmp_path):
    net = randomised(
        abstract(RepMLPNet, (1, 1), (4, 8), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2), conv_kernels=(1,))
    )
    state_dict = to_torch(net)
    state_dict["head.weight"][0, 0] = np.nan
    save_file(state_dict, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinite: head.weight \(1 of 40\)"):
        with_weights_of(tmp_path / "x.safetensors", net)


def test_a_folder_that_does_not_fit_is_said_to_hold_what_it_holds(tmp_path):
    model = randomised(abstract(PureMLP, 3, **SIZES))
    save_model(tmp_path / "fused", fuse_params(model))
    with pytest.raises(ValueError, match=r"(?s)does not fit Pure.*a fused PureMLP\. load_model loads it as it is\.$"):
        with_weights_of(tmp_path / "fused", model)


@pytest.mark.parametrize(
    ("make", "other", "message"),
    [
        (
            lambda **sizes: abstract(PureMLP, 3, in_features=1, widths=(4,), conv_kernels=(1,), **sizes),
            [dict(image_size=(8, 8), partition_size=size) for size in ((4, 4), (2, 8))],
            r"stages\.0\.0 has partitions of size \(4, 4\), the model \(2, 8\)\n.*counts \(2, 2\), the model \(4, 1\)",
        ),
        (
            lambda **sizes: abstract(PureMLP, 3, in_features=1, widths=(4,), conv_kernels=(1,), **sizes),
            [dict(image_size=size, partition_size=(2, 2)) for size in ((2, 4), (4, 2))],
            r"stages\.0\.0 has partitions of counts \(1, 2\), the model \(2, 1\)",
        ),
        (
            lambda **sizes: abstract(RepMLPNet, (1,), (4,), 5, image_size=(16, 16), conv_kernels=(1,), **sizes),
            [dict(sharesets=(1,), partition_sizes=(size,)) for size in ((4, 1), (2, 2))],
            r"stages\.0\.0\.block has partitions of size \(4, 1\), the model \(2, 2\)",
        ),
    ],
    ids=["size", "counts", "size in RepMLPNet"],
)
def test_a_model_with_other_partitions_is_refused_though_its_arrays_have_the_same_shapes(
    tmp_path, make, other, message
):
    saved, model = (randomised(make(**sizes)) for sizes in other)
    save_model(tmp_path / "saved", saved)
    with pytest.raises(ValueError, match=rf"(?s)saved does not fit {type(model).__name__}:.*{message}"):
        with_weights_of(tmp_path / "saved", model)
