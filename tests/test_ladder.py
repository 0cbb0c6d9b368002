"""The import graph: a ladder without cycles, and a library half that takes its random numbers as arguments."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

import rlmix

# From the ground up. A module may import from its own rung and from those below.
LADDER = (
    ("rlmix.errors", "rlmix.types", "rlmix._files", "rlmix._workers"),
    ("rlmix.ops",),
    ("rlmix.plan", "rlmix._apply"),
    ("rlmix.saliency", "rlmix.loss"),
    ("rlmix.methods",),
    ("rlmix._mix",),
    ("rlmix.policy", "rlmix.compat"),
    ("rlmix.training", "rlmix.monitor", "rlmix.integrations"),
    ("rlmix.envs",),
    ("rlmix.agents",),
    ("rlmix.service",),
    ("rlmix.cli", "rlmix.testing"),
)


@lru_cache(maxsize=1)
def sources() -> dict[str, Path]:
    """Return the file of every module, found as the import system finds it (`rglob` does not follow the links)."""

    def broken(package: str) -> None:
        # Left to itself the walk would skip, in silence, a package that cannot be imported.
        raise AssertionError(f"`{package}` cannot be imported, so its modules cannot be seen.")

    found = {"rlmix": Path(rlmix.__file__)}
    for module in pkgutil.walk_packages(rlmix.__path__, "rlmix.", broken):
        spec = importlib.util.find_spec(module.name)
        assert spec is not None
        assert spec.origin is not None, f"{module.name} has no file"
        found[module.name] = Path(spec.origin)
    return found


def packages() -> set[str]:
    return {name for name, path in sources().items() if path.name == "__init__.py"}


def rung(module: str) -> int:
    """Return the number of the rung that `module` stands on."""
    for number, prefixes in enumerate(LADDER):
        if any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes):
            return number
    raise AssertionError(f"`{module}` stands on no rung. Name it in LADDER.")


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes, those inside functions too, but not what only the type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def parsed(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def imports() -> dict[str, set[tuple[str, str]]]:
    """Return for every module what it imports of rlmix, as (module, name or "")."""
    graph: dict[str, set[tuple[str, str]]] = {}
    for module in sources():
        edges = graph.setdefault(module, set())
        for node in runtime_nodes(parsed(module)):
            if isinstance(node, ast.Import):
                edges.update((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "rlmix")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlmix":
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    edges.add((submodule, "") if submodule in sources() else (str(node.module), alias.name))
    return graph


def inner_modules() -> list[str]:
    """Return all modules but the `__init__` of rlmix itself, which re-exports from every rung."""
    return sorted(set(sources()) - {"rlmix"})


def test_the_walk_sees_the_linked_folders() -> None:
    """A checkout without links, or a walk that does not follow them, would check only half of the code."""
    assert {"rlmix.envs", "rlmix.agents"} <= set(sources())
    assert any(name.startswith("rlmix.envs.") for name in sources())
    assert any(name.startswith("rlmix.agents.") for name in sources())


@pytest.mark.parametrize("module", inner_modules())
def test_imports_go_down_the_ladder(module: str) -> None:
    """An import that goes up, also inside a function, ties two floors together that could be read apart."""
    upward = sorted(target for target, _ in imports()[module] if target != "rlmix" and rung(target) > rung(module))
    assert not upward, f"{module} imports from above: {upward}"


def assigned(module: str) -> set[str]:
    """Return the names that the module itself gives a value, such as `__version__`."""
    targets = [node.targets for node in parsed(module).body if isinstance(node, ast.Assign)]
    return {target.id for group in targets for target in group if isinstance(target, ast.Name)}


@pytest.mark.parametrize("module", inner_modules())
def test_names_are_imported_from_the_module_that_defines_them(module: str) -> None:
    """Imports through a package's `__init__` run all of the package and hide who needs what."""
    roots = packages() - {module}
    through = [
        f"from {target} import {name}"
        for target, name in sorted(imports()[module])
        if target in roots and name and name not in assigned(target)
    ]
    assert not through, f"{module}: {through}"


def test_there_is_no_import_cycle() -> None:
    """Modules in a circle can only be understood, tested and moved together."""
    graph = {module: sorted({target for target, _ in edges} - {"rlmix"}) for module, edges in imports().items()}
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", f"import cycle: {' -> '.join((*path, module))}"
        if module in state:
            return
        state[module] = "open"
        for target in graph.get(module, ()):
            visit(target, (*path, module))
        state[module] = "done"

    for module in graph:
        visit(module, ())


def test_no_relative_import_is_left() -> None:
    """A relative import hides from the checks above."""
    relative = [
        module
        for module in sources()
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not relative


def test_the_library_half_knows_neither_gymnasium_nor_stable_baselines() -> None:
    """Reinforcement learning stays in envs and agents: training a classifier must not need it."""
    outside = [module for module in inner_modules() if rung(module) < rung("rlmix.envs")]
    named = {
        module: name
        for module in outside
        for name in third_parties(module)
        if name in {"gymnasium", "stable_baselines3"}
    }
    assert not named


def third_parties(module: str) -> set[str]:
    """Return the top-level names that `module` imports, anywhere in it."""
    names: set[str] = set()
    for node in runtime_nodes(parsed(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names - {"rlmix"}


@pytest.mark.parametrize("module", [name for name in inner_modules() if rung(name) <= rung("rlmix.policy")])
def test_the_library_half_uses_no_random_module(module: str) -> None:
    """Numbers that do not come from a key or a generator argument cannot be replayed; seeded numpy ones neither."""
    assert "random" not in third_parties(module)
    text = sources()[module].read_text(encoding="utf-8")
    assert "np.random" not in text
    assert "numpy.random" not in text


# `tolist` and its like wait for the device, or give a shape that depends on values, which waits too.
READ_BACKS = {"argwhere", "cpu", "item", "masked_select", "nonzero", "numpy", "tolist", "unique", "unique_consecutive"}


def gpu_path() -> list[str]:
    """Return the modules that run inside every training step.

    Left out are `rng`, which reads keys on the host, and `compiled`, whose `.numpy()` refuses tensors of a device.
    """
    starts, left_out = ("rlmix.methods.", "rlmix.ops.", "rlmix.plan", "rlmix._apply"), ("rng", "compiled")
    return [
        name for name in inner_modules() if name.startswith(starts) and name not in map("rlmix.ops.{}".format, left_out)
    ]


@pytest.mark.parametrize("module", gpu_path())
def test_the_gpu_path_reads_nothing_back(module: str) -> None:
    """One hidden `.item()` makes every step wait until the device has caught up."""
    found = [
        f"line {node.lineno}: {node.attr}"
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.Attribute) and node.attr in READ_BACKS
    ]
    assert not found, f"{module}: {found}"


@pytest.mark.parametrize("module", sorted(sources()))
def test_every_module_says_what_it_is(module: str) -> None:
    """A reader who opens a file must learn from its first line what it is for."""
    assert ast.get_docstring(parsed(module)), f"{module} has no docstring"
