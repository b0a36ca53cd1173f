import math

import cv2
import numpy as np
import pytest

from repmlp_jax.data.decoding import decode, draw_box, random_flip, random_resized_crop
from repmlp_jax.data.stream import BadExample


def encoded(image, extension=".jpg"):
    """The picture, whose last axis is red, green, blue, as a file."""
    return cv2.imencode(extension, image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def photograph():
    """Smooth colours, which JPEG keeps well."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)


def test_pictures_are_decoded_to_red_green_blue(photograph):
    np.testing.assert_array_equal(decode(encoded(photograph, ".png")), photograph)
    difference = decode(encoded(photograph)).astype(int) - photograph
    assert np.abs(difference).mean() < 2  # what JPEG loses; another order of the channels would be dozens


def test_grey_pictures_and_transparent_ones_become_three_channels(photograph):
    grey = decode(encoded(photograph[..., :1], ".png"))
    np.testing.assert_array_equal(grey, np.repeat(photograph[..., :1], 3, axis=2))
    transparent = cv2.imencode(".png", np.dstack([photograph[..., ::-1], photograph[..., 0]]))[1].tobytes()
    assert decode(transparent).shape == photograph.shape


def test_the_cameras_orientation_is_left_aside(photograph):
    jpeg = encoded(photograph)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (160, 120, 3)
    np.testing.assert_array_equal(decode(turned), decode(jpeg))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"no picture", lambda data: data[: len(data) // 2]])
def test_what_is_no_whole_picture_is_a_bad_example(damage, photograph):
    with pytest.raises(BadExample, match="bytes"):
        decode(damage(encoded(photograph)))


def test_boxes_have_the_areas_and_ratios_they_should():
    random = np.random.default_rng(0)
    boxes = np.array([draw_box(375, 500, random) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    # Rounding to whole pixels moves the smallest box of 106 × 141 by less than 1 %.
    ratios, areas = width / height, width * height / (375 * 500)
    assert 3 / 4 * 0.99 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 4 / 3 * 1.01
    assert 0.08 * 0.99 < areas.min() < 0.09
    # Every place within reach is as likely: the share of the free space that lies above the box.
    free = height < 375
    share = top[free] / (375 - height[free])
    assert abs(share.mean() - 0.5) < 0.03
    assert np.quantile(share, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.03)


def test_areas_and_logarithms_of_ratios_are_uniform_where_every_box_fits():
    random = np.random.default_rng(0)
    boxes = np.array([draw_box(2000, 2000, random, scale=(0.1, 0.5)) for _ in range(4000)])
    areas = (boxes[:, 2] * boxes[:, 3] / 2000**2 - 0.1) / 0.4
    logarithms = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(4 / 3) / 2 + 0.5
    for values in (areas, logarithms):
        assert np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.03)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((10, 1000), (0, 493, 10, 13)),  # no box of 8 % of the area with a ratio of at most 4/3 fits
        ((1000, 10), (493, 0, 13, 10)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_where_none_fits_the_box_is_in_the_middle(shape, box):
    random = np.random.default_rng(0)
    assert draw_box(*shape, random) == box


@pytest.mark.parametrize("shape", [(120, 160), (30, 40), (1, 1), (3, 400), (400, 3)])
def test_every_picture_is_cropped_to_the_size(shape, photograph):
    random = np.random.default_rng(0)
    image = cv2.resize(photograph, shape[::-1])
    for _ in range(20):
        cropped = random_resized_crop(image, (48, 64), random)
        assert cropped.shape == (48, 64, 3)
        assert cropped.dtype == np.uint8


def test_a_crop_shows_the_box_that_was_drawn():
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 0], image[..., 1] = np.indices((400, 400)) * 255 // 400  # each pixel's place, as a colour
    for seed in range(20):
        cropped = random_resized_crop(image, (32, 32), np.random.default_rng(seed)).astype(float)
        top, left, height, width = draw_box(400, 400, np.random.default_rng(seed))
        middle = cropped[..., :2].mean((0, 1)) * 400 / 255
        assert middle == pytest.approx([top + height / 2, left + width / 2], abs=2)


def test_about_half_are_mirrored(photograph):
    random = np.random.default_rng(0)
    flipped = [random_flip(photograph, random) for _ in range(400)]
    mirrored = sum((image == photograph[:, ::-1]).all() for image in flipped)
    assert 160 < mirrored < 240  # four standard deviations from 200
    assert all((image == photograph).all() or (image == photograph[:, ::-1]).all() for image in flipped)
