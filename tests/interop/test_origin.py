"""What is said of weights that do not fit: five problems, how many there are, and what the file may be of."""

import pickle

import numpy as np
import pytest
from cases import abstract, build_block, randomised
from flax import nnx

from repmlp_jax import RepMLPNet, from_torch, to_torch
from repmlp_jax.interop import origin
from repmlp_jax.interop.torch import deployed

SIZES = dict(stage_sizes=(1, 1), widths=(4, 8), num_classes=5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2))
LARGER = SIZES | dict(widths=(6, 12), partition_sizes=((6, 6), (3, 3)))


@pytest.fixture(scope="module")
def net():
    return randomised(abstract(RepMLPNet, **SIZES))


@pytest.fixture(autouse=True)
def published(monkeypatch):
    monkeypatch.setattr(origin, "MODELS", {"small": (RepMLPNet, SIZES), "large": (RepMLPNet, LARGER)})


def weights(**options):
    return to_torch(randomised(abstract(RepMLPNet, **SIZES | options)))


CASES = {
    "behind a prefix": (
        lambda net: net,
        lambda net: {f"net.{key}": array for key, array in to_torch(net).items()} | {"loss.weight": np.zeros(1)},
        "The model's keys are there behind 'net.': pass what has this prefix, without it.",
    ),
    "a part": (
        lambda net: net,
        lambda net: to_torch(net.stages[0][0]),
        "The keys are those of a part of the model, which it has behind 'stages.0.0.': load them into that part.",
    ),
    "fused": (
        deployed,
        to_torch,
        "The weights are of the trained layout, and the model is fused: load them into the trained one.",
    ),
    "another resolution": (
        lambda net: net,
        lambda net: weights(**LARGER),
        "The weights have the shapes of large.",
    ),
    "another resolution, deployed": (
        lambda net: net,
        lambda net: to_torch(deployed(randomised(abstract(RepMLPNet, **LARGER)))),
        "The weights have the shapes of large.",
    ),
    "and other classes": (
        lambda net: net,
        lambda net: weights(**LARGER | dict(num_classes=7)),
        "The weights have the shapes of large with num_classes=7.",
    ),
    "other widths": (
        lambda net: net,
        lambda net: weights(widths=(4, 12)),
        "All keys are the model's: the weights are of a RepMLPNet with other arguments.",
    ),
    "other kernels": (
        lambda net: net,
        lambda net: weights(widths=(8, 16), conv_kernels=(1,)),
        r"\d+ of the \d+ keys are the model's: perhaps a RepMLPNet with other arguments.",
    ),
    "another architecture": (
        lambda net: net,
        lambda net: {f"layer{index}.weight": np.zeros(1) for index in range(3)},
        "None of the 3 keys is the model's: the weights are of another architecture.",
    ),
    "another architecture of mmpretrain": (
        lambda net: net,
        lambda net: {f"backbone.layer{index}.weight": np.zeros(1) for index in range(6)},
        "None of the 6 keys is the model's: the weights are of another architecture.",
    ),
}


@pytest.mark.parametrize(("model", "state_dict", "guess"), CASES.values(), ids=CASES)
def test_many_problems_are_five_a_count_and_a_guess(net, model, state_dict, guess):
    with pytest.raises(ValueError, match=f"\n  and \\d+ more: .* has all\n{guess}$") as error:
        from_torch(model(net), state_dict(net))
    count = len(error.value.problems)
    assert count > 5
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines[1:6]] == error.value.problems[:5]
    assert lines[6].startswith(f"  and {count - 5} more: ")
    assert len(lines) == 8


def test_few_problems_are_all_there_without_a_guess():
    block = build_block()
    with pytest.raises(ValueError, match=r"^state_dict does not fit RepMLP:\n  not used by the model: other$"):
        from_torch(block, to_torch(block) | {"other": np.zeros(1)})


def test_the_error_survives_a_process(net):
    with pytest.raises(ValueError, match="does not fit") as error:
        from_torch(net, {"other": np.zeros(1)})
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value)


def test_deployed_weights_leave_the_classifier_too(net):
    other = RepMLPNet(**SIZES | dict(num_classes=3), rngs=nnx.Rngs(1))
    loaded = from_torch(other, to_torch(deployed(net)), head="skip")
    assert (loaded.head.linear.kernel[...] == other.head.linear.kernel[...]).all()
    state_dict = to_torch(loaded)
    for key, array in to_torch(deployed(net)).items():
        assert key in ("head.weight", "head.bias") or (state_dict[key] == array).all()
