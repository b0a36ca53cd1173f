"""Which room of the package imports which, read from the source: an arrow may only point down."""

import ast
import graphlib
from pathlib import Path

import pytest

import repmlp_jax

PACKAGE = "repmlp_jax"
# From the ground up. A module may import from its own room and from the rooms before it; __init__, cli and __main__ are
# modules at the top.
ROOMS = (
    *("fusing", "blocks", "quantisation", "models", "plots", "storage", "data", "interop", "training"),
    *("tasks", "deploy", "__init__", "cli", "__main__"),
)
# They import no other module, so any room may import them.
EVERYWHERE = ("version", "nearest", "local_path", "listing", "printing", "progress", "extras", "compilation_cache")
DOORS = {
    # `train_and_evaluate(config, workdir)` picks the task by its name, so it lies above the tasks. It is public as
    # repmlp_jax.training.train_and_evaluate, too, which is imported only where someone asks for it.
    ("training", "tasks"),
}


def read_modules(folder: Path) -> dict[str, ast.Module]:
    """The modules of the package in a folder, name → source."""
    modules = {}
    for path in folder.rglob("*.py"):
        name = ".".join((PACKAGE, *path.relative_to(folder).with_suffix("").parts))
        modules[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return modules


def imports(name: str, source: ast.Module, modules) -> set[str]:
    """The modules of the package that one of them imports: at its top, within functions, and for types only."""
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import in line {node.lineno}; write the module's whole name"
            # `from a import b` imports module a.b where there is one, else a name in a.
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in modules else node.module for one in whole}
        elif isinstance(node, ast.Constant) and node.value in modules and node.value != PACKAGE:
            found.add(node.value)  # for importlib
    return {one for one in found if one.split(".")[0] == PACKAGE}


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return module.split(".")[1] if "." in module else "__init__"


def upward_arrows(modules) -> list[str]:
    """The imports that point up, in words."""
    found = []
    for module, source in modules.items():
        for imported in imports(module, source, modules):
            here, there = room_of(module), room_of(imported)
            if there in (here, *EVERYWHERE) or (module.removeprefix(f"{PACKAGE}."), there) in DOORS:
                continue
            if here in EVERYWHERE or ROOMS.index(there) > ROOMS.index(here):
                found.append(f"{module} imports {imported}: {there} is above {here}")
    return sorted(found)


def rooms_with_a_cycle(modules) -> list[str]:
    """For each room whose modules import each other in a circle, the circle."""
    found = []
    for room in ROOMS:
        graph = {
            module: {one for one in imports(module, source, modules) if room_of(one) == room}
            for module, source in modules.items()
            if room_of(module) == room
        }
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append(" imports ".join(reversed(error.args[1])))
    return found


@pytest.fixture(scope="module")
def modules():
    return read_modules(Path(repmlp_jax.__file__).parent)


def test_every_module_lies_in_a_room(modules):
    assert {room_of(module) for module in modules} == {*ROOMS, *EVERYWHERE}


def test_no_arrow_points_up(modules):
    assert upward_arrows(modules) == []


def test_no_circle_within_a_room(modules):
    assert rooms_with_a_cycle(modules) == []


def written(folder: Path, **sources: str) -> dict[str, ast.Module]:
    """A package of so many modules, "room__module" → source."""
    for name, source in sources.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return read_modules(folder)


@pytest.mark.parametrize(
    "source",
    [
        "import repmlp_jax.blocks.layers",
        "from repmlp_jax.blocks import layers",
        "from repmlp_jax.blocks.layers import ConvBN",
        "def later():\n    from repmlp_jax.blocks.layers import ConvBN",
        "if TYPE_CHECKING:\n    from repmlp_jax.blocks.layers import ConvBN",
        "importlib.import_module('repmlp_jax.blocks.layers')",
    ],
)
def test_an_arrow_that_points_up_is_found(tmp_path, source):
    modules = written(tmp_path, fusing__fuse=source, blocks__layers="from repmlp_jax.fusing import algebra")
    modules |= written(tmp_path, fusing__algebra="import jax", version="import jax")
    assert upward_arrows(modules) == ["repmlp_jax.fusing.fuse imports repmlp_jax.blocks.layers: blocks is above fusing"]


def test_a_circle_within_a_room_is_found(tmp_path):
    circle = {
        "blocks__layers": "from repmlp_jax.blocks import repmlp",
        "blocks__repmlp": "import repmlp_jax.blocks.layers",
    }
    (found,) = rooms_with_a_cycle(written(tmp_path, **circle))
    assert found.count("repmlp_jax.blocks.layers imports repmlp_jax.blocks.repmlp") == 1
