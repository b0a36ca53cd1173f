import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repmlp_jax.fusing.finite import check_finite


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_each_array_is_named_and_its_values_counted(dtype, kind):
    broken = np.zeros((2, 3))
    broken[0] = [np.nan, np.inf, -np.inf]
    arrays = {"fc1.kernel": np.ones(4), "fc3.kernel": kind(broken.astype(dtype)), "count": np.ones(3, np.int32)}
    with pytest.raises(ValueError, match=r"^weights.pth holds values that are NaN or infinite: fc3.kernel \(3 of 6\)$"):
        check_finite(arrays, "weights.pth")


def test_five_are_named():
    arrays = {f"norm{index}.var": np.full(2, np.nan) for index in range(7)}
    with pytest.raises(ValueError, match=r"norm0.var \(2 of 2\), .*norm4.var \(2 of 2\) and 2 more$"):
        check_finite(arrays, "it")


def test_finite_values_whose_sum_is_not_finite_hold():
    check_finite({"large": np.full(4, np.finfo(np.float32).max, np.float32)}, "it")


def test_what_has_no_values_is_skipped():
    keys = jax.random.key(0)
    jax.jit(lambda x: check_finite({"traced": x, "key": keys, "abstract": jax.ShapeDtypeStruct((2,), x.dtype)}, "it"))(
        np.nan
    )


def test_arrays_spread_over_devices():
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    check_finite({"x": jax.device_put(np.ones(16), spread)}, "it")
    with pytest.raises(ValueError, match="x \\(1 of 16\\)"):
        check_finite({"x": jax.device_put(np.r_[np.ones(15), np.nan], spread)}, "it")
