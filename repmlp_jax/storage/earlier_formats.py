"""The shapes of arrays in files of earlier formats.

They hold FC3's kernel as (g, h, w, C/g, h, w, O/g), which is (g, h·w·C/g, h·w·O/g) today. The same goes for the
(S, h, w, h, w) of RepMLPNet, for FC1 and FC2 of the Global Perceptron, for biases and norms of these layers, int8
kernels and their scales, and an optimizer's state. Adjacent axes were merged, and axes of size 1 dropped: an array's
values stay, in the same order.
"""

import itertools
import math
import operator
import re
from collections.abc import Mapping, Sequence

import jax

MODELS = (1, 2)  # formats of saved models
CHECKPOINTS = (1,)


def as_stored(leaves: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes arrays as a file of an earlier format holds them; `reshape` to the shapes of today reverses it.

    Args:
        leaves: name → the array as it is today.
        stored: name → dtype and shape in the file, such as `float32[3,3]`.

    Returns:
        The leaves, with the shape in the file where its axes merge into those of the leaf.
    """
    shapes = {name: tuple(map(int, re.findall(r"\d+", text.partition("[")[2]))) for name, text in stored.items()}
    return {
        name: leaf.update(shape=shapes[name]) if name in shapes and _merge(shapes[name], leaf.shape) else leaf
        for name, leaf in leaves.items()
    }


def _merge(stored: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether adjacent axes of the stored shape merge into the shape, which has fewer."""
    places, ends = (set(itertools.accumulate(sizes, operator.mul, initial=1)) for sizes in (stored, shape))
    return len(stored) > len(shape) and math.prod(stored) == math.prod(shape) and ends <= places
