"""AM-Softmax against its formula, and that minimising it turns embeddings towards their person."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import apply, build, quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax import fuse_params
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.tasks.faces.margin import CosineClassifier, FaceClassifier, am_softmax


def random_cosines(examples=5, people=4, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (examples, people)), dtype)


LABELS = jnp.asarray([0, 3, 1, 1, 2])


def test_the_loss_is_the_formula_of_the_paper():
    cosines, margin, scale = np.asarray(random_cosines()), 0.2, 7.0
    expected = []
    for row, label in zip(cosines, np.asarray(LABELS), strict=True):
        own = np.exp(scale * (row[label] - margin))
        others = sum(np.exp(scale * row[other]) for other in range(4) if other != label)
        expected.append(-np.log(own / (own + others)))
    assert_close(am_softmax(jnp.asarray(cosines), LABELS, margin, scale), expected, ROUNDING_F64)


def test_without_margin_it_is_the_softmax_of_scaled_cosines():
    cosines = random_cosines()
    expected = optax.softmax_cross_entropy_with_integer_labels(30 * cosines, LABELS)
    assert_close(am_softmax(cosines, LABELS, 0.0, 30.0), expected, ROUNDING_F64)


def test_a_larger_margin_is_harder():
    easy, default, hard = (am_softmax(random_cosines(), LABELS, margin) for margin in (0.1, 0.35, 0.5))
    assert (easy < default).all()
    assert (default < hard).all()
    assert (am_softmax(random_cosines(), LABELS) == default).all()


def test_half_precision_is_computed_in_float32():
    cosines = random_cosines(dtype=jnp.bfloat16)
    losses = am_softmax(cosines, LABELS)
    assert losses.dtype == jnp.float32
    assert_close(losses, am_softmax(cosines.astype(jnp.float64), LABELS), ROUNDING_F32)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_nobodys_makes_its_own_loss_not_finite(label):
    losses = jax.jit(am_softmax)(random_cosines(), LABELS.at[2].set(label))
    assert (np.isnan(losses) == [False, False, True, False, False]).all()


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"not shapes \(5, 4\) and \(4,\)"):
        am_softmax(random_cosines(), LABELS[:4])
    with pytest.raises(ValueError, match=r"margin=-0.1 and scale=30"):
        am_softmax(random_cosines(), LABELS, -0.1)
    with pytest.raises(ValueError, match=r"margin=0.35 and scale=0"):
        am_softmax(random_cosines(), LABELS, scale=0)


def test_cosines_are_those_of_the_angles_whatever_the_lengths():
    classifier = CosineClassifier(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    embeddings = jnp.asarray(np.random.default_rng(1).normal(0, 5, (2, 3)))
    kernel = np.asarray(classifier.kernel[...])
    lengths = np.linalg.norm(embeddings, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    assert_close(classifier(embeddings), embeddings @ kernel / lengths, ROUNDING_F64)
    assert_close(classifier(9 * embeddings), classifier(embeddings), ROUNDING_F64)


def test_the_people_start_with_length_about_one():
    kernel = CosineClassifier(512, 100, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (512, 100)
    assert 0.95 < float(jnp.linalg.norm(kernel, axis=0).mean()) < 1.05


def make_small_classifier(*, param_dtype, rngs):
    options = dict(param_dtype=param_dtype, rngs=rngs)
    net = FaceResNet(
        (2, 1),
        6,
        block="bottleneck",
        image_size=(16, 16),
        partition_size=(2, 2),
        conv_kernels=(1, 3),
        groups=2,
        widths=(8, 8),
        mid_widths=(8, 8),
        stem_features=4,
        in_features=1,
        **options,
    )
    return FaceClassifier(net, 4, **options)


def test_the_classifier_compares_embeddings_with_people_and_fuses_with_its_net():
    model = build(make_small_classifier)
    model.eval()
    x = random_input(model.net, batch=3)
    cosines = apply(model, x)
    assert cosines.shape == (3, 4)
    assert float(jnp.abs(cosines).max()) <= 1 + ROUNDING_F64
    embeddings = apply(model.net, x)
    assert_close(model.people(embeddings), cosines, ROUNDING_F64)
    fused = fuse_params(model)
    assert_close(apply(fused, x), cosines, ROUNDING_F64)
    assert_close(apply(fused.net, x), embeddings, ROUNDING_F64)


@pytest.mark.slow
def test_training_turns_embeddings_towards_their_person():
    model = build(make_small_classifier, param_dtype=jnp.float32)
    x = random_input(model.net, batch=12, dtype=jnp.float32)
    labels = jnp.arange(12) % 4
    optimizer = nnx.Optimizer(model, optax.sgd(0.02, momentum=0.9), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))

    @quick_jit
    def step(state):
        model, optimizer = nnx.merge(graphdef, state)
        graph, parameters, statistics = nnx.split(model, nnx.Param, ...)

        def loss(parameters):
            trained = nnx.merge(graph, parameters, statistics, copy=True)
            cosines = trained(x)
            return am_softmax(cosines, labels).mean(), (cosines, nnx.state(trained, nnx.BatchStat))

        (value, (cosines, new_statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        optimizer.update(model, gradients)
        nnx.update(model, new_statistics)
        return nnx.state((model, optimizer)), value, cosines

    losses = []
    for _ in range(60):
        state, value, cosines = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    assert (jnp.argmax(cosines, 1) == labels).all()
