"""What does a TPU's compiler make of FC3 in int8, beside bfloat16?

    python benchmarks/int8_products.py v5e

Weights in int8 and in float8 are multiplied in bfloat16. Products in int8 round their inputs, with a scale for each
row; the last form gets inputs that are rounded already, so it shows the product alone. The estimates are as those of
`compile_for.py`, which says what to install. Nothing is executed.
"""

import argparse
import functools

from ahead_of_time.targets import TARGETS, devices, prepare

# (groups, inputs and outputs of a group, rows): of the pure MLP's last stage for 1, 128 and 1,024 images, and earlier.
SHAPES = (2, 2048, 1), (2, 2048, 128), (2, 2048, 1024), (2, 1024, 512), (2, 512, 2048)


def main():
    """Compiles and prints every form of every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[name for name, target in TARGETS.items() if target.clock])
    options = parser.parse_args()
    target = TARGETS[options.target]
    prepare(target)

    import jax
    import jax.numpy as jnp
    from ahead_of_time import costs, hlo
    from jax.sharding import SingleDeviceSharding

    jax.config.update("jax_enable_compilation_cache", False)
    place = SingleDeviceSharding(devices(target, "1")[0])
    bfloat16, int8, float8 = jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn
    multiply = functools.partial(jnp.einsum, "gkj,gkn->gjn")

    def in_bfloat16(kernel, scale, x):
        return (multiply(kernel.astype(bfloat16), x) * scale).astype(bfloat16)

    def in_int8(kernel, scale, x):
        return (multiply(kernel, x, preferred_element_type=jnp.int32) * scale).astype(bfloat16)

    def rounded(kernel, scale, x):
        of_row = jnp.maximum(jnp.abs(x).max(1, keepdims=True).astype(jnp.float32) / 127, 1e-30)
        return in_int8(kernel, scale * of_row, jnp.round(x / of_row).astype(int8))

    forms = {
        "bfloat16": (lambda kernel, scale, x: multiply(kernel, x), bfloat16, bfloat16),
        "int8 weights": (in_bfloat16, int8, bfloat16),
        "float8 weights": (in_bfloat16, float8, bfloat16),
        "products in int8": (rounded, int8, bfloat16),
        "inputs in int8, too": (in_int8, int8, int8),
    }
    print(f"{target.name}: estimated ms, and ms of bytes at the bandwidth")
    for groups, size, rows in SHAPES:
        for name, (form, of_kernel, of_x) in forms.items():
            shapes = ((groups, size, size), of_kernel), ((groups, size, 1), jnp.float32), ((groups, size, rows), of_x)
            arguments = [jax.ShapeDtypeStruct(*each, sharding=place) for each in shapes]
            program = hlo.parse(jax.jit(form).lower(*arguments).compile().as_text())
            found = costs.summary(costs.costs(program), target.clock, target.bandwidth)
            milliseconds = f"{found['estimated_ms']:.3f} {found['traffic']['ms_at_bandwidth']:.3f}"
            print(f"{groups} × {size} × {size}, {rows:4} rows, {name:20}{milliseconds}", flush=True)


if __name__ == "__main__":
    main()
