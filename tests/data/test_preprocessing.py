import cv2
import numpy as np
import pytest

from repmlp_jax.data.preprocessing import CENTRE, resize_and_crop


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (256, 256), (225, 225), (224, 224), (100, 60), (40, 400)])
def test_every_picture_gets_the_size_and_keeps_its_centre(size):
    image = np.zeros((*size, 3), np.uint8)
    # Brightness grows from left to right: its middle stays in the middle.
    image[:] = np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None]
    cropped = resize_and_crop(image, 224, 224)
    assert cropped.shape == (224, 224, 3)
    assert cropped.dtype == np.uint8
    assert abs(int(cropped[112, 111, 0]) - 127) <= 4
    assert (np.diff(cropped[0, :, 0].astype(int)) >= 0).all()


def test_a_picture_of_the_models_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    assert (resize_and_crop(image, 8, 8) == image).all()


def test_a_crop_keeps_seven_eighths_of_the_shorter_side():
    image = np.zeros((256, 256, 1), np.uint8)
    image[16:-16, 16:-16] = 255
    assert (resize_and_crop(image, 224, 224) == 255).all()


@pytest.mark.parametrize("size", [(300, 500), (40, 400), (500, 300), (3, 35), (12, 7), (400, 32)])
def test_a_crop_is_the_middle_of_the_whole_resized(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    scale = max(32 / size[0], 28 / size[1]) / (1 if size[0] <= 32 and size[1] <= 28 else CENTRE)
    height, width = (max(round(side * scale), least) for side, least in zip(size, (32, 28), strict=True))
    whole = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - 32) // 2, (width - 28) // 2
    np.testing.assert_array_equal(resize_and_crop(image, 32, 28), whole[top : top + 32, left : left + 28])


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (3, 60_000), (1, 224)])
def test_of_a_thin_picture_only_the_middle_is_resized(size, monkeypatch):
    image = np.zeros((*size, 1), np.uint8)
    middle = max(size) // 3
    (image[middle:-middle] if size[0] > size[1] else image[:, middle:-middle])[:] = 255
    resized = []
    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda *of, **by: resized.append(resize(*of, **by)) or resized[-1])
    assert (resize_and_crop(image, 224, 224) == 255).all()
    assert resized[0].size <= 16 * 256 * 256
