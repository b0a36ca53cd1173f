import cv2
import numpy as np
import pytest

from repmlp_jax.data.preprocessing import read_image, resize_and_crop


def test_pictures_are_read_in_rgb_or_in_grey(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes blue, green, red
    cv2.imwrite(str(tmp_path / "red.png"), red)
    assert (read_image(tmp_path / "red.png", 3) == [200, 0, 0]).all()
    assert read_image(tmp_path / "red.png", 1).shape == (4, 5, 1)
    with pytest.raises(ValueError, match="a picture has 1 or 3 channels, the model takes 4"):
        read_image(tmp_path / "red.png", 4)


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
