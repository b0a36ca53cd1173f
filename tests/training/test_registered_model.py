"""Training a model of a class of one's own, by the name that `register_model` gave it."""

import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_recipe import get_config

from repmlp_jax import RepMLP, load_model, register_model
from repmlp_jax.models.registry import MODELS
from repmlp_jax.training import train_and_evaluate

pytestmark = pytest.mark.usefixtures("as_users_have_it")


class Net(nnx.Module):
    """Takes some arguments by names that it does not list."""

    def __init__(self, num_classes, activation=nnx.relu, *, rngs, **sizes):
        self.input_shape = (8, 8, 1)
        self.activation = activation
        self.mixer = RepMLP(1, 2, image_size=8, partition_size=4, rngs=rngs, **sizes)
        self.head = nnx.Linear(2, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.activation(self.mixer(x)).mean((1, 2)))


@pytest.fixture
def config():
    register_model("mine")(Net)
    yield get_config(model="mine", model_arguments=dict(num_classes=10, conv_kernels=(1,)), epochs=0, crop_padding=0)
    del MODELS["mine"]


@pytest.mark.slow
def test_it_is_trained_and_what_is_saved_comes_back(config, tmp_path):
    config.epochs = 1
    results = train_and_evaluate(config, tmp_path)
    assert results["trained"]["accuracy"] == results["fused"]["accuracy"]
    trained, fused = (load_model(tmp_path / name) for name in ("model", "fused"))
    assert type(trained) is type(fused) is Net
    x = jnp.ones((1, 8, 8, 1))
    assert jnp.allclose(trained(x), fused(x), atol=1e-4)


def test_what_could_not_be_saved_is_refused_before_it_is_trained(config, tmp_path):
    MODELS["mine"] = Net, dict(activation=nnx.gelu)
    with pytest.raises(TypeError, match=r"this Net cannot be saved: activation is a .*, which a saved model"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
