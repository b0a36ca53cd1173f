"""Does a training step cost the host more, the more devices there are?

    python benchmarks/devices.py

The same steps, of the same global batch, on 1, 2, 4 and 8 virtual devices of one machine: what is computed stays the
same, so that steps a second fall only by what each device adds. Every number of devices is a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

DEVICES = (1, 2, 4, 8)


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="measure on the devices there are, and print JSON")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(steps_per_second(options)))
        return
    from measure import record

    rows = {}
    for devices in DEVICES:
        command = [sys.executable, __file__, "--alone", f"--runs={options.runs}", f"--steps={options.steps}"]
        environment = os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        rows[devices] = json.loads(output.splitlines()[-1])
        print(devices, "devices:", rows[devices])
    print("recorded:", record("devices", {f"{devices} devices": row for devices, row in rows.items()}))


def steps_per_second(options) -> dict:
    """Of a small net on the digits, and how long the host's own thread works for a step (its waiting not counted)."""
    import jax
    from flax import nnx

    from repmlp_jax.tasks import task_class
    from repmlp_jax.training import default_config, sharding
    from repmlp_jax.training.optimizer import make_optimizer
    from repmlp_jax.training.step import init_state, make_step

    config = default_config()
    config.dataset = "digits"
    config.batch_size = 64
    config.eval_batch_size = 360
    config.crop_padding = 1
    config.model_arguments = dict(
        image_size=(8, 8), in_features=1, widths=(8,), partition_size=(4, 4), conv_kernels=(1, 3)
    )
    mesh = sharding.make_mesh()
    task = task_class(config.task)(config, mesh, jax.random.key(1))
    steps_per_epoch = task.feed.examples // config.batch_size
    optimizer, _ = make_optimizer(config, steps_per_epoch)
    model = nnx.jit(lambda: task.make_model(nnx.Rngs(0)))()
    state = init_state(model, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    step = make_step(
        nnx.graphdef(model),
        optimizer,
        task.loss,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        mesh=mesh,
    )
    train_steps = task.feed.compile(step, jax.random.key(2), shardings)
    state = jax.block_until_ready(train_steps(sharding.put_state(state, shardings), 0, options.steps))
    rates, starts = [], []
    for _ in range(options.runs):
        begin, working = time.perf_counter(), time.thread_time()
        state = train_steps(state, 0, options.steps)
        starts.append((time.thread_time() - working) / options.steps)
        jax.block_until_ready(state)
        rates.append(options.steps / (time.perf_counter() - begin))
    return dict(
        steps_per_second=dict(median=statistics.median(rates), minimum=min(rates), maximum=max(rates), runs=len(rates)),
        host_work_seconds_a_step=statistics.median(starts),
    )


if __name__ == "__main__":
    main()
