import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import apply, build, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F32, assert_close

from repmlp_jax import RepMLP, RepMLPNet, astype, create_model, fuse_params, load_model, quantise_params, save_model

SMALL = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
NET = dict(stage_sizes=(1,), widths=(4,), num_classes=3, partition_sizes=((2, 2),), sharesets=(2,))


def pure_mlp(**dtypes):
    return randomised(create_model("pure_mlp", **SMALL, **dtypes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("make", [pure_mlp, lambda **dtypes: randomised(RepMLPNet(**NET, **dtypes, rngs=nnx.Rngs(0)))])
def test_parameters_that_are_cast_once_give_the_same_bits(make):
    casts_always = fuse_params(make(dtype=jnp.bfloat16))
    casts_once = astype(fuse_params(make()), jnp.bfloat16)
    assert {array.dtype for array in jax.tree.leaves(nnx.state(casts_once, nnx.Param))} == {jnp.dtype(jnp.bfloat16)}
    x = random_input(casts_once, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(casts_once(x), casts_always(x))


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_saved_and_comes_back(tmp_path, fused):
    model = pure_mlp()
    model.eval()
    cast = astype(fuse_params(model) if fused else model, jnp.bfloat16)
    save_model(tmp_path / "model", cast)
    loaded = load_model(tmp_path / "model")
    x = random_input(cast, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(apply(loaded, x), apply(cast, x))


def test_the_given_model_stays_and_statistics_stay_wide():
    model = pure_mlp()
    cast = astype(model, jnp.float16)
    assert model.embedding.conv.kernel.dtype == model.embedding.norm.mean.dtype == jnp.float32
    assert cast.embedding.conv.kernel.dtype == jnp.float16
    assert cast.embedding.norm.mean.dtype == jnp.float32


def test_a_narrower_model_computes_nearly_the_same():
    model = build(RepMLP, in_features=4, out_features=4, image_size=(6, 6), partition_size=(3, 3))
    model.eval()
    x = random_input(model)
    assert_close(apply(astype(model, jnp.float32), x.astype(jnp.float32)), apply(model, x), ROUNDING_F32)


def test_what_cannot_be_cast_is_refused(unchecked_types):
    fused = fuse_params(pure_mlp())
    with pytest.raises(TypeError, match="dtype=int8 is not a floating-point dtype"):
        astype(fused, jnp.int8)
    with pytest.raises(TypeError, match=r"must be an nnx\.Module"):
        astype(nnx.state(fused), jnp.bfloat16)
    with pytest.raises(TypeError, match="abstract"):
        astype(nnx.eval_shape(lambda: fused), jnp.bfloat16)
    with pytest.raises(ValueError, match="is quantised"):
        astype(quantise_params(fused), jnp.bfloat16)
    fused.head.bias[...] = fused.head.bias[...].at[0].set(1e6)
    with pytest.raises(ValueError, match=r"in float16 this PureMLP holds values that are NaN or infinite: head\.bias"):
        astype(fused, jnp.float16)
