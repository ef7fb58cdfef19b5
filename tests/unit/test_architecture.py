"""The shape of the package: imports point one way, and the network is reached through one package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import CHECKOUT

PACKAGE = CHECKOUT / "mpisparse"

#: Rooms, in the order in which they may import: each from those before it alone.
ORDER = [
    "version", "errors", "files", "words", "terminal", "arguments", "names", "faults", "phases", "random",
    "sparse", "sampler", "kernels", "tensors", "comparable", "sparsifiers", "memory", "wire", "comm", "metrics",
    "loading", "flat", "rows", "collectives", "exchange", "preflight", "combinations", "rehearsal", "overlap",
    "replicas", "divergence", "optim", "shard", "checkpoint", "runtime", "training", "bench", "tools", "cli",
]  # fmt: skip


#: Rooms of the analysis, likewise.
ANALYSIS_ORDER = [
    "files", "terminal", "load", "find", "method", "markdown", "table", "web", "columns", "waiting", "brief", "many",
    "bootstrap", "drawing", "study", "model", "scaling", "export", "report", "compare", "tail", "paper", "__main__",
]  # fmt: skip


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the modules that a file imports, full names."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.removeprefix("mpisparse.").split(".")[0]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if here == "__init__":
        return
    for module in imports(path):
        if module.startswith("mpisparse.") and room(module) != here:
            assert room(module) in ORDER, f"{module} is in no room"
            assert ORDER.index(room(module)) < ORDER.index(here), f"{path} imports {module}"


def test_imports_of_the_analysis_point_one_way() -> None:
    root = CHECKOUT / "analysis"
    for path in root.rglob("*.py"):
        here = path.relative_to(root).with_suffix("").parts[0]
        for module in imports(path):
            if module.startswith("analysis.") and (there := module.split(".")[1]) != here:
                assert ANALYSIS_ORDER.index(there) < ANALYSIS_ORDER.index(here), f"{path} imports {module}"
    paper = root / "paper"
    assert not any(".report." in module for path in paper.rglob("*.py") for module in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_mpi4py_is_imported_by_comm_alone(path: Path) -> None:
    if path.parent.name != "comm":
        assert not any(module.split(".")[0] == "mpi4py" for module in imports(path))


@pytest.mark.parametrize("package", ["sparsifiers", "memory"])
def test_siblings_do_not_import_siblings(package: str) -> None:
    shared = {"base", "density"}
    for path in (PACKAGE / package).glob("*.py"):
        if path.stem == "__init__":
            continue
        siblings = {m.split(".")[2] for m in imports(path) if m.startswith(f"mpisparse.{package}.")}
        assert siblings <= shared, f"{path} imports {siblings - shared}"


def test_raw_collectives_are_called_in_one_file() -> None:
    """Allgatherv and its kind check nothing themselves: the guarded communicator is the only caller."""
    for path in FILES:
        calls = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        if path != PACKAGE / "comm" / "mpi.py":
            raw = {"Allgatherv", "Allgather", "Alltoallv", "Allreduce", "Bcast", "Iallgather", "Iallgatherv"}
            assert not calls & raw, path


#: Where text may go to a terminal without `say` or a `Screen`: these themselves, and a rank that dies, which escape it.
DOORS = {"mpisparse/terminal.py", "mpisparse/comm/abort.py", "mpisparse/comm/limit.py", "analysis/terminal.py"}


def test_text_reaches_terminals_through_one_door() -> None:
    """What prints in another way would follow the markup and escapes in names; JSON alone has escaped them itself."""
    for path in [*FILES, *(CHECKOUT / "analysis").rglob("*.py"), *(CHECKOUT / "jobs").rglob("*.py")]:
        if str(path.relative_to(CHECKOUT)) in DOORS:
            continue
        raw = {"print", "sys.stdout.write", "sys.stderr.write"}
        raw |= {"Console"} if "rich.console.Console" in imports(path) else set()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in raw, path
            if called == "click.echo":
                assert ast.unparse(node.args[0]).startswith(("json.dumps", "text")), path


def test_importing_the_package_does_not_start_mpi() -> None:
    """Analysis, job scripts and DataLoader workers import it where no MPI may be started."""
    for path in FILES:
        if path.parent.name != "comm":
            assert "mpisparse.comm.mpi" not in {m.rpartition(".")[0] for m in imports(path)}, path
    top = imports(PACKAGE / "comm" / "__init__.py", top_level_only=True)
    assert not any("mpi4py" in module or module.startswith("mpisparse.comm.mpi") for module in top)


#: The one reader of pickles, which runs nothing: it only names its own stand-ins (tests/unit/test_data_cifar10.py).
UNPICKLER = PACKAGE / "training" / "data" / "formats" / "pickled.py"
#: Modules that run what a file says.
RUN_FILES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}


def risks(source: str) -> list[str]:
    """Return what in a module could run code that a file brings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in RUN_FILES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.split(".")[0] in RUN_FILES]
            found += [
                name for name in names if name in ("torch.load", "numpy.load", "torch.jit.load", "numpy.fromfile")
            ]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            found += [name] * (name in ("eval", "exec", "compile", "__import__", "torch.jit.load", "torch.hub.load"))
            found += [name] * (name.endswith("torch.load") and words.get("weights_only") != "True")
            found += [name] * (name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_read_that_could_run_code(path: Path) -> None:
    """No pickle, torch.load and numpy.load only in the form that refuses it, and nothing that is read is evaluated."""
    assert risks(path.read_text()) == (["pickle"] if path == UNPICKLER else [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch, _pickle as p",
        "from pickle import loads",
        "import dill.session",
        "from torch import load",
        "def f(x):\n    return torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "np.load(x)",
        "numpy.load(x, allow_pickle=True)",
        "torch.jit.load(x)",
        "eval(text)",
    ],
)
def test_a_risk_is_seen(source: str) -> None:
    assert risks(source)
    assert not risks("torch.load(x, weights_only=True); np.load(x, allow_pickle=False); re.compile(x)")


def test_the_unpickler_decides_about_every_name_itself() -> None:
    tree = ast.parse(UNPICKLER.read_text())
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    }
    assert used == {"Unpickler", "UnpicklingError"}
    (derived,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
    ]
    assert [part.name for part in derived.body if isinstance(part, ast.FunctionDef)] == ["find_class"]


def test_jobs_read_studies_and_import_no_more() -> None:
    """It runs on login nodes, where no MPI may be started."""
    allowed = {
        "mpisparse.errors",
        "mpisparse.files",
        "mpisparse.terminal",
        "mpisparse.words",
        "mpisparse.runtime.runlog",
        "mpisparse.training.section",
        "mpisparse.training.study",
        "mpisparse.training.sweepfiles",
    }
    for path in sorted((CHECKOUT / "jobs").glob("*.py")):
        ours = {module.rpartition(".")[0] for module in imports(path) if module.startswith("mpisparse.")}
        assert ours <= allowed, f"{path} imports {ours - allowed}"
