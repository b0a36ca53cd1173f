import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repmlp_jax.data.augment import crop_and_flip, flip, normalise, pad_and_crop


@pytest.fixture(scope="module")
def images():
    """Every pixel of an image is another number above 0, so that a window is known by any of its pixels."""
    random = np.random.default_rng(0)
    pixels = [random.permutation(np.arange(1, 61, dtype=np.uint8)).reshape(5, 4, 3) for _ in range(400)]
    return jnp.asarray(np.stack(pixels))


def test_every_crop_is_a_window_of_the_padded_image(images):
    cropped = pad_and_crop(jax.random.key(0), images, 2)
    assert cropped.dtype == jnp.uint8
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    windows = {
        (row, column): (padded[:, row : row + 5, column : column + 4] == cropped).all((1, 2, 3))
        for row in range(5)
        for column in range(5)
    }
    assert (sum(window.astype(int) for window in windows.values()) == 1).all()
    # All 25 places, each about 16 times of 400; under 3 would be a chance in 10,000 for each.
    assert min(window.sum() for window in windows.values()) >= 3


def test_without_padding_a_crop_is_the_image(images):
    assert (pad_and_crop(jax.random.key(0), images, 0) == images).all()


def test_about_half_are_mirrored_exactly(images):
    flipped = flip(jax.random.key(0), images)
    assert flipped.dtype == jnp.uint8
    same, mirrored = ((flipped == other).all((1, 2, 3)) for other in (images, images[:, :, ::-1]))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations from 200


def test_another_key_draws_another_augmentation(images):
    for augment in (flip, lambda key, images: pad_and_crop(key, images, 2)):
        one, again, other = (augment(jax.random.key(seed), images) for seed in (0, 0, 1))
        assert (one == again).all()
        assert (one != other).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_normalise(images, dtype):
    normalised = normalise(images, (0.5, 0.25, 0.0), (0.5, 0.2, 1.0), dtype)
    assert normalised.dtype == dtype
    expected = (np.asarray(images, np.float64) / 255 - [0.5, 0.25, 0.0]) / [0.5, 0.2, 1.0]
    assert np.abs(np.asarray(normalised) - expected).max() <= 4 * jnp.finfo(dtype).eps


def test_normalised_images_are_float32_by_default(images):
    assert normalise(images, (0.5,) * 3, (0.5,) * 3).dtype == jnp.float32


def test_normalise_undoes_mean_and_deviation(images):
    scaled = np.asarray(images, np.float64) / 255
    mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    normalised = np.asarray(normalise(images, mean.tolist(), std.tolist(), jnp.float64))
    assert np.abs(normalised.mean((0, 1, 2))).max() < 1e-12
    assert np.abs(normalised.std((0, 1, 2)) - 1).max() < 1e-12


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((2, 4, 4, 3), np.float32), r"uint8 \(N, H, W, C\), not float32 \(2, 4, 4, 3\); multiply by 255"),
        (np.ones((4, 4, 3), np.uint8), r"uint8 \(N, H, W, C\), not uint8 \(4, 4, 3\)"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, message):
    key = jax.random.key(0)
    for augment in (
        lambda: flip(key, images),
        lambda: pad_and_crop(key, images, 1),
        lambda: normalise(images, [0.5] * 3, [0.5] * 3),
    ):
        with pytest.raises(ValueError, match=message):
            augment()


@pytest.mark.usefixtures("unchecked_types")
def test_numbers_that_do_not_fit_the_images_are_refused(images):
    with pytest.raises(ValueError, match="mean has 1 values, and the images have 3 channels"):
        normalise(images, [0.5], [0.5] * 3)
    with pytest.raises(ValueError, match="a channel without deviation"):
        normalise(images, [0.5] * 3, [0.5, 0.0, 0.5])
    with pytest.raises(ValueError, match="padding=-1 must not be below 0"):
        crop_and_flip(jax.random.key(0), images, padding=-1, flipped=False)
