"""What print shows of a model."""

import re

from cases import abstract, randomised

from repmlp_jax import PureMLP, fuse_params

SIZES = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
TRAINED = """
PureMLP for images of 8×8×3, 5,766 parameters
block       kind    parameters
embedding   ConvBN  20
stages.0.0  RepMLP  2,824
stages.0.1  ConvBN  24
stages.0.2  RepMLP  2,824
stages.0.3  ConvBN  24
head        Linear  50
"""


def test_a_model_is_printed_block_by_block():
    model = randomised(abstract(PureMLP, **SIZES))
    assert f"\n{model}\n" == TRAINED
    lines = str(fuse_params(model)).splitlines()
    assert lines[2].split() == ["embedding", "Conv", "16"]
    assert lines[3].split()[:2] == ["stages.0.0", "FusedRepMLP"]
    assert "value=Array" in repr(model)


def test_a_notebook_shows_the_same_table():
    shown = abstract(PureMLP, **SIZES)._repr_html_()
    assert shown.startswith("<p>PureMLP for images of 8×8×3, 5,766 parameters</p><table><tr><th")
    assert re.sub("<.*?>", " ", shown).split()[-3:] == ["head", "Linear", "50"]


def test_a_model_whose_call_fails_is_printed_all_the_same():
    model = abstract(PureMLP, **SIZES)
    model.head = None
    assert len(str(model).splitlines()) == 7
