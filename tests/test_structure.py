"""The structure of the package: who imports whom, how large things are, what is documented."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fkd

ROOT = Path(fkd.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def module_name(path: Path) -> str:
    parts = ["fkd", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, *, types: bool = False) -> Iterator[tuple[str, str]]:
    """`(function it stands in, module)` of every import; `types`: for type checkers alone, too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, function) if types else ()
            elif isinstance(child, ast.Import):
                yield from ((function, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                source = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    whole = f"{source}.{alias.name}"
                    yield function, whole if whole in MODULES else source
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, child.name)
            else:
                yield from visit(child, function)

    return visit(TREES[path], "")


def area(module: str) -> str:
    """An area of fkd; core for everything else of it; or the library."""
    parts = module.split(".")
    if parts[0] != "fkd":
        return parts[0]
    areas = (
        "losses",
        "loops",
        "parallel",
        "interop",
        "adapters",
        "sources",
        "gradients",
        "sweeps",
        "stages",
    )
    areas += ("_blocks", "_catalogue", "_commands")
    if parts[1:] == ["__main__"]:
        return "_commands"
    return parts[1] if len(parts) > 1 and parts[1] in areas else "core"


INWARD = {
    "losses": {"losses"},
    "adapters": {"adapters", "losses"},
    "_blocks": {"_blocks"},
    "core": {"core", "_blocks"},
    "parallel": {"parallel", "core"},
    "gradients": {"gradients"},
    "loops": {"loops", "parallel", "gradients", "core", "_blocks"},
    "sources": {"sources", "loops", "parallel", "core"},
    "sweeps": {"sweeps", "sources", "loops", "core"},
    "stages": {"stages", "loops", "parallel", "core"},
    "interop": {"interop", "core", "losses", "loops", "adapters"},
    "_catalogue": {"_catalogue", "losses", "adapters"},
    "_commands": {"_commands", "_catalogue", "core", "losses", "loops", "sources", "interop"},
}
"""What each area may import of fkd itself, besides what is `EVERYBODYS`."""

EVERYBODYS = {"fkd._base.arguments", "fkd._base.mean", "fkd._base.sparse"}
"""What every area may import."""

OUTWARD = {
    "losses": {"torch", "jaxtyping"},
    "adapters": {"torch", "jaxtyping"},
    "gradients": {"torch"},
    "_blocks": {"torch"},
    "core": {"torch", "jaxtyping", "optree", "safetensors"},
    "parallel": {"torch", "optree"},
    "loops": {"torch", "jaxtyping", "optree", "numpy", "safetensors", "tqdm", "filelock"},
    "sweeps": {"torch"},
    "stages": {"torch"},
    "sources": {"torch", "optree", "numpy", "tqdm"},
    "interop": {"torch", "jaxtyping", "optree", "safetensors"},
    "_catalogue": set(),
    "_commands": {"torch"},
}
"""What each area may import of other libraries."""

DOORS = {
    ("fkd", "", "loops"),  # the public names
    ("fkd", "", "losses"),
    ("fkd", "", "adapters"),
    ("fkd", "", "interop"),  # which imports nothing before one of its names is used
    ("fkd", "", "sources"),
    ("fkd", "", "parallel"),
    ("fkd", "", "gradients"),
    ("fkd", "", "sweeps"),
    ("fkd", "", "stages"),
    ("fkd._objective.apply", "interop", "interop"),  # for models of transformers
    ("fkd.loops._log.tensorboard", None, "tensorboard"),
}
"""`(module, function, area)` of the imports that are allowed all the same."""


def allowed(module: str, function: str, target: str) -> bool:
    own, other = area(module), area(target)
    if target in EVERYBODYS or (target == "fkd" and own in ("loops", "interop")):
        return True
    if (module, function, other) in DOORS or (module, None, other) in DOORS:
        return True
    if other == "triton":
        return module.startswith("fkd.losses.head.") and module.endswith("_kernel")
    if other == "transformers":
        return module.startswith("fkd.interop.")
    if other in INWARD:
        return other in INWARD[own]
    return other in OUTWARD[own] or other in sys.stdlib_module_names


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_one_way(name):
    path = ROOT / name
    module = module_name(path)
    wrong = [(f, t) for f, t in imports(path) if not allowed(module, f, t)]
    assert not wrong, f"{module} imports {wrong}"


def test_no_two_files_import_each_other():
    """Not inside of functions either, nor for their types."""
    graph = {
        module: {t for _, t in imports(path, types=True) if t in MODULES and t != module}
        for module, path in MODULES.items()
    }
    # A package's own file only gathers names, so that what it gathers may use its parts.
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            for other in graph:
                if other.startswith(module + "."):
                    graph[other].discard(module)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(MODULES)


FLOORS = {
    "fkd": [
        {"_base"},
        {"metrics", "schedules"},
        {"_refs"},
        {"_objective"},
        {"_check", "_draw"},
    ],
    "fkd.loops": [
        {"_base"},
        {"_data", "_log", "_checkpoint"},
        {"_text"},
        {"_evaluate", "_report"},
        {"_generate"},
        {"_step", "_card"},
        {"_run", "language"},
    ],
    "fkd.losses": [
        {"_shared"},
        {"_logits", "_features", "_hidden", "_attention", "_teacher", "_contrastive", "head"},
        {"_labels", "_samples"},
    ],
}
"""Who may import whom inside the core, `loops` and `losses`: only rooms of floors below."""


@pytest.mark.parametrize("area_name", FLOORS)
def test_rooms_import_only_from_floors_below(area_name):
    level = {f"{area_name}.{r}": i for i, rooms in enumerate(FLOORS[area_name]) for r in rooms}

    def room(module: str) -> str:
        depth = area_name.count(".") + 2
        return ".".join(module.split(".")[:depth])

    wrong = [
        (module, target)
        for module, path in MODULES.items()
        for _, target in imports(path)
        if room(module) != room(target)
        and room(module) in level
        and level[room(module)] <= level.get(room(target), -1)
    ]
    assert not wrong
    here = ROOT / Path(*area_name.split(".")[1:])
    found = {p.stem for p in here.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    areas = {"__init__", "__main__", "adapters", "interop", "loops", "losses", "sources"}
    areas |= {"_catalogue", "_commands", "parallel", "gradients", "sweeps", "stages", "_blocks"}
    assert {f"{area_name}.{name}" for name in found - areas} == set(level)


PRODUCTS = {"addmm", "baddbmm", "bmm", "chain_matmul", "einsum", "linear", "matmul", "mm", "mv"}


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("losses/")])
def test_losses_multiply_by_product(name):
    """`torch.autocast` rounds the operands of a product: `_shared/products.py` knows how not to.

    The head's products run outside autocast, with gradients of their own.
    """
    if name in ("losses/_shared/products.py", "losses/head/_products.py"):
        return
    nodes = list(ast.walk(TREES[ROOT / name]))
    assert not [n.lineno for n in nodes if isinstance(n, ast.BinOp | ast.AugAssign)
                and isinstance(n.op, ast.MatMult)] or name == "losses/head/_chunked.py"  # fmt: skip
    calls = {n.func.attr for n in nodes if isinstance(n, ast.Call)
             and isinstance(n.func, ast.Attribute)}  # fmt: skip
    assert not calls & PRODUCTS or name == "losses/head/_materialized.py"


def test_only_these_files_of_the_core_know_modules():
    """What a `torch.nn.Module` is, `models`, `apply`, `recompute` (its blocks), `rebound` (its
    forwards) and `stored` (its values) need to know; `not_models`, `problems` and `derived` ask
    what they were given."""
    core = [p for p in FILES if area(module_name(p)) == "core"]
    using = {p.stem for p in core if "nn.Module" in _code(TREES[p])}
    asking = {"not_models", "problems", "derived"}
    assert using <= {"apply", "models", "recompute", "rebound", "stored", "dtypes"} | asking


def _code(tree: ast.Module) -> str:
    """The code of a file without its docstrings and messages."""
    return "\n".join(
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    )


# Sizes


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_in_one_sitting(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    gathers = name.endswith("__init__.py")
    limit = 100 if gathers and name != "losses/__init__.py" else 400
    assert len(lines) <= limit


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("__init__.py")])
def test_a_package_file_only_gathers_names(name):
    body = [*TREES[ROOT / name].body]
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            body.extend([*node.body, *node.orelse])  # what is imported when it is first used
            continue
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        named = isinstance(node, ast.Assign | ast.AnnAssign)
        listed = isinstance(node, ast.FunctionDef) and node.name in ("__dir__", "__getattr__")
        assert docstring or named or listed or isinstance(node, ast.Import | ast.ImportFrom)
    assert "import *" not in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_function_fits_on_a_screen(name):
    functions = [n for n in ast.walk(TREES[ROOT / name]) if isinstance(n, ast.FunctionDef)]
    # A Triton kernel is one function: what it calls is inlined, and its pointers are many.
    functions = [f for f in functions if not f.name.endswith("_kernel")]
    long = {f.name: length for f in functions if (length := body_length(f)) > 40}
    assert not long


def body_length(function: ast.FunctionDef) -> int:
    """The lines of a body without its docstring and the functions defined in it."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    inner = [n for n in ast.walk(function) if isinstance(n, ast.FunctionDef) and n is not function]
    nested = sum(n.end_lineno - n.lineno + 1 for n in inner if n.end_lineno is not None)
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 - nested


# Documentation

VALUES = {"batch", "student", "teacher"}
"""Public names that are values, not functions or classes."""

WITHOUT_EXAMPLE = {
    # What another name makes or gives, shown there.
    *(
        "fkd.Aux",
        "fkd.Parts",
        "fkd.Context",
        "fkd.Ref",
        "fkd.Term",
        "fkd.CheckReport",
        "fkd.Report",
        "fkd.Drawing",
    ),
    *("fkd.ObjectiveError", "fkd.ema", "fkd.frozen", "fkd.trainable", "fkd.stop_gradient"),
    *("fkd.losses.CRDState", "fkd.losses.DINOState", "fkd.losses.Queue", "fkd.losses.TAIDState"),
    *("fkd.losses.Sample", "fkd.losses.TopK"),
}


def public(module: ModuleType) -> dict[str, object]:
    return {
        f"{module.__name__}.{n}": v
        for n, v in vars(module).items()
        if not n.startswith("_") and not isinstance(v, ModuleType) and n not in VALUES
    }


PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]
PACKAGES = [name for name in PACKAGES if "._" not in name]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_its_public_names(name):
    """What `help` and `import *` show. A new name is written twice: imported, and in `__all__`."""
    module = importlib.import_module(name)
    names = {n.removeprefix(f"{name}.") for n in public(module)} - {"TYPE_CHECKING"}
    if name == "fkd":
        names |= VALUES | {"__version__"}
    listed = {n for n in module.__all__ if not isinstance(getattr(module, n), ModuleType)}
    assert listed == names
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("name", public(fkd) | public(fkd.losses))
def test_public_names_are_documented_with_an_example(name):
    value = (public(fkd) | public(fkd.losses))[name]
    text = inspect.getdoc(value) or ""
    assert len(text.splitlines()[0]) > 10
    assert ">>>" in text or name in WITHOUT_EXAMPLE


@pytest.mark.parametrize("name", public(fkd.loops) | public(fkd.adapters))
def test_names_of_loops_and_adapters_are_documented(name):
    value = (public(fkd.loops) | public(fkd.adapters))[name]
    assert len((inspect.getdoc(value) or "").splitlines()[0]) > 10


def test_the_exceptions_exist():
    known = public(fkd) | public(fkd.losses)
    assert set(known) >= WITHOUT_EXAMPLE
    assert not [n for n in WITHOUT_EXAMPLE if ">>>" in (inspect.getdoc(known[n]) or "")]


def test_no_file_has_the_marks_of_a_merge():
    marks = tuple(mark * 7 for mark in "<>")
    for path in sorted(ROOT.parent.rglob("*")):
        if path.suffix in (".py", ".md", ".toml", ".yml", ".cff") and ".venv" not in path.parts:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [line for line in lines if line.startswith(marks)], path


def test_protocols_can_be_checked_at_run_time():
    for tree in TREES.values():
        classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        protocols = [c for c in classes if "Protocol" in map(ast.unparse, c.bases)]
        for protocol in protocols:
            assert "runtime_checkable" in map(ast.unparse, protocol.decorator_list), protocol.name
