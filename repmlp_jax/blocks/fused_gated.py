"""What runs in RepMLPNet: its block after fusing, a gate and one shared FC."""

from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.partition import Partitioning


class Gate(nnx.Module):
    """A factor from 0 to 1 for each channel, of what the whole map holds: average pool, FC1, ReLU, FC2, sigmoid.

    Args:
        fc1: FC from C to the hidden features.
        fc2: FC from these to C.
    """

    def __init__(self, fc1: nnx.Linear, fc2: nnx.Linear):
        self.fc1 = fc1
        self.fc2 = fc2

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N 1 1 C"]:
        """The factors, to be multiplied with every pixel."""
        return nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.mean((1, 2), keepdims=True)))))


class FusedRepMLPNetBlock(nnx.Module):
    """The fused block of RepMLPNet: what `RepMLPNetBlock.fused` returns.

    Args:
        features: channels C.
        partition_size: (h, w) of a partition.
        pad: zero-pad maps that partitions do not divide.
        gate: the Global Perceptron.
        kernel: FC3's kernel, (S, h, w, h, w).
        bias: FC3's bias, (S, h, w).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(
        self,
        features: int,
        partition_size: tuple[int, ...],
        pad: bool,
        gate: Gate,
        kernel: Float[Array, "S h w h w"],
        bias: Float[Array, "S h w"],
        dtype: DTypeLike | None,
    ):
        self.features = features
        self.partition_size = partition_size
        self.pad = pad
        self.gate = gate
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the block.

        Raises:
            ValueError: if the partitions do not divide the map, or the channels are not `features`.
        """
        partitioning = Partitioning(x.shape[1:3], self.partition_size, self.pad)
        partitioning.check(x, self.features)
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        y = shared_fc(share(partitioning.split(x), len(kernel)), kernel) + bias[:, None]
        return partitioning.join(unshare(y, self.features)) * self.gate(x)


def share(x: Float[Array, "N down across h w C"], sharesets: int) -> Float[Array, "S B h w"]:
    """All one-channel partitions by their share-set: channel c belongs to set c mod S."""
    h, w, features = x.shape[3:]
    x = x.reshape(-1, h, w, features // sharesets, sharesets)
    return x.transpose(4, 0, 3, 1, 2).reshape(sharesets, -1, h, w)


def shared_fc(x: Float[Array, "S B h w"], kernel: Float[Array, "S h w h2 w2"]) -> Float[Array, "S B h2 w2"]:
    """Applies FC3: each share-set's matrix to all of its partitions."""
    sharesets, _, h, w = x.shape
    y = x.reshape(sharesets, -1, h * w) @ kernel.reshape(sharesets, h * w, h * w)
    return y.reshape(x.shape)


def unshare(y: Float[Array, "S B h w"], features: int) -> Float[Array, "M h w C"]:
    """The inverse of `share`, up to the partitions' places in the map."""
    sharesets, _, h, w = y.shape
    y = y.reshape(sharesets, -1, features // sharesets, h, w)
    return y.transpose(1, 3, 4, 2, 0).reshape(-1, h, w, features)
