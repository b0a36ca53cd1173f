"""mmpretrain's keys for RepMLPNet."""

import json
import re

import golden
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, evaluate, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F32, assert_close, assert_identical

from repmlp_jax import RepMLPNet, from_torch, to_torch
from repmlp_jax.interop.mmpretrain import official_keys
from repmlp_jax.interop.torch import deployed

# As mmpretrain's converter of the official weights and its module tree spell them.
SPELLINGS = {
    "conv_embedding.conv.weight": "backbone.patch_embed.projection.weight",
    "conv_embedding.bn.running_var": "backbone.patch_embed.norm.running_var",
    "embeds.2.conv.weight": "backbone.downsample_layers.2.conv.weight",
    "embeds.0.bn.bias": "backbone.downsample_layers.0.bn.bias",
    "stages.2.11.prebn1.weight": "backbone.stages.2.11.norm1.weight",
    "stages.0.1.prebn2.num_batches_tracked": "backbone.stages.0.1.norm2.num_batches_tracked",
    "stages.0.0.repmlp_block.gp.fc1.weight": "backbone.stages.0.0.repmlp_block.gp.conv1.conv.weight",
    "stages.3.1.repmlp_block.gp.fc2.bias": "backbone.stages.3.1.repmlp_block.gp.conv2.conv.bias",
    "stages.1.0.repmlp_block.fc3.weight": "backbone.stages.1.0.repmlp_block.fc3.weight",
    "stages.1.0.repmlp_block.fc3_bn.weight": "backbone.stages.1.0.repmlp_block.fc3_bn.weight",
    "stages.1.0.repmlp_block.repconv3.bn.running_mean": "backbone.stages.1.0.repmlp_block.repconv3.bn.running_mean",
    "stages.2.5.ffn_block.ffn_fc2.conv.weight": "backbone.stages.2.5.ffn_block.ffn_fc2.conv.weight",
    "head_norm.weight": "backbone.final_norm.weight",
    "head.weight": "head.fc.weight",
    "head.bias": "head.fc.bias",
}


def mmpretrain_key(official):
    """mmpretrain's name for an official one, by the words that its converter replaces."""
    if official.startswith("head."):
        return official.replace("head.", "head.fc.")
    words = {"conv_embedding": "patch_embed", "embeds": "downsample_layers", "head_norm": "final_norm"}
    words |= {"fc1": "conv1.conv", "fc2": "conv2.conv", "prebn1": "norm1", "prebn2": "norm2"}
    renamed = ".".join(words.get(part, part) for part in official.split("."))
    renamed = re.sub(r"^patch_embed\.conv", "patch_embed.projection", renamed)
    return "backbone." + re.sub(r"^patch_embed\.bn", "patch_embed.norm", renamed)


def test_keys_are_mmpretrains():
    for official, theirs in SPELLINGS.items():
        assert mmpretrain_key(official) == theirs
        assert list(official_keys({theirs: np.zeros(1)})) == [official]


@golden.needed
@pytest.mark.parametrize("name", ["RepMLPNet-B224", "RepMLPNet-B256"])
@pytest.mark.parametrize("layout", ["train", "deploy"])
def test_every_key_of_the_published_models_is_matched_once(name, layout):
    official = json.loads((golden.FOLDER / "keys" / f"keys_{name}.json").read_text())[layout]
    theirs = {mmpretrain_key(key): np.zeros(0) for key in official}
    assert len(theirs) == len(official)
    assert official_keys(theirs).keys() == official.keys()


SMALL = dict(stage_sizes=(1, 2), widths=(8, 16), num_classes=5, partition_sizes=(4, 2), sharesets=(2, 4))


@pytest.fixture(scope="module")
def net():
    return randomised(abstract(RepMLPNet, **SMALL))


@pytest.mark.parametrize(
    "convert", [pytest.param(lambda net: net, marks=pytest.mark.slow), deployed], ids=["trained", "deployed"]
)
def test_a_net_loads_from_mmpretrains_layout(net, convert):
    official = to_torch(convert(net))
    theirs = {mmpretrain_key(key): array for key, array in official.items()}
    theirs |= {"data_preprocessor.mean": np.zeros((3, 1, 1)), "data_preprocessor.std": np.ones((3, 1, 1))}
    returned = to_torch(from_torch(net, theirs))
    for key, array in official.items():
        assert (returned[key] == array).all()


def test_the_earlier_converters_spelling_is_read_too(net):
    theirs = {mmpretrain_key(key): array for key, array in to_torch(net).items()}
    for ours, old in (("projection", "conv"), ("norm", "bn")):
        theirs = {key.replace(f"patch_embed.{ours}", f"path_embed.{old}"): array for key, array in theirs.items()}
    assert_identical(from_torch(net, theirs), net)


def test_all_wrong_keys_are_named_at_once(net):
    theirs = {mmpretrain_key(key): array for key, array in to_torch(net).items()}
    theirs["backbone.path_embed.conv.weight"] = theirs["backbone.patch_embed.projection.weight"]
    theirs["backbone.stages.0.0.repmlp_block.gp.fc1.weight"] = np.zeros(1)
    theirs["neck.weight"] = np.zeros(1)
    with pytest.raises(ValueError, match="not in mmpretrain's layout") as error:
        from_torch(net, theirs)
    assert str(error.value).splitlines()[1:] == [
        "  backbone.path_embed.conv.weight is a second conv_embedding.conv.weight",
        "  backbone.stages.0.0.repmlp_block.gp.fc1.weight is matched by 0 patterns",
        "  neck.weight is matched by 0 patterns",
    ]


@pytest.mark.slow
def test_another_number_of_classes_skips_the_head(net):
    three = SMALL | dict(num_classes=3)
    other, state_dict = RepMLPNet(**three, rngs=nnx.Rngs(7)), to_torch(net)
    with pytest.raises(ValueError, match=r'head.weight has shape \(5, 16\), the model \(3, 16\); head="skip" leaves'):
        from_torch(other, state_dict)
    loaded = from_torch(other, state_dict, head="skip")
    assert (loaded.head.linear.kernel[...] == other.head.linear.kernel[...]).all()
    returned = to_torch(loaded)
    for key in state_dict.keys() - {"head.weight", "head.bias"}:
        assert (returned[key] == state_dict[key]).all()
    # The norm before the classifier is of the net: it has to be there.
    with pytest.raises(ValueError, match=r"missing: head_norm.weight$"):
        from_torch(other, {key: value for key, value in state_dict.items() if key != "head_norm.weight"}, head="skip")
    headless = {key: value for key, value in state_dict.items() if not key.startswith("head.")}
    assert_identical(from_torch(other, headless, head="skip"), loaded)
    with pytest.raises(ValueError, match="an abstract model has no values"):
        from_torch(abstract(RepMLPNet, **three), state_dict, head="skip")
    with pytest.raises(ValueError, match='head=\'keep\' is neither "load" nor "skip"'):
        from_torch(other, state_dict, head="keep")
    with pytest.raises(ValueError, match="a RepMLPNetUnit has no classifier"):
        from_torch(other.stages[0][0], to_torch(other.stages[0][0]), head="skip")


def test_stochastic_depth_is_no_weight(net):
    official = to_torch(net)
    loaded = from_torch(abstract(RepMLPNet, **SMALL, stochastic_depth=0.5), official)
    assert to_torch(loaded).keys() == official.keys()
    x = random_input(loaded, dtype=jnp.float32)
    loaded.train()
    assert jnp.isfinite(nnx.jit(lambda model, x: model(x))(loaded, x)).all()


@pytest.mark.parametrize(
    "convert", [pytest.param(lambda net: net, marks=pytest.mark.slow), deployed], ids=["trained", "deployed"]
)
def test_weights_run_in_mmpretrains_own_classes(convert):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip(
        "mmpretrain.models", reason="mmpretrain is not installed: pip install mmpretrain mmcv-lite torch torchvision"
    )
    sizes = SMALL | dict(widths=(32, 64), image_size=(16, 16))  # theirs rounds a quarter of the width to multiples of 8
    model = convert(randomised(abstract(RepMLPNet, **sizes, param_dtype=jnp.float32)))
    arch = dict(channels=[32, 64], depths=[1, 2], sharesets_nums=[2, 4])
    backbone = theirs.RepMLPNet(
        arch, img_size=16, out_indices=(1,), reparam_conv_kernels=(1, 3), deploy=convert is deployed
    )
    head = theirs.LinearClsHead(5, 64)
    net = torch.nn.ModuleDict({"backbone": backbone, "head": head})
    net.load_state_dict({mmpretrain_key(key): torch.tensor(array) for key, array in to_torch(model).items()})
    images = random_input(model, 3, dtype=jnp.float32)
    with torch.inference_mode():
        maps = net.eval()["backbone"](torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy()))
        logits = head((maps[-1].mean((2, 3)),)).numpy()
    assert_close(logits, evaluate(model, images), ROUNDING_F32)
