"""Small nets as people write them in Flax NNX, for what `fuse_params(model, example)` finds in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax import RepMLP
from repmlp_jax.blocks.layers import BatchNorm as OurBatchNorm
from repmlp_jax.models.randomness import abstract, seeded


def build(make, *arguments, seed: int = 0, dtype=jnp.float64, **options):
    """The net that `make(…, rngs=…)` makes, in evaluation mode, all of it random."""
    model = randomised(abstract(make, *arguments, **options), seed, dtype)
    model.eval()
    return model


def randomised(model: nnx.Module, seed: int = 0, dtype=jnp.float64) -> nnx.Module:
    """A net, which may be abstract, whose parameters and statistics are all random and of one dtype.

    Scales and kernels have both signs, so that nothing that depends on one stays hidden; `dtype=None`: as they are.
    """
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        if isinstance(leaf, nnx.RngState) or not isinstance(leaf, nnx.Variable):
            return leaf
        name, shape = path[-1], leaf.shape
        if name == "var":
            array = random.uniform(0.5, 2, shape)
        elif name == "scale":
            array = random.uniform(0.5, 1.5, shape) * random.choice([-1, 1], shape)
        elif name == "kernel":
            array = random.normal(0, 0.4, shape)
        else:
            array = random.normal(0, 0.5, shape)
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.replace(jnp.asarray(array, dtype if dtype is not None and is_float else leaf.dtype))

    graphdef, state = nnx.split(seeded(model))
    drawn = [(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(drawn))


class ConvNorm(nnx.Module):
    def __init__(self, in_features, out_features, kernel_size, *, rngs, **options):
        self.conv = nnx.Conv(in_features, out_features, kernel_size, use_bias=False, rngs=rngs, **options)
        self.norm = nnx.BatchNorm(out_features, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class SqueezeExcite(nnx.Module):
    def __init__(self, features, reduced, *, rngs):
        self.squeeze = nnx.Linear(features, reduced, rngs=rngs)
        self.excite = nnx.Linear(reduced, features, rngs=rngs)

    def __call__(self, x):
        weights = x.mean((1, 2), keepdims=True)
        return x * nnx.sigmoid(self.excite(nnx.relu(self.squeeze(weights))))


# Nets that train with parallel branches.


class RepVGGBlock(nnx.Module):
    def __init__(self, in_features, out_features, strides=1, attention=False, *, rngs):
        self.conv3x3 = ConvNorm(in_features, out_features, (3, 3), strides=strides, padding=1, rngs=rngs)
        self.conv1x1 = ConvNorm(in_features, out_features, (1, 1), strides=strides, padding=0, rngs=rngs)
        has_identity = in_features == out_features and strides == 1
        self.identity = nnx.BatchNorm(in_features, rngs=rngs) if has_identity else None
        self.attention = SqueezeExcite(out_features, 2, rngs=rngs) if attention else None

    def __call__(self, x):
        y = self.conv3x3(x) + self.conv1x1(x)
        if self.identity is not None:
            y = y + self.identity(x)
        if self.attention is not None:
            y = self.attention(y)
        return nnx.relu(y)


class RepVGG(nnx.Module):
    def __init__(self, attention=False, *, rngs):
        block = functools.partial(RepVGGBlock, attention=attention, rngs=rngs)
        self.blocks = nnx.List([block(3, 4), block(4, 6, strides=2), block(6, 6)])
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class MobileOneBlock(nnx.Module):
    """Several equal branches, one of 1×1 and a norm alone; depthwise or pointwise."""

    def __init__(self, in_features, out_features, kernel_size, groups=1, branches=2, *, rngs):
        def branch(side):
            return ConvNorm(in_features, out_features, (side, side), feature_group_count=groups, rngs=rngs)

        self.branches = nnx.List([branch(kernel_size) for _ in range(branches)])
        self.scale = branch(1) if kernel_size > 1 else None
        self.skip = nnx.BatchNorm(in_features, rngs=rngs) if in_features == out_features else None

    def __call__(self, x):
        y = sum(branch(x) for branch in self.branches)
        if self.scale is not None:
            y += self.scale(x)
        if self.skip is not None:
            y += self.skip(x)
        return nnx.relu(y)


class MobileOne(nnx.Module):
    def __init__(self, *, rngs):
        self.depthwise = MobileOneBlock(4, 4, 3, groups=4, rngs=rngs)
        self.pointwise = MobileOneBlock(4, 8, 1, rngs=rngs)

    def __call__(self, x):
        return self.pointwise(self.depthwise(x))


class ACNet(nnx.Module):
    """A square kernel beside a flat and an upright one."""

    def __init__(self, *, rngs):
        self.square = ConvNorm(4, 6, (3, 3), rngs=rngs)
        self.upright = ConvNorm(4, 6, (3, 1), rngs=rngs)
        self.flat = ConvNorm(4, 6, (1, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.square(x) + self.upright(x) + self.flat(x))


class RepLKBlock(nnx.Module):
    def __init__(self, features, *, rngs):
        depthwise = functools.partial(ConvNorm, features, features, feature_group_count=features, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.enter = ConvNorm(features, features, (1, 1), rngs=rngs)
        self.large = depthwise((31, 31))
        self.small = depthwise((5, 5))
        self.leave = ConvNorm(features, features, (1, 1), rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.enter(self.norm(x)))
        y = nnx.relu(self.large(y) + self.small(y))
        return x + self.leave(y)


class ConvFFN(nnx.Module):
    def __init__(self, features, *, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.expand = ConvNorm(features, 2 * features, (1, 1), rngs=rngs)
        self.project = ConvNorm(2 * features, features, (1, 1), rngs=rngs)

    def __call__(self, x):
        return x + self.project(nnx.gelu(self.expand(self.norm(x))))


class RepLKNet(nnx.Module):
    def __init__(self, *, rngs):
        self.block = RepLKBlock(3, rngs=rngs)
        self.ffn = ConvFFN(3, rngs=rngs)

    def __call__(self, x):
        return self.ffn(self.block(x))


class DilatedReparam(nnx.Module):
    """UniRepLKNet's: dilated kernels beside a large one."""

    def __init__(self, *, rngs):
        depthwise = functools.partial(ConvNorm, 4, 4, feature_group_count=4, rngs=rngs)
        self.large = depthwise((7, 7))
        self.dilated = nnx.List([depthwise((3, 3), kernel_dilation=rate) for rate in (1, 2, 3)])

    def __call__(self, x):
        y = self.large(x)
        for branch in self.dilated:
            y = y + branch(x)
        return nnx.relu(y)


# Nets with skips.


class Bottleneck(nnx.Module):
    def __init__(self, in_features, features, strides=1, *, rngs):
        out_features = 2 * features
        self.conv1 = nnx.Conv(in_features, features, (1, 1), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), strides, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(features, rngs=rngs)
        self.conv3 = nnx.Conv(features, out_features, (1, 1), use_bias=False, rngs=rngs)
        self.bn3 = nnx.BatchNorm(out_features, scale_init=nnx.initializers.zeros, rngs=rngs)
        if in_features != out_features or strides != 1:
            self.shortcut = nnx.Sequential(
                nnx.Conv(in_features, out_features, (1, 1), strides, use_bias=False, rngs=rngs),
                nnx.BatchNorm(out_features, rngs=rngs),
            )
        else:
            self.shortcut = lambda x: x

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        return nnx.relu(self.shortcut(x) + self.bn3(self.conv3(y)))


class ResNet(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = ConvNorm(3, 8, (7, 7), strides=2, rngs=rngs)
        self.stages = nnx.List([Bottleneck(8, 4, rngs=rngs), Bottleneck(8, 3, 2, rngs=rngs)])
        self.fc = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        for block in self.stages:
            x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))


class PreActivationBlock(nnx.Module):
    def __init__(self, features, *, rngs):
        self.norm1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv1 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)

    def __call__(self, x):
        y = self.conv1(nnx.relu(self.norm1(x)))
        return x + self.conv2(nnx.relu(self.norm2(y)))


class PreActivationResNet(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.blocks = nnx.Sequential(*(PreActivationBlock(4, rngs=rngs) for _ in range(2)))
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.blocks(self.stem(x))
        return self.head(nnx.relu(self.norm(x)).mean(axis=(1, 2)))


class DenseLayer(nnx.Module):
    def __init__(self, in_features, growth, *, rngs):
        self.norm1 = nnx.BatchNorm(in_features, rngs=rngs)
        self.conv1 = nnx.Conv(in_features, 2 * growth, (1, 1), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(2 * growth, rngs=rngs)
        self.conv2 = nnx.Conv(2 * growth, growth, (3, 3), use_bias=False, rngs=rngs)

    def __call__(self, x):
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = ConvNorm(3, 4, (3, 3), rngs=rngs)
        self.first = nnx.List([DenseLayer(4, 2, rngs=rngs), DenseLayer(6, 2, rngs=rngs)])
        self.transition_norm = nnx.BatchNorm(8, rngs=rngs)
        self.transition = nnx.Conv(8, 4, (1, 1), use_bias=False, rngs=rngs)
        self.second = DenseLayer(4, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (2, 2), (1, 1), "SAME")
        for layer in self.first:
            x = layer(x)
        x = nnx.avg_pool(self.transition(nnx.relu(self.transition_norm(x))), (2, 2), (2, 2))
        x = nnx.relu(self.norm(self.second(x)))
        return self.head(x.mean((1, 2)))


class SEResNet(nnx.Module):
    def __init__(self, *, rngs):
        self.conv1 = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv2 = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.attention = SqueezeExcite(4, 2, rngs=rngs)

    def __call__(self, x):
        y = self.conv2(nnx.relu(self.conv1(x)))
        return nnx.relu(x + self.attention(y))


class MBConv(nnx.Module):
    def __init__(self, in_features, out_features, kernel_size, strides=1, expand=2, *, rngs):
        features = expand * in_features
        self.expand = ConvNorm(in_features, features, (1, 1), rngs=rngs)
        self.depthwise = ConvNorm(
            features, features, (kernel_size, kernel_size), strides=strides, feature_group_count=features, rngs=rngs
        )
        self.attention = SqueezeExcite(features, 2, rngs=rngs)
        self.project = ConvNorm(features, out_features, (1, 1), rngs=rngs)
        self.dropout = nnx.Dropout(0.2, broadcast_dims=(1, 2, 3), rngs=rngs)
        self.has_skip = in_features == out_features and strides == 1

    def __call__(self, x):
        y = nnx.swish(self.depthwise(nnx.swish(self.expand(x))))
        y = self.project(self.attention(y))
        return x + self.dropout(y) if self.has_skip else y


class EfficientNet(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = ConvNorm(3, 4, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([MBConv(4, 4, 3, rngs=rngs), MBConv(4, 6, 5, strides=2, rngs=rngs)])
        self.top = ConvNorm(6, 8, (1, 1), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.swish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.swish(self.top(x)).mean((1, 2))
        return self.head(self.dropout(x))


class Generator(nnx.Module):
    """Transposed convolutions that overlap."""

    def __init__(self, *, rngs):
        options = dict(strides=(2, 2), use_bias=False, rngs=rngs)
        self.up1 = nnx.ConvTranspose(4, 6, (3, 3), transpose_kernel=True, **options)
        self.norm1 = nnx.BatchNorm(6, rngs=rngs)
        self.up2 = nnx.ConvTranspose(6, 4, (4, 4), padding="CIRCULAR", **options)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.norm2(self.up2(nnx.relu(self.norm1(self.up1(x))))))


class DoubleConv(nnx.Module):
    def __init__(self, in_features, out_features, *, rngs):
        self.layers = nnx.Sequential(
            nnx.Conv(in_features, out_features, (3, 3), rngs=rngs),
            nnx.BatchNorm(out_features, rngs=rngs),
            nnx.relu,
            nnx.Conv(out_features, out_features, (3, 3), rngs=rngs),
            nnx.BatchNorm(out_features, rngs=rngs),
            nnx.relu,
        )

    def __call__(self, x):
        return self.layers(x)


class UNet(nnx.Module):
    def __init__(self, *, rngs):
        self.down = nnx.List([DoubleConv(3, 4, rngs=rngs)])
        self.bottom = DoubleConv(4, 6, rngs=rngs)
        self.up = nnx.List([nnx.ConvTranspose(6, 4, (2, 2), strides=(2, 2), padding="VALID", rngs=rngs)])
        self.up_norms = nnx.List([nnx.BatchNorm(4, rngs=rngs)])
        self.merge = nnx.List([DoubleConv(8, 4, rngs=rngs)])
        self.out = nnx.Conv(4, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nnx.max_pool(x, (2, 2), (2, 2))
        x = self.bottom(x)
        for up, norm, merge, skip in zip(self.up, self.up_norms, self.merge, reversed(skips), strict=True):
            x = merge(jnp.concatenate([skip, norm(up(x))], axis=-1))
        return self.out(x)


# Layers that are shared.


class TiedAutoencoder(nnx.Module):
    """The decoder has the encoder's kernel."""

    def __init__(self, *, rngs):
        self.encode = nnx.Linear(6, 6, rngs=rngs)
        self.norm1 = nnx.BatchNorm(6, rngs=rngs)
        self.decode = nnx.Linear(6, 6, rngs=rngs)
        self.decode.kernel = self.encode.kernel
        self.norm2 = nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, 6, rngs=rngs)
        self.norm3 = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.encode(x)))
        x = nnx.relu(self.norm2(self.decode(x)))
        return self.norm3(self.last(x))


class OneNormForTwoConvs(nnx.Module):
    def __init__(self, *, rngs):
        self.conv1 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv2(nnx.relu(self.norm(self.conv1(x)))))


class OneConvForTwoNorms(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm2(self.conv(nnx.relu(self.norm1(self.conv(x)))))


class TwoNormsOfOneValue(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        return nnx.relu(self.norm1(x)) + nnx.sigmoid(self.norm2(x))


class Recurrent(nnx.Module):
    """The same pair at every step."""

    def __init__(self, *, rngs):
        self.cell = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        for _ in range(3):
            x = nnx.relu(self.cell(x))
        return x


# Norms in every place.


class OddNorms(nnx.Module):
    """Without scale, without bias, without both; norm after norm; with epsilons of their own."""

    def __init__(self, *, rngs):
        self.conv1 = nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=rngs)
        self.norm1 = nnx.BatchNorm(6, use_scale=False, epsilon=1e-2, rngs=rngs)
        self.conv2 = nnx.Conv(6, 4, (3, 3), padding="CIRCULAR", use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, use_bias=False, epsilon=1e-3, rngs=rngs)
        self.conv3 = nnx.Conv(4, 4, (3, 3), padding="REFLECT", use_bias=False, rngs=rngs)
        self.norm3 = nnx.BatchNorm(4, use_bias=False, use_scale=False, rngs=rngs)
        self.norm4 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.norm4(self.norm3(self.conv3(x)))


class MLP(nnx.Module):
    """Norms before and behind linear layers."""

    def __init__(self, *, rngs):
        self.norm_in = nnx.BatchNorm(6, rngs=rngs)
        self.linear1 = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(8, rngs=rngs)
        self.linear2 = nnx.Linear(8, 8, rngs=rngs)
        self.norm2 = nnx.BatchNorm(8, rngs=rngs)
        self.linear3 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.linear1(self.norm_in(x))))
        return self.linear3(self.norm2(nnx.tanh(self.linear2(x))))


class NormBeforeSeveral(nnx.Module):
    """One norm feeds three layers."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.query = nnx.Linear(6, 4, rngs=rngs)
        self.key = nnx.Linear(6, 4, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        x = self.norm(x)
        weights = nnx.softmax(self.query(x) @ self.key(x).swapaxes(1, 2))
        return weights @ self.value(x)


class PoolsBetween(nnx.Module):
    """Average pools between a convolution and its norm, and a norm and its linear layer."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(6, rngs=rngs)
        self.norm2 = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(nnx.avg_pool(self.conv(x), (2, 2), (2, 2))))
        return self.head(self.norm2(x).mean((1, 2)))


class MaxPoolsBetween(PoolsBetween):
    """The same with pools that are not linear."""

    def __call__(self, x):
        x = nnx.relu(self.norm1(nnx.max_pool(self.conv(x), (2, 2), (2, 2))))
        return self.head(self.norm2(x).max((1, 2)))


class Patches(nnx.Module):
    """A reshape and a transpose between, the channels last; one that mixes them."""

    def __init__(self, *, rngs):
        self.embed = nnx.Conv(3, 6, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.mix = nnx.Linear(6, 6, rngs=rngs)
        self.mixed_norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = nnx.relu(self.norm(x.reshape(len(x), -1, 6).swapaxes(0, 1)))
        x = self.mix(x)
        return self.mixed_norm(x.reshape(*x.shape[:-1], 2, 3))


class Heads(nnx.Module):
    """Linear layers over several axes."""

    def __init__(self, *, rngs):
        self.split = nnx.LinearGeneral(6, (2, 4), rngs=rngs)
        self.split_norm = nnx.BatchNorm(4, rngs=rngs)
        self.join = nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.split_norm(self.split(x)))
        return self.norm(self.join(x))


class Others(nnx.Module):
    """Norms that depend on the data, and layers whose kernel is not what they hold."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.group = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.layer = nnx.LayerNorm(4, rngs=rngs)
        self.linear = nnx.WeightNorm(nnx.Linear(4, 4, rngs=rngs), use_scale=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.group(self.conv(x))))
        return self.norm2(self.linear(self.layer(x)))


# Containers, transformations and calls.


class Containers(nnx.Module):
    def __init__(self, *, rngs):
        self.convs = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs) for _ in range(2)])
        self.norms = nnx.Dict({str(index): nnx.BatchNorm(4, rngs=rngs) for index in range(2)})
        self.pair = nnx.data((nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)))
        self.net = nnx.Sequential(
            nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu, lambda x: x.mean((1, 2))
        )

    def __call__(self, x):
        for index, conv in enumerate(self.convs):
            x = nnx.relu(self.norms[str(index)](conv(x)))
        linear, norm = self.pair
        return self.net(nnx.relu(norm(linear(x))))


class Residual(nnx.Module):
    def __init__(self, features, *, rngs):
        self.conv = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.norm(self.conv(x)))


class Scanned(nnx.Module):
    """Blocks stacked by nnx.vmap and run by nnx.scan."""

    def __init__(self, block=Residual, depth=3, *, rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return block(4, rngs=rngs)

        self.blocks = stack(rngs)
        self.last = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, block):
            return block(x)

        return self.last(forward(x, self.blocks))


class ScannedRepVGG(Scanned):
    def __init__(self, *, rngs):
        super().__init__(lambda features, rngs: RepVGGBlock(features, features, rngs=rngs), rngs=rngs)


class Ensemble(nnx.Module):
    """Members stacked by nnx.vmap and run side by side by it."""

    def __init__(self, members=3, *, rngs):
        @nnx.split_rngs(splits=members)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs):
            return ConvNorm(4, 4, (3, 3), rngs=rngs)

        self.members = stack(rngs)

    def __call__(self, x):
        @nnx.vmap(in_axes=(0, None), out_axes=0)
        def forward(member, x):
            return nnx.relu(member(x))

        return forward(self.members, x).mean(0)


class Rematerialised(nnx.Module):
    def __init__(self, *, rngs):
        self.first = Residual(4, rngs=rngs)
        self.second = Residual(4, rngs=rngs)
        self.third = ConvNorm(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = nnx.remat(lambda block, x: block(x))(self.first, x)
        x = nnx.jit(lambda block, x: block(x))(self.second, x)
        return jax.checkpoint(self.third)(x)


class Conditional(nnx.Module):
    """A pair within one branch, and a pair whose ends lie on both sides of it."""

    def __init__(self, *, rngs):
        self.inner = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        positive = x.sum() > 0
        x = nnx.cond(positive, lambda pair, x: pair(x), lambda pair, x: x, self.inner, x)
        x = self.conv(x)
        return nnx.cond(positive, lambda norm, x: norm(x), lambda norm, x: x, self.norm, x)


class TwoInputs(nnx.Module):
    """An image, a vector of measurements and a class."""

    def __init__(self, *, rngs):
        self.image = ConvNorm(3, 6, (3, 3), rngs=rngs)
        self.vector = nnx.Linear(5, 6, rngs=rngs)
        self.vector_norm = nnx.BatchNorm(6, rngs=rngs)
        self.classes = nnx.Embed(7, 6, rngs=rngs)
        self.class_norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, image, vector, label):
        image = nnx.relu(self.image(image)).mean((1, 2))
        vector = nnx.relu(self.vector_norm(self.vector(vector)))
        label = nnx.relu(self.class_norm(self.classes(label)))
        return {"scores": self.head(image * vector + label), "features": (image, vector)}


class AuxiliaryHead(nnx.Module):
    """What lies between the second convolution and its norm is used elsewhere, too."""

    def __init__(self, *, rngs):
        self.body = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.auxiliary = nnx.Linear(4, 3, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.conv(nnx.relu(self.body(x)))
        auxiliary = self.auxiliary(nnx.relu(x).mean((1, 2)))
        return self.head(nnx.relu(self.norm(x)).mean((1, 2))), auxiliary


class Sown(nnx.Module):
    def __init__(self, *, rngs):
        self.first = ConvNorm(4, 4, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        self.sow(nnx.Intermediate, "after the norm", x)
        x = self.conv(nnx.relu(x))
        self.sow(nnx.Intermediate, "before the norm", x)
        return self.norm(x)


class NormBeforePadding(nnx.Module):
    """Zeros that pad a norm's output are none before it."""

    def __init__(self, *, rngs):
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.padded = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, rngs=rngs)
        self.valid = nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.padded(self.norm1(x)))
        return self.valid(self.norm2(x))


class LowPrecision(nnx.Module):
    """Computed in a dtype of 16 bits, as on accelerators, the parameters in it or in float32."""

    def __init__(self, dtype, param_dtype=jnp.float32, *, rngs):
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv = nnx.Conv(4, 6, (3, 3), use_bias=False, **options)
        self.norm = nnx.BatchNorm(6, **options)
        self.side = nnx.Conv(4, 6, (1, 1), use_bias=False, **options)
        self.side_norm = nnx.BatchNorm(6, **options)
        self.head = nnx.Linear(6, 5, **options)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)) + self.side_norm(self.side(x)))
        return self.head(x.mean((1, 2)))


class WithOurs(nnx.Module):
    """This library's blocks and norms between layers of Flax."""

    def __init__(self, dtype=jnp.float64, *, rngs):
        self.stem = ConvNorm(3, 4, (3, 3), rngs=rngs)
        options = dict(image_size=(8, 8), partition_size=(4, 4), conv_kernels=(1, 3), param_dtype=dtype)
        self.block = RepMLP(4, 4, **options, rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = OurBatchNorm(4, param_dtype=dtype)
        self.side = nnx.Conv(4, 4, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.block(nnx.relu(self.stem(x))))
        return self.norm(self.conv(x)) + self.side(x)


class NormsInARow(nnx.Module):
    """Norms before a norm, with nothing that would take them."""

    def __init__(self, *, rngs):
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, use_scale=False, epsilon=1e-2, rngs=rngs)
        self.norm3 = OurBatchNorm(4)
        self.norm4 = nnx.BatchNorm(4, use_scale=False, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm4(self.norm3(self.norm2(self.norm1(nnx.relu(x))))))
