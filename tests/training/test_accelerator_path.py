"""What is compiled for GPUs and TPUs, run on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, randomised
from jax import lax
from tiny_recipe import get_config
from tolerance import assert_trees_close
from training_parts import mesh_of, prepare

from repmlp_jax.models.registry import create_model
from repmlp_jax.tasks.class_scores import batch_metrics, mean_metrics, predicted_classes
from repmlp_jax.training import evaluation, feed, step
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_have_it")]


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Every choice by platform is that of GPUs and TPUs."""
    for module in (evaluation, feed, step):
        monkeypatch.setattr(module, "platform_of", lambda mesh: "gpu")

    def on_a_gpu(*operands, default, **forms):
        return forms.get("cuda", default)(*operands)

    monkeypatch.setattr(lax, "platform_dependent", on_a_gpu)
    # The functions traced so far hold both forms, and would be taken from JAX's caches.
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(scope="module", params=[1, 2], ids=["whole batches", "in two parts"])
def config(request):
    return get_config(learning_rate=0.01, accumulate=request.param)


@pytest.fixture(scope="module")
def on_the_cpu(config, as_users_have_it):
    return prepare(config, mesh_of(2)).train(3)


def test_the_loop_of_accelerators_trains_as_single_steps_do(config, on_the_cpu, on_an_accelerator):
    """The steps of a call are one loop on the device, the parts of a batch another, and convolutions XLA's own."""
    accelerated = prepare(config, mesh_of(2))
    assert accelerated.train_steps._cache_size() == 0
    loop = accelerated.train(1, 2)
    # Another number of steps is no other program.
    assert accelerated.train_steps._cache_size() == 1
    assert int(loop.step) == int(on_the_cpu.step) == 3
    assert_trees_close(loop.parameters, on_the_cpu.parameters, 1e-5)
    assert_trees_close(loop.statistics, on_the_cpu.statistics, 1e-5)


def test_a_whole_split_is_evaluated_by_one_program_and_brought_to_the_host_at_once(on_an_accelerator, monkeypatch):
    random = np.random.default_rng(0)
    split = dict(image=random.normal(size=(13, 8, 8, 1)).astype(np.float32), label=random.integers(0, 10, 13, np.int32))
    model = randomised(abstract(create_model, "pure_mlp", **get_config().model_arguments))
    transfers = []
    monkeypatch.setattr(jax, "device_get", lambda tree, get=jax.device_get: transfers.append(tree) or get(tree))

    def evaluator(mesh):
        return Evaluator(
            ResidentBatches(split, 4, mesh),
            lambda model, batch: model(batch["image"]),
            batch_metrics,
            mean_metrics,
            mesh,
            predicted_classes,
        )

    ours = evaluator(mesh_of(2))
    scores = ours.evaluate(model)
    assert len(transfers) == 1
    assert jax.tree.map(jnp.shape, transfers) == [((4,), (4,), (4,))]
    monkeypatch.setattr(evaluation, "platform_of", lambda mesh: "cpu")
    assert scores == pytest.approx(evaluator(mesh_of(2)).evaluate(model), rel=1e-5)
    comparison = ours.compare(model, model)
    assert comparison.largest_difference == comparison.difference_as_run == 0
    examples = comparison.of_examples
    assert examples["mask"].tolist() == [True] * 13 + [False] * 3
    np.testing.assert_array_equal(examples["label"][:13], split["label"])
    assert (examples["label"] == examples["predicted"])[:13].mean() == scores["accuracy"]
