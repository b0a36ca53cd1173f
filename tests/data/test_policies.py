"""What each distortion does to a picture, and how the policies draw them."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from repmlp_jax.data import distortions, policies
from repmlp_jax.data.policies import AUTO_AUGMENT, IMAGENET_POLICY, POLICIES, RAND_AUGMENT, auto_augment, rand_augment

MORE_OR_LESS, FROM_LESS = distortions.more_or_less, distortions.from_less_to_more


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def image():
    """100 × 100 pixels that all values occur in, in all channels."""
    return np.random.default_rng(1).integers(0, 256, (100, 100, 3), np.uint8)


def distorted(distortion, image, strength, random):
    return np.asarray(distortion(Image.fromarray(image), strength, random))


def outcomes(distortion, image, strength):
    """What comes out with either side: the distinct results of many draws, and how often each."""
    random = np.random.default_rng(0)
    results = [distorted(distortion, image, strength, random) for _ in range(100)]
    counts = Counter(result.tobytes() for result in results)
    return {key: np.frombuffer(key, np.uint8).reshape(image.shape) for key in counts}.values(), counts.values()


def assert_either(found, *expected):
    assert {result.tobytes() for result in found} == {np.ascontiguousarray(result).tobytes() for result in expected}


@pytest.mark.parametrize(
    ("distortion", "strength"),
    [
        (distortions.shear_x, 0),
        (distortions.shear_y, 0),
        (distortions.translate_x, 0),
        (distortions.translate_y, 0),
        (distortions.rotate, 0),
        (distortions.posterize_more, 0),
        (distortions.posterize_less, 2),
        (distortions.solarize_more, 0),
        (distortions.solarize_less, 1),
        (distortions.solarize_less, 1.4),
        (distortions.solarize_add, 0),
        *((kind(MORE_OR_LESS), 0) for kind in (distortions.color, distortions.contrast, distortions.brightness)),
        *((kind(FROM_LESS), 0.5) for kind in (distortions.color, distortions.brightness, distortions.sharpness)),
    ],
)
def test_every_distortion_has_a_strength_that_changes_nothing(distortion, strength, image, random):
    np.testing.assert_array_equal(distorted(distortion, image, strength, random), image)


@pytest.mark.parametrize(("axis", "distortion"), [(1, distortions.translate_x), (0, distortions.translate_y)])
def test_translation_moves_by_up_to_045_of_a_side_to_either_side(axis, distortion, image):
    found, counts = outcomes(distortion, image, 1)
    grey = np.full((100, 45, 3), 128, np.uint8)
    left = np.concatenate([np.swapaxes(image, 1, axis)[:, 45:], grey], 1)
    right = np.concatenate([grey, np.swapaxes(image, 1, axis)[:, :-45]], 1)
    assert_either(found, np.swapaxes(left, 1, axis), np.swapaxes(right, 1, axis))
    assert min(counts) > 25


@pytest.mark.parametrize(("axis", "distortion"), [(1, distortions.shear_x), (0, distortions.shear_y)])
def test_shearing_moves_each_line_by_its_distance(axis, distortion):
    rows = np.zeros((100, 100, 3), np.uint8)
    rows[:, 50] = 255  # one line, which leans afterwards
    found, _ = outcomes(distortion, np.ascontiguousarray(np.swapaxes(rows, 1, axis)), 1)
    slopes = []
    for result in found:
        brightness = np.swapaxes(result, 1, axis)[:, 20:80, 0].astype(np.float64)
        brightness[brightness == 128] = 0
        middles = (brightness * np.arange(20, 80)).sum(1) / brightness.sum(1)
        slopes.append(np.polyfit(np.arange(100), middles, 1)[0])
    assert sorted(slopes) == pytest.approx([-0.3, 0.3], abs=0.02)


def test_rotation_turns_by_30_degrees_a_strength_to_either_side(image):
    found, counts = outcomes(distortions.rotate, image, 3)
    assert_either(found, np.rot90(image), np.rot90(image, -1))
    assert min(counts) > 25


def test_values_are_changed_as_said(image, random):
    def of(distortion, strength):
        return distorted(distortion, image, strength, random)

    np.testing.assert_array_equal(of(distortions.invert, 0.3), 255 - image)
    np.testing.assert_array_equal(of(distortions.posterize_more, 1), image & 0b11110000)
    np.testing.assert_array_equal(of(distortions.posterize_less, 1), image & 0b11110000)
    np.testing.assert_array_equal(of(distortions.posterize_less, 0), image & 0b10000000)
    np.testing.assert_array_equal(of(distortions.solarize_more, 1), 255 - image)
    np.testing.assert_array_equal(of(distortions.solarize_less, 0), 255 - image)
    np.testing.assert_array_equal(of(distortions.solarize_less, 0.5), np.where(image < 128, image, 255 - image))
    np.testing.assert_array_equal(of(distortions.solarize_add, 1), np.where(image < 128, image + 110, image))
    # At strength 1.4 the sums are over 255.
    lightened = np.minimum(image.astype(int) + 154, 255)
    np.testing.assert_array_equal(of(distortions.solarize_add, 1.4), np.where(image < 128, lightened, image))


def test_contrast_is_stretched_and_histograms_are_flattened(image, random):
    narrow = image // 4 + 60
    stretched = distorted(distortions.auto_contrast, narrow, 0, random)
    assert (stretched.min((0, 1)).tolist(), stretched.max((0, 1)).tolist()) == ([0] * 3, [255] * 3)
    dark = (image.astype(float) ** 2 / 255).astype(np.uint8)
    flat = distorted(distortions.equalize, dark, 0, random)
    counts = np.histogram(flat[..., 0], bins=8, range=(0, 256))[0]
    assert counts.max() < 1.25 * counts.min()


def test_factors_go_to_either_side_or_upwards(random):
    assert {round(MORE_OR_LESS(1, random), 9) for _ in range(50)} == {0.1, 1.9}
    assert [FROM_LESS(strength, random) for strength in (0, 1)] == pytest.approx([0.1, 1.9])


def test_enhancements_move_away_from_what_they_are_named_after(image, random):
    wide = image.astype(np.float64)
    brighter = distorted(distortions.brightness(FROM_LESS), image, 0, random)
    assert abs(brighter - wide * 0.1).max() <= 1  # rounded down
    grey = wide @ [0.299, 0.587, 0.114]
    greyer = distorted(distortions.color(FROM_LESS), image, 0, random)
    assert abs(greyer - (0.9 * grey[..., None] + 0.1 * wide)).max() <= 2  # grey is rounded, then the sum
    flatter = distorted(distortions.contrast(FROM_LESS), image, 0, random)
    assert abs(flatter - (0.9 * grey.mean() + 0.1 * wide)).max() <= 2
    blurred = distorted(distortions.sharpness(FROM_LESS), image, 0, random)
    shifted = [np.roll(wide, (row, column), (0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    smooth = (sum(shifted) + 4 * wide) / 13
    assert abs(blurred - (0.9 * smooth + 0.1 * wide))[1:-1, 1:-1].max() <= 2


def test_cutout_greys_a_square_anywhere(image):
    random = np.random.default_rng(0)
    covered = np.zeros((100, 100), int)
    for _ in range(200):
        result = distorted(distortions.cutout, np.zeros_like(image), 1, random)
        assert set(np.unique(result)) <= {0, 128}
        hidden = (result == 128).all(2)
        rows, columns = hidden.any(1), hidden.any(0)
        assert (np.outer(rows, columns) == hidden).all()
        assert 20 <= rows.sum() <= 40
        covered += hidden
    assert covered.min() > 0
    assert np.count_nonzero(distorted(distortions.cutout, np.zeros_like(image), 0, random)) <= 2 * 2 * 3


def test_the_policies_hold_what_the_papers_list():
    assert len(IMAGENET_POLICY) == 25
    assert all(len(pair) == 2 for pair in IMAGENET_POLICY)
    steps = [step for pair in IMAGENET_POLICY for step in pair]
    assert {name for name, _, _ in steps} == set(AUTO_AUGMENT)
    assert all(0 <= probability <= 1 and 0 <= magnitude <= 9 for _, probability, magnitude in steps)
    assert len(RAND_AUGMENT) == 16


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_draws_from_its_generator_alone_and_leaves_its_input_alone(name, image):
    before = image.copy()
    one, again = ([POLICIES[name](image, random) for _ in range(40)] for random in map(np.random.default_rng, (3, 3)))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(image, before)
    assert all(result.dtype == np.uint8 and result.shape == image.shape for result in one)
    assert len({result.tobytes() for result in one}) > 10


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_what_is_no_colour_picture_is_refused(name, image, random):
    with pytest.raises(ValueError, match=r"augmentation takes uint8 \(H, W, 3\)"):
        POLICIES[name](image, random)


def note(seen, name):
    """A distortion that changes nothing and notes its name and strength."""
    return lambda picture, strength, random: seen.append((name, strength)) or picture


def test_auto_augment_applies_a_pair_with_its_probabilities_and_magnitudes(image, monkeypatch):
    seen = []
    monkeypatch.setattr(policies, "IMAGENET_POLICY", ((("A", 1.0, 9), ("B", 0.25, 3)), (("C", 0.0, 1), ("D", 1.0, 0))))
    monkeypatch.setattr(policies, "AUTO_AUGMENT", {name: note(seen, name) for name in "ABCD"})
    random = np.random.default_rng(0)
    for _ in range(1000):
        auto_augment(image[:2, :2], random)
    counts = Counter(seen)
    assert set(counts) == {("A", 1.0), ("B", 3 / 9), ("D", 0.0)}
    assert counts["A", 1.0] + counts["D", 0.0] == 1000
    assert 430 < counts["A", 1.0] < 570  # four standard deviations from 500
    assert 80 < counts["B", 3 / 9] < 170  # of about 500, a quarter


def test_rand_augment_draws_distortions_and_magnitudes_alike(image, monkeypatch):
    seen = []
    monkeypatch.setattr(policies, "RAND_AUGMENT", tuple(note(seen, name) for name in "ABCD"))
    random = np.random.default_rng(0)
    for _ in range(1000):
        rand_augment(image[:2, :2], random, layers=3)
    assert len(seen) == 3000
    names, strengths = (Counter(part) for part in zip(*seen, strict=True))
    assert sorted(strengths) == [magnitude / 10 for magnitude in range(15)]
    assert 660 < min(names.values()) <= max(names.values()) < 840
    assert 140 < min(strengths.values()) <= max(strengths.values()) < 260


@pytest.mark.parametrize("arguments", [dict(layers=0), dict(magnitude=0)])
def test_rand_augment_of_nothing_is_refused(arguments, image, random):
    with pytest.raises(ValueError, match="must not be below 1"):
        rand_augment(image, random, **arguments)
