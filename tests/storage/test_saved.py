import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cases import abstract, randomised
from flax import nnx
from tolerance import ROUNDING_F32, assert_close, assert_identical

from repmlp_jax import create_model, fuse_params, load_model, save_model
from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.storage import models as saved_models

MODELS = {
    "trained": ("pure_mlp", {}),
    "bfloat16": ("pure_mlp", dict(param_dtype=jnp.bfloat16)),
    "computes in bfloat16": ("pure_mlp", dict(dtype=jnp.bfloat16)),
    "float64": ("pure_mlp", dict(param_dtype=jnp.float64)),
    "ablation": ("pure_mlp_no_global", {}),
    "convolutions": ("wide_convnet", {}),
}
FAST_ROUND_TRIPS = {"trained-trained", "trained-fused", "bfloat16-fused", "computes in bfloat16-trained"}


def build(name="trained", widths=(4,)):
    kind, arguments = MODELS[name]
    small = dict(image_size=(8, 8), in_features=1, widths=widths)
    if kind != "wide_convnet":
        small |= dict(partition_size=(4, 4), conv_kernels=(1, 3))
    return randomised(abstract(create_model, kind, **small, **arguments))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A saved model; tests that damage it do so to a copy."""
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(path, model, preprocessing={"mean": [0.5]})
    return path


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        pytest.param(
            name, fused, id=f"{name}-{form}", marks=[] if f"{name}-{form}" in FAST_ROUND_TRIPS else pytest.mark.slow
        )
        for name in MODELS
        for fused, form in ((False, "trained"), (True, "fused"))
    ],
)
def test_round_trip_is_bit_equal(tmp_path, name, fused):
    model = build(name, widths=(4, 8))
    model.eval()
    if fused:
        model = fuse_params(model)
    save_model(tmp_path / "parent" / "model", model)
    loaded = load_model(tmp_path / "parent" / "model")
    assert_identical(loaded, model)


def test_a_model_in_training_comes_back_in_evaluation_mode(folder, model):
    assert not model.embedding.norm.use_running_average
    evaluated = nnx.clone(model)
    evaluated.eval()
    assert_identical(load_model(folder), evaluated)


def test_preprocessing_comes_back(tmp_path, model):
    preprocessing = {"mean": [0.3], "std": [0.4], "class_names": ["cat", "chien", "ñandú", *"0123456"]}
    save_model(tmp_path / "model", model, preprocessing=preprocessing)
    assert saved_models.load(tmp_path / "model").preprocessing == preprocessing


@pytest.fixture
def stored(tmp_path):
    """Models that an earlier version saved, and their logits: `one_scale` has one int8 scale for each kernel."""
    with zipfile.ZipFile(Path(__file__).with_name("stored_models.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["trained", "one_scale", "one_scale_multiplied"])
def test_models_of_an_earlier_version_are_read(stored, name):
    x = jnp.linspace(-1, 1, 32, dtype=jnp.float32).reshape(2, 4, 4, 1)
    # What multiplied in int8 computes with the same weights in floating point.
    expected = json.loads((stored / "logits.json").read_text())[name.removesuffix("_multiplied")]
    model, preprocessing = saved_models.load(stored / name)
    assert_close(jax.jit(lambda model, x: model(x))(model, x), expected, ROUNDING_F32)
    assert preprocessing == {"mean": [0.5]}
    if name != "trained":
        assert len(set(model.head.kernel.scale[...].ravel().tolist())) == 1


def test_an_existing_folder_stays(folder, model, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    other = fuse_params(model)
    with pytest.raises(FileExistsError, match="model exists; pass overwrite=True to replace it"):
        save_model(path, other)
    assert_identical(load_model(path), load_model(folder))
    save_model(path, other, overwrite=True)
    assert_identical(load_model(path), other)
    assert [child.name for child in tmp_path.iterdir()] == ["model"]
    assert {child.name for child in path.iterdir()} == {"model.json", "weights.safetensors"}


def make_project(path):
    (path / "code").mkdir(parents=True)
    for name in ("README.md", "a.py", "b.py"):
        (path / name).touch()


def make_model_and_notes(path):
    path.mkdir()
    (path / "model.json").write_text('{"format": 2, "sha256": ""}')
    (path / "notes.txt").touch()


def make_model_of_tensorflow_js(path):
    path.mkdir()
    (path / "model.json").write_text('{"format": "layers-model", "modelTopology": {}}')


def make_weights(path):
    path.mkdir()
    (path / "weights.safetensors").touch()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (make_project, r"holds README\.md, a\.py, b\.py and 1 more"),
        (make_model_and_notes, r"holds notes\.txt"),
        (make_model_of_tensorflow_js, r"holds model\.json, which save_model did not write"),
        (make_weights, r"holds weights\.safetensors, which save_model did not write"),
        (Path.touch, "is a file"),
        (lambda path: path.symlink_to("elsewhere"), "is a link to elsewhere"),
    ],
)
def test_what_save_model_did_not_write_is_never_replaced(model, tmp_path, make, found, overwrite):
    make(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=rf"model {found}: save_model replaces only an empty folder, or one that"):
        save_model(tmp_path / "model", model, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_is_never_replaced(folder, model, tmp_path, monkeypatch):
    for path in (tmp_path / "empty", shutil.copytree(folder, tmp_path / "model")):
        path.mkdir(exist_ok=True)
        monkeypatch.chdir(path)
        with pytest.raises(FileExistsError, match="is the current folder"):
            save_model(".", model, overwrite=True)
        assert path.samefile(".")


def test_an_empty_folder_is_replaced(model, tmp_path):
    with pytest.raises(FileExistsError, match="exists; pass overwrite=True to replace it"):
        save_model(tmp_path, model)
    save_model(tmp_path, model, overwrite=True)
    assert load_model(tmp_path).input_shape == (8, 8, 1)


def test_a_link_to_a_saved_model_is_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert_identical(load_model(tmp_path / "link"), load_model(folder))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_a_saved_model_as_the_umask_says(model, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model", model)
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~umask
    for file in (tmp_path / "model").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.fixture
def killed_while_replacing(folder, tmp_path):
    """What is left of a save that was killed after it had moved the old model aside."""
    partial = tmp_path / "model.partial.01234567.1.another-host"
    shutil.copytree(folder, partial / "replaced")
    shutil.copytree(folder, partial / "new")
    return tmp_path / "model"


def test_load_model_and_save_model_put_back_the_model_that_a_killed_save_was_replacing(
    killed_while_replacing, model, folder, caplog
):
    path = killed_while_replacing
    aside = path.parent / "model.partial.01234567.1.another-host" / "replaced"
    with pytest.raises(FileExistsError, match="exists; pass overwrite=True"):
        save_model(path, model)
    assert not aside.exists()
    path.rename(aside)
    assert_identical(load_model(path), load_model(folder))
    assert "did not finish; the folder is restored" in caplog.text


def test_a_model_that_is_replaced_while_it_is_read_is_read_whole(folder, model, tmp_path, monkeypatch):
    path = shutil.copytree(folder, tmp_path / "model")
    read, other = saved_models.load_file, fuse_params(model)

    def replaced_first(file):
        if not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            save_model(path, other, overwrite=True)
        return read(file)

    monkeypatch.setattr(saved_models, "load_file", replaced_first)
    assert_identical(load_model(path), other)


@pytest.mark.slow
def test_killed_at_any_instant_the_old_or_the_new_model_is_loaded(folder, model, tmp_path):
    program = """
import sys
from flax import nnx
from repmlp_jax import fuse_params, load_model, save_model

path, models = sys.argv[1], [load_model(sys.argv[2])]
models.append(fuse_params(models[0]))
print("ready", flush=True)
while True:
    for model in models:
        save_model(path, model, overwrite=True)
"""
    path = tmp_path / "model"
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    known = [load_model(folder), fuse_params(load_model(folder))]
    for number in range(3):
        command = [sys.executable, "-c", program, str(path), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        next(line for line in process.stdout if line == "ready\n")
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.2 + 0.0274 * number)
        process.kill()
        process.wait()
        loaded = load_model(path)
        assert any(jax.tree.structure(nnx.state(loaded)) == jax.tree.structure(nnx.state(one)) for one in known)
        save_model(path, model, overwrite=True)
        assert [child.name for child in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_refused(model, folder, tmp_path, monkeypatch):
    broken = nnx.clone(model)
    kernel = broken.head.kernel
    kernel[...] = kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"this PureMLP holds .* NaN or infinite: head\.kernel \(1 of \d+\)"):
        save_model(tmp_path / "model", broken)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:  # as an earlier version did
        patch.setattr(saved_models, "check_finite", lambda *_: None)
        save_model(tmp_path / "model", broken)
    with pytest.raises(ValueError, match=r"/model holds .* NaN or infinite: head\.kernel \(1 of \d+\)"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("dtypes", [dict(param_dtype=jnp.float64), dict(dtype="float64")], ids=str)
def test_a_model_of_float64_asks_for_64_bits(tmp_path, dtypes):
    small = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
    save_model(tmp_path / "model", randomised(abstract(create_model, "pure_mlp", **small, **dtypes)))
    load_model(tmp_path / "model")
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"the model in .*/model is of float64, .*: set JAX_ENABLE_X64=1 in the"):
            load_model(tmp_path / "model")
        with pytest.raises(ValueError, match="PureMLP is of float64, which JAX replaces by 32 bits unless"):
            create_model("pure_mlp", **small, **dtypes, rngs=nnx.Rngs(0))


def test_a_folder_that_is_no_saved_model(tmp_path):
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json: it is not a folder that save_model wrote"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder or file .*nothing"):
        load_model(tmp_path / "nothing")


def change(path, **changes):
    """Another description, sealed as if it had been written so."""
    description = json.loads((path / "model.json").read_text()) | changes | {"sha256": None}
    description = {name: value for name, value in description.items() if value is not None}
    description["sha256"] = hashlib.sha256(json.dumps(description).encode()).hexdigest()
    (path / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(format=4), "holds a PureMLP of format 4; this version reads formats 1 to 3"),
        (
            dict(model="Net", module="mine.nets"),
            r"a Net of the module mine\.nets, and no class of this name is registered: .*register_savable\(Net\)",
        ),
        (dict(model="Net", module=None), "holds a Net, and no class of this name is registered"),
        (dict(weights_sha256=None), r"is damaged: model.json cannot be read \(it lacks weights_sha256\)"),
        (dict(format=1), r"is damaged: model.json cannot be read \(it lacks digests\)"),
        (
            dict(arguments=dict(widths="x")),
            "damaged, or its PureMLP is another than .* now: this does not take its arguments",
        ),
        (
            dict(arguments=dict(width=[4])),
            "damaged, or its PureMLP is another than .* now: this does not take its arguments",
        ),
        (dict(fused=True), "damaged, or its PureMLP is another than .*: the arrays of the two differ"),
        (dict(arrays={}), "damaged, or its PureMLP is another than .*: the arrays of the two differ"),
    ],
)
def test_a_damaged_description(folder, tmp_path, changes, message):
    path = shutil.copytree(folder, tmp_path / "model")
    change(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0\0"])
def test_a_description_that_is_no_json(folder, tmp_path, text):
    path = shutil.copytree(folder, tmp_path / "model")
    (path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged: model\.json cannot be read"):
        load_model(path)


def test_a_description_changed_by_hand(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    text = (path / "model.json").read_text()
    (path / "model.json").write_text(text.replace("0.5", "0.6"))
    with pytest.raises(ValueError, match="its digest is wrong"):
        load_model(path)


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("file", ["weights.safetensors", "model.json"])
def test_a_flipped_bit_is_noticed(folder, tmp_path, file, place):
    path = shutil.copytree(folder, tmp_path / "model")
    content = bytearray((path / file).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << 3
    (path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged: "):
        load_model(path)


def test_one_wrong_value_is_noticed_whichever_version_saved_it(folder, stored):
    for path in (shutil.copytree(folder, stored / "of today"), stored / "trained", stored / "one_scale"):
        weights = path / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is damaged: .* does not hold what was saved") as raised:
            load_model(path)
        # The digest of today is the file's; those of format 1 name the array.
        assert (weights.name in str(raised.value)) == (path.name == "of today")


def test_weights_of_another_model_are_noticed_whichever_version_saved_it(folder, stored):
    for path in (shutil.copytree(folder, stored / "of today"), stored / "trained"):
        shutil.copy(stored / "one_scale" / "weights.safetensors", path)
        with pytest.raises(ValueError, match=r"is damaged: .* does not hold what was saved"):
            load_model(path)


def test_weights_cut_short_or_missing(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    weights = path / "weights.safetensors"
    content = weights.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 100, 0):
        weights.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged: its weights cannot be read"):
            load_model(path)
    weights.unlink()
    with pytest.raises(ValueError, match="is damaged: its weights cannot be read"):
        load_model(path)
    os.mkfifo(weights)
    with pytest.raises(ValueError, match="is damaged: its weights cannot be read"):
        load_model(path)


def test_a_changed_model_is_refused(tmp_path):
    model = build()
    model.stages[0][0] = ConvBN(4, 4, 3, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"PureMLP was changed since .*: stages.0.0 is a ConvBN instead of a RepMLP$"):
        save_model(tmp_path / "model", model)
    half_fused = build()
    half_fused.embedding = half_fused.embedding.fused()
    with pytest.raises(TypeError, match=r"PureMLP was changed since .*: embedding is a Conv instead of a ConvBN$"):
        save_model(tmp_path / "model", half_fused)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_kind_is_refused(tmp_path):
    class PureMLP(nnx.Module):
        """The name of a known model, and another class."""

    for other in (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), PureMLP()):
        with pytest.raises(TypeError, match=f"{type(other).__name__} of .* is not one of them"):
            save_model(tmp_path / "model", other)
    assert not list(tmp_path.iterdir())


def fail(*_, **__):
    raise OSError("no space left on device")


def test_nothing_is_left_of_a_save_that_fails(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="source, a object, cannot be saved as JSON"):
        save_model(tmp_path / "model", model, preprocessing={"source": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("calls", [0, 1], ids=["moving the old one away", "moving the new one there"])
def test_the_old_model_outlives_a_save_that_fails(folder, tmp_path, monkeypatch, calls):
    path = shutil.copytree(folder, tmp_path / "model")
    rename, results = Path.rename, iter(range(10))

    def fail_once(*arguments):
        return fail() if next(results) == calls else rename(*arguments)

    other = fuse_params(build())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_once)
        with pytest.raises(OSError, match="no space left"):
            save_model(path, other, overwrite=True)
    assert_identical(load_model(path), load_model(folder))
    assert [child.name for child in tmp_path.iterdir()] == ["model"]
