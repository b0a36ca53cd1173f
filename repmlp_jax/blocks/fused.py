"""What runs: the RepMLP block after fusing, three FCs without a norm or a branch."""

from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import grouped_fc, ungroup
from repmlp_jax.blocks.partition import Partitioning


class FusedGlobalPerceptron(nnx.Module):
    """FC1 and FC2 over the averages of all partitions.

    Args:
        fc1: FC from (down, across, C) to the hidden features.
        fc2: FC from these to (down, across, C).
    """

    def __init__(self, fc1: nnx.LinearGeneral, fc2: nnx.LinearGeneral):
        self.fc1 = fc1
        self.fc2 = fc2

    def __call__(self, x: Float[Array, "N down across h w C"]) -> Float[Array, "N down across C"]:
        """What is added to every pixel of each partition."""
        return self.fc2(nnx.relu(self.fc1(x.mean((3, 4)))))


class FusedRepMLP(nnx.Module):
    """The fused RepMLP block: what `RepMLP.fused` returns.

    Args:
        partitioning: the feature map's size and its partitions.
        in_features: input channels C.
        global_perceptron: FC1 and FC2, or None without a Global Perceptron.
        kernel: FC3's kernel, (g, h, w, C/g, h, w, O/g).
        bias: FC3's bias, (g, h, w, O/g).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(
        self,
        partitioning: Partitioning,
        in_features: int,
        global_perceptron: FusedGlobalPerceptron | None,
        kernel: Float[Array, "g h w c h w o"],
        bias: Float[Array, "g h w o"],
        dtype: DTypeLike | None,
    ):
        self.partitioning = partitioning
        self.in_features = in_features
        self.global_perceptron = nnx.data(global_perceptron)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block.

        Raises:
            ValueError: if the map's size or channels are not those that the block was built for.
        """
        self.partitioning.check(x, self.in_features)
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        x = self.partitioning.split(x)
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)[:, :, :, None, None, :]
        partitions = x.reshape(-1, *x.shape[3:])
        return self.partitioning.join(ungroup(grouped_fc(partitions, kernel) + bias[:, None]))
