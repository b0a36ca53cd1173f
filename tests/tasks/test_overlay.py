import io

import cv2
import numpy as np
import pytest

from repmlp_jax.tasks.segmentation.overlay import comparison, overlay

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
NAMES = ("sky", "sign_symbol", "car")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def test_a_pixel_is_tinted_in_the_colour_of_its_class(image):
    classes = np.arange(48, dtype=np.int32).reshape(6, 8) % 3
    tinted = overlay(image, classes, PALETTE, 0.25)
    assert tinted.dtype == np.uint8
    expected = 0.75 * image + 0.25 * np.asarray(PALETTE, np.float64)[classes]
    assert np.abs(tinted - expected).max() <= 0.5 + 1e-4  # rounded to whole numbers, in float32
    np.testing.assert_array_equal(overlay(image, classes, PALETTE, 1), np.asarray(PALETTE)[classes])
    np.testing.assert_array_equal(overlay(image, classes, PALETTE, 0), image)


def test_what_does_not_count_stays_as_it_is(image):
    classes = np.full((6, 8), 255, np.uint8)
    classes[0, 0] = 2
    changed = (overlay(image, classes, PALETTE, 1) != image).any(-1)
    assert changed[0, 0]
    assert changed.sum() == 1


@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_go_together_is_refused(image):
    with pytest.raises(ValueError, match=r"shape \(6, 8, 3\), the classes \(6, 7\)"):
        overlay(image, np.zeros((6, 7), np.uint8), PALETTE)
    with pytest.raises(ValueError, match=r"classes \[3, 9\] have no colour: the palette has 3"):
        overlay(image, np.asarray([3, 9, 255, 0] * 12).reshape(6, 8), PALETTE)
    with pytest.raises(ValueError, match=r"opacity=1.5"):
        overlay(image, np.zeros((6, 8), np.uint8), PALETTE, 1.5)


def test_the_comparison_names_the_classes_that_are_there(image):
    truth, prediction = np.zeros((6, 8), np.uint8), np.ones((6, 8), np.int32)
    truth[0] = 255
    figure = comparison(image, truth, prediction, PALETTE, NAMES)
    assert [axes.get_title() for axes in figure.axes] == ["picture", "truth", "prediction"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "sign symbol", "does not count"]
    [first, second, _] = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert (first, second) == ((1, 0, 0), (0, 1, 0))
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(shown[0], image)
    np.testing.assert_array_equal(shown[1], overlay(image, truth, PALETTE))
    np.testing.assert_array_equal(shown[2], overlay(image, prediction, PALETTE))


def test_the_comparison_is_a_png(image):
    content = io.BytesIO()
    classes = np.zeros((6, 8), np.uint8)
    comparison(image, classes, classes, PALETTE, NAMES).savefig(content, format="png")
    picture = cv2.imdecode(np.frombuffer(content.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 1800
