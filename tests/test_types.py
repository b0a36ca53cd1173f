"""What a type checker says of a script that uses the library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A comment names the errors that are to be found in its line; in the others there are none.
SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax import PureMLP, RepMLP, conv_to_fc, create_model, fuse_params, fuse_report, load_model, save_model

block = RepMLP(16, 32, image_size=(28, 28), partition_size=(7, 7), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (8, 28, 28, 16))
y: jax.Array = block(x)
fused = fuse_params(block)
print(abs(fused(x) - nnx.view(block, use_running_average=True)(x)).max())
report = fuse_report(block)
before, after = report.parameters
print(report, after / before, [part for line in report.blocks for part in line.folded])
kernel: jax.Array = conv_to_fc(np.ones((3, 3, 1, 1)), (4, 4))

model = PureMLP(10, dtype=np.float32, param_dtype="bfloat16", rngs=nnx.Rngs(0))
save_model("saved", fuse_params(model), preprocessing={"class_names": ["cat", "dog"]}, overwrite=True)
logits = load_model("saved")(jnp.zeros((1, 32, 32, 3)))
print(create_model("RepMLPNet-T224", num_classes=10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(x))

RepMLP(16, 32, image_size="28", partition_size=(7, 7), rngs=nnx.Rngs(0))  # arg-type
PureMLP(dtype=16, rngs=nnx.Rngs(0))  # arg-type
PureMLP(kernels=(1, 3), rngs=nnx.Rngs(0))  # call-arg
PureMLP()  # call-arg
block("an image")  # arg-type
fuse_params(nnx.state(block))  # arg-type
save_model(block, "saved")  # arg-type arg-type
print(report.macs[0])  # index
print(report.flops)  # attr-defined
"""


@pytest.mark.slow
def test_a_users_script(tmp_path):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # As of an installed package, of which mypy reports nothing.
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", script]
    environment = os.environ | dict(MYPYPATH=str(ROOT), MYPY_CACHE_DIR=str(tmp_path / "cache"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.stderr
    expected = [
        (number, kind)
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        for kind in line.partition("  # ")[2].split()
    ]
    found = re.findall(r"^script\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert [(int(number), kind) for number, kind in found] == expected, done.stdout
