import math
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from repmlp_jax.data.decoding import decode, draw_box, random_flip, random_resized_crop, read_image
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


@pytest.fixture(scope="module")
def turned(photograph):
    """A JPEG that says that the camera was turned by a quarter."""
    jpeg = encoded(photograph)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_cameras_orientation_is_applied_on_request_alone(turned, photograph, channels):
    as_stored = decode(encoded(photograph), channels)
    assert as_stored.shape == (120, 160, channels)
    np.testing.assert_array_equal(decode(turned, channels), as_stored)
    np.testing.assert_array_equal(decode(turned, channels, apply_orientation=True), np.rot90(as_stored, -1))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"no picture", lambda data: data[: len(data) // 2]])
def test_what_is_no_whole_picture_is_a_bad_example(damage, photograph):
    with pytest.raises(BadExample, match="bytes"):
        decode(damage(encoded(photograph)))


def png_that_says(width, height):
    """A PNG of a few bytes whose header gives any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(40_000, 30_000), (14_000, 14_000)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(size, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(BadExample, match=r"too large: .*\(\d+ pixels\) exceeds limit of 178956970 pixels"):
        decode(png_that_says(*size))


def test_files_are_read_in_rgb_or_in_grey_and_upright(turned, photograph, tmp_path):
    (tmp_path / "picture.png").write_bytes(encoded(photograph, ".png"))
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png", 3), photograph)
    assert read_image(tmp_path / "picture.png", 1).shape == (120, 160, 1)
    (tmp_path / "turned.jpg").write_bytes(turned)
    assert read_image(tmp_path / "turned.jpg", 3).shape == (160, 120, 3)
    with pytest.raises(ValueError, match="a picture has 1 or 3 channels, not 4"):
        read_image(tmp_path / "picture.png", 4)


def test_a_file_may_have_any_name_that_the_system_allows(photograph, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))  # Latin-1
    path.write_bytes(encoded(photograph, ".png"))
    np.testing.assert_array_equal(read_image(str(path), 3), photograph)


def test_files_that_are_no_whole_picture_are_named(photograph, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*no\.png"):
        read_image(tmp_path / "no.png", 3)
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(ValueError, match=f"{path.name} is not a picture: it is a folder, a pipe or a device"):
            read_image(path, 3)
    for content in (b"", b"no picture", encoded(photograph)[:2000], encoded(photograph, ".png")[:2000]):
        (tmp_path / "half.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"half.jpg is not a readable picture: \d+ bytes"):
            read_image(tmp_path / "half.jpg", 3)


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
