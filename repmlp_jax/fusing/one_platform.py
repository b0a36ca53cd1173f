"""Reading a program for one platform: a jaxpr of `lax.platform_dependent` holds the forms of all platforms."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal, jaxprs_in_params

CALLS = ("jit", "pjit", "checkpoint", "remat2", "custom_jvp_call")


def branch_for(equation: Any, platform: str = "cpu") -> Any | None:
    """The branch of a choice by platform that a platform takes; None for any other equation."""
    for index, platforms in enumerate(equation.params.get("branches_platforms") or ()):
        if platforms is None or platform in platforms:
            return equation.params["branches"][index]
    return None


def as_compiled_for(platform: str, function: Callable) -> Callable:
    """Restricts a function to the forms of one platform.

    This is for readers of jaxprs that do not know a choice by platform. Inner functions that are jitted or checkpointed
    are inlined if they hold such a choice.

    Args:
        platform: "cpu", "cuda", "rocm" or "tpu".
        function: takes and returns PyTrees of arrays.

    Raises:
        NotImplementedError: when the result is called, if there is a choice in a loop or another construct that is not
            a call.
    """

    def resolved(*arguments):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(arguments), platform)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return resolved


def _evaluate(jaxpr, constants, arguments, platform) -> list:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            continue  # only the choice reads it
        branch = branch_for(equation, platform)
        operands = [read(atom) for atom in (equation.invars[1:] if branch else equation.invars)]
        if branch:
            results = _evaluate(branch.jaxpr, branch.consts, operands, platform)
        elif _holds_a_choice(equation):
            if equation.primitive.name not in CALLS:
                raise NotImplementedError(f"a choice by platform within {equation.primitive.name} is not resolved")
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            results = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands, platform)
        else:
            results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _holds_a_choice(equation) -> bool:
    return any(
        branch_for(inner) or _holds_a_choice(inner)
        for jaxpr in jaxprs_in_params(equation.params)
        for inner in jaxpr.eqns
    )
