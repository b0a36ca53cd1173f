import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close

from repmlp_jax.data.mixing import cutmix_weights, mix, mixup_weights

# A weight and its complement are rounded, two products and their sum: a few times 2^-24.
BLENDED_F32 = 4 * 2.0**-24
SIZE, CLASSES = 6, 5


@pytest.fixture(scope="module")
def batch():
    """Images, each of one brightness, its number from 1 on, and one-hot targets; no two neighbours of one class."""
    images = jnp.broadcast_to(jnp.arange(1, SIZE + 1, dtype=jnp.float32)[:, None, None, None], (SIZE, 12, 8, 3))
    return images, jax.nn.one_hot(np.arange(SIZE) % CLASSES, CLASSES, dtype=jnp.float32)


def mix_many(batch, count=200, **alphas):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.jit(jax.vmap(lambda key: mix(key, *batch, **alphas)))(keys)


def test_without_an_alpha_nothing_changes(batch):
    images, targets = mix(jax.random.key(0), *batch)
    assert images is batch[0]
    assert targets is batch[1]


@pytest.mark.slow
@pytest.mark.parametrize("alphas", [dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0)])
def test_blended_targets_are_distributions_and_weigh_what_the_images_show(alphas, batch):
    images, targets = mix_many(batch, **alphas)
    assert images.dtype == targets.dtype == jnp.float32
    assert_close(targets.sum(-1), np.ones(targets.shape[:2]), BLENDED_F32)
    assert targets.min() >= 0
    # An image is a blend of two brightnesses, so that its mean says how much of each it shows.
    own, partner = (np.asarray(array[:, 0, 0, 0]) for array in (batch[0], jnp.roll(batch[0], 1, axis=0)))
    shown = (np.asarray(images, np.float64).mean((2, 3, 4)) - partner) / (own - partner)
    weighed = np.take_along_axis(np.asarray(targets), np.argmax(batch[1], 1)[None, :, None], 2)[..., 0]
    # The last image and the one before the first are not neighbours in brightness: all others differ by 1.
    assert_close(weighed[:, 1:], shown[:, 1:], 20 * BLENDED_F32)


def test_smoothed_targets_stay_distributions(batch):
    smoothed = 0.9 * batch[1] + 0.1 / CLASSES
    _, targets = mix_many((batch[0], smoothed), mixup=0.4, cutmix=1.0)
    assert_close(targets.sum(-1), np.ones(targets.shape[:2]), 2 * BLENDED_F32)
    assert targets.min() >= 0.02 - 1e-7


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.sampled_from([(1, 1), (7, 5), (32, 32)]))
def test_cutmix_cuts_one_box_whose_area_is_the_weight_exactly(seed, alpha, shape):
    weights = np.asarray(cutmix_weights(jax.random.key(seed), alpha, shape))
    assert weights.dtype == np.float32
    assert set(np.unique(weights)) <= {0.0, 1.0}
    rows, columns = ((weights == 0).any(axis) for axis in (1, 0))
    assert (np.outer(rows, columns) == (weights == 0)).all()
    for inside in (rows, columns):
        assert np.count_nonzero(np.diff(inside.astype(int))) <= 2
        assert np.count_nonzero(np.diff(np.flatnonzero(inside)) != 1) == 0
    images = jnp.stack([jnp.zeros((*shape, 1), jnp.float32), jnp.ones((*shape, 1), jnp.float32)])
    mixed, targets = mix(jax.random.key(seed), images, jnp.eye(2, dtype=jnp.float32), cutmix=alpha)
    assert set(np.unique(mixed)) <= {0.0, 1.0}
    assert float(targets[0, 1]) == np.float32(1) - np.float32(1 - np.count_nonzero(mixed[0]) / mixed[0].size)


@pytest.mark.slow
def test_boxes_cover_on_average_a_half_less_what_reaches_over_the_border():
    keys = jax.random.split(jax.random.key(0), 2000)
    weights = jax.vmap(lambda key: cutmix_weights(key, 1.0, (32, 32)))(keys)
    covered = 1 - np.asarray(weights, np.float64).mean((1, 2))
    # A side s covers s - s²/4 of a side on average, whose square has, for s² uniform, the mean 1/2 - 1/5 + 1/48.
    assert abs(covered.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 4 * covered.std() / np.sqrt(2000) + 0.02  # whole pixels
    # Every pixel is covered at times, the middle the most.
    share = 1 - np.asarray(weights, np.float64).mean(0)
    assert share.min() > 0.05
    assert share[16, 16] > share[0, 0]


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_mixup_weights_have_the_mean_and_variance_of_their_distribution(alpha):
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = np.asarray(jax.vmap(lambda key: mixup_weights(key, alpha, (2, 3)))(keys), np.float64)
    assert (weights == weights[:, :1, :1]).all()
    drawn = weights[:, 0, 0]
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.mean() - 0.5) < 4 * np.sqrt(variance / 4000)
    assert abs(drawn.var() / variance - 1) < 0.1  # its own deviation is below 2 %


@pytest.mark.slow
def test_each_batch_draws_one_of_both(batch):
    images, _ = mix_many(batch, count=400, mixup=1.0, cutmix=1.0)
    # A mixed-up image is of one brightness, which is none of the batch's; a cut one has only the batch's.
    cut = np.isin(np.asarray(images), np.asarray(batch[0])).all((1, 2, 3, 4))
    flat = np.ptp(np.asarray(images), axis=(2, 3, 4)).max(1) == 0
    assert (cut | flat).all()
    assert 160 < np.count_nonzero(~cut) < 240  # four standard deviations from 200


@pytest.mark.usefixtures("unchecked_types")
def test_dtypes_are_kept_and_whole_numbers_refused(batch):
    both = functools.partial(mix, mixup=0.4, cutmix=1.0)
    images, targets = jax.eval_shape(both, jax.random.key(0), batch[0].astype(jnp.bfloat16), batch[1])
    assert (images.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)
    with pytest.raises(ValueError, match="images are uint8, which cannot be blended"):
        mix(jax.random.key(0), batch[0].astype(jnp.uint8), batch[1], mixup=0.4)
    with pytest.raises(ValueError, match="targets are int32, which cannot be blended"):
        mix(jax.random.key(0), batch[0], batch[1].astype(jnp.int32), cutmix=0.4)
    with pytest.raises(ValueError, match="mixup=-1 must be a finite number that is not below 0"):
        mix(jax.random.key(0), *batch, mixup=-1)


@pytest.mark.usefixtures("unchecked_types")
def test_targets_that_are_not_one_row_for_each_image_are_refused(batch):
    images, targets = batch
    for wrong in ((images, targets[:3]), (images, targets.argmax(1).astype(jnp.float32)), (images[0], targets)):
        with pytest.raises(ValueError, match=r"images must be \(N, H, W, C\) and targets \(N, classes\), not "):
            mix(jax.random.key(0), *wrong, mixup=0.2)
    for alpha in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match=f"cutmix={alpha} must be a finite number"):
            mix(jax.random.key(0), images, targets, cutmix=alpha)
