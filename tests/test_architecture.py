"""The house rules that source code can be read for: who imports whom, what is never called, how long a file may be.

Imports point down: `ORDER` lists the files at the top of the package and its folders from the bottom up. A module may
import those of earlier rows and of its own folder, and nothing else of autoseg.
"""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autoseg"
MAX_LINES = 400  # of a file
MAX_FUNCTION_LINES = 60  # with its docstring
MAX_PARAMETERS = 8  # without self
MAX_CALLING_LINES = 15  # of the body of a function of the Python interface: it reads its keywords and calls a command

# Functions above a limit. These lists shrink and never grow: a function that keeps to the limit is taken off.
TOO_LONG: set[str] = set()
TOO_MANY_PARAMETERS = {
    "augmentation.chain.DeviceChain.__init__",
    "nn.networks.__init__.build_network",
    "nn.networks.deeplab.DeepLab.__init__",
    "nn.networks.segformer.SegFormer.__init__",
    "nn.networks.swin_unet.SwinUNet.__init__",
    "nn.networks.transunet.TransUNet.__init__",
}

# From the bottom up: files at the top of the package, and folders.
ORDER: list[set[str]] = [
    {"errors"},
    {"plugins"},
    {"environment", "lines", "messages", "processes", "progress", "stopping", "workspace"},
    {"rules"},
    {"records"},
    {"imaging"},
    {"augmentation"},
    {"nn"},
    {"dataloading"},
    {"datasets"},
    {"planning"},
    {"preprocessing"},
    {"models"},
    {"training"},
    {"inference"},
    {"evaluation"},
    {"report"},
    {"serve"},
    {"commands"},
    {"launch"},
    {"demo"},  # runs the commands as a user would
    {"cli", "api"},
    {"__main__"},
]
STRANGERS = [{"dataloading", "nn"}]  # neither may import the other
TORCH_AT_TOP = {
    "augmentation.chain",
    "augmentation.deform",
    "augmentation.intensities",
    "augmentation.mixing",
    "nn",
    "dataloading.batches",
    "dataloading.shared_memory",
    "dataloading.stream",
    "dataloading.workers",
    "models",
    "training",
    "inference",
}
TORCH_NOWHERE = {
    "errors",
    "lines",
    "messages",
    "plugins",
    "processes",
    "progress",
    "records",
    "rules",
    "workspace",
    "imaging",
    "augmentation.presets",
    "planning.plan",
    "planning.plan_fields",
    "planning.planner",
    "preprocessing.cascade",
    "demo.blobs",
    "demo.phantom",
}

SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Imports(ast.NodeVisitor):
    """What one module imports: absolute names, and whether each is executed when the module is imported."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []
        self.inside = 0  # depth of functions and of `if TYPE_CHECKING`

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, not self.inside) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute here"
        self.found += [(f"{node.module}.{alias.name}", not self.inside) for alias in node.names]

    def visit_FunctionDef(self, node: ast.AST) -> None:
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.visit_FunctionDef(node)
        else:
            self.generic_visit(node)


def imports_of(source: str) -> list[tuple[str, bool]]:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.found


def room_of(module: str) -> str:
    """`imaging.labels` stands in the room `imaging`; `records` in one of its own."""
    return module.split(".")[0]


def target_of(name: str, modules: set[str]) -> str | None:
    """The module of autoseg that an imported absolute name means, or None where it is somebody else's."""
    if name != "autoseg" and not name.startswith("autoseg."):
        return None
    inner = name.removeprefix("autoseg").removeprefix(".")
    while inner and inner not in modules and f"{inner}.__init__" not in modules:
        inner = inner.rpartition(".")[0]
    return inner or "__init__"


def forbidden_edges(sources: dict[str, str]) -> list[str]:
    """Imports that do not point down."""
    rank = {room: i for i, row in enumerate(ORDER) for room in row}
    found = []
    for module, source in sources.items():
        if module == "__init__":
            continue  # its names are loaded lazily, from anywhere
        room = room_of(module)
        if room not in rank:
            found.append(f"{module}: give it a place in ORDER")
            continue
        for name, _ in imports_of(source):
            target = target_of(name, set(sources))
            if target is None or name == "autoseg.__version__":
                continue
            goal = room_of(target)
            if goal == "__init__" or rank.get(goal, len(ORDER)) > rank[room]:
                found.append(f"{module} imports {name}, which stands above it")
            elif goal != room and {goal, room} in STRANGERS:
                found.append(f"{module} imports {name}, and neither may know the other")
    return found


def misplaced_torch(sources: dict[str, str]) -> list[str]:
    """Imports of torch where a module must do without it, at its top or at all."""
    found = []
    for module, source in sources.items():
        for name, at_top in imports_of(source):
            if name.split(".")[0] != "torch" or TORCH_AT_TOP & {module, room_of(module)}:
                continue
            if at_top or TORCH_NOWHERE & {module, room_of(module)}:
                found.append(f"{module} imports {name}")
    return found


def dangerous_calls(source: str) -> list[str]:
    """What could run code that stands in a data file, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pydoc"}
            found += [f"line {line}: import {name}" for name in names if name.split(".")[0] in banned]
        if isinstance(node, ast.Attribute) and node.attr in ("extractall", "locate"):
            found.append(f"line {line}: .{node.attr}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        values = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"):
            found.append(f"line {line}: {called}(")
        if values.get("shell", "False") != "False" or values.get("allow_pickle", "False") != "False":
            found.append(f"line {line}: {ast.unparse(node)}")
        if (
            called in ("torch.load", "torch.hub.load", "load_state_dict_from_url")
            and values.get("weights_only") != "True"
        ):
            found.append(f"line {line}: {called} without weights_only=True")
    return found


@functools.cache
def functions_in(source: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module by its name, those of classes as `Class.name`, those of functions as `name.inner`."""
    found = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = getattr(child, "name", "") if isinstance(child, DEFINITIONS) else ""
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[f"{prefix}{name}"] = child
            visit(child, f"{prefix}{name}." if name else prefix)

    visit(ast.parse(source), "")
    return found


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line of the body."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def calling_lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body below the docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or first.lineno) - first.lineno + 1


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many values a call can be given, without self or cls; `*args` and `**kwargs` are one each."""
    arguments = function.args
    named = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    own = named[:1] in (["self"], ["cls"])
    return len(named) - own + len(arguments.kwonlyargs) + bool(arguments.vararg) + bool(arguments.kwarg)


def too_long(sources: dict[str, str]) -> set[str]:
    """Functions of more lines than may be; those of the Python interface, most of which explain keywords, apart."""
    return {
        f"{module}.{name}"
        for module, source in sources.items()
        for name, function in functions_in(source).items()
        if (calling_lines_of(function) > MAX_CALLING_LINES if is_interface(module, function) else
            lines_of(function) > MAX_FUNCTION_LINES)
    }  # fmt: skip


def too_many_parameters(sources: dict[str, str]) -> set[str]:
    """Functions of more parameters than may be, without those of the Python interface, whose options are keywords."""
    return {
        f"{module}.{name}"
        for module, source in sources.items()
        for name, function in functions_in(source).items()
        if not is_interface(module, function) and parameters_of(function) > MAX_PARAMETERS
    }


def is_interface(module: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is one that users call: in `api`, and marked so."""
    return room_of(module) == "api" and any(ast.unparse(one) == "checked" for one in function.decorator_list)


# The package keeps the rules


def test_imports_point_down():
    assert forbidden_edges(SOURCES) == []


def test_imports_make_no_circle():
    """Modules of one row may import each other, but not around in a circle when they are imported."""
    graph = {
        module: {target_of(name, set(SOURCES)) for name, at_top in imports_of(source) if at_top} - {None, module}
        for module, source in SOURCES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_torch_is_imported_only_where_it_is_used():
    assert misplaced_torch(SOURCES) == []


def test_nothing_runs_code_from_data():
    assert {module: found for module, source in SOURCES.items() if (found := dangerous_calls(source))} == {}


def test_files_are_short_enough_to_be_read():
    lengths = {module: source.count("\n") for module, source in SOURCES.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("exceeding", "listed"),
    [(too_long, TOO_LONG), (too_many_parameters, TOO_MANY_PARAMETERS)],
    ids=["lines", "parameters"],
)
def test_functions_are_short_and_take_few_parameters(exceeding, listed):
    found = exceeding(SOURCES)
    assert found - listed == set(), "split these, or hand them something that holds several values"
    assert listed - found == set(), "these keep to the limit now: take them off the list"


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif("cli" not in SOURCES, reason="there is no command line yet")
def test_command_line_starts_without_torch():
    loaded = run_python("import sys, autoseg.cli; print(*sys.modules, sep='\\n')").split()
    assert "autoseg.cli" in loaded
    assert not {"torch", "scipy", "skimage", "SimpleITK", "nibabel", "matplotlib"} & set(loaded)


def test_networks_need_torch_and_numpy_alone():
    loaded = run_python("import sys, autoseg.nn.networks; print(*sys.modules, sep='\\n')").split()
    assert "torch" in loaded
    assert not {"scipy", "skimage", "SimpleITK", "nibabel", "matplotlib", "batchgenerators"} & set(loaded)


# The rules themselves: each is shown what it must catch, and what it must let pass


def edges(**modules: str) -> list[str]:
    return forbidden_edges({name.replace("__", "."): source for name, source in modules.items()})


@pytest.mark.parametrize(
    ("modules", "caught"),
    [
        ({"records": "from autoseg.errors import StateError", "errors": ""}, 0),
        ({"errors": "from autoseg.records import save", "records": ""}, 1),
        ({"errors": "import autoseg.records", "records": ""}, 1),
        ({"errors": "from autoseg import records", "records": ""}, 1),
        ({"errors": "def f():\n    from autoseg import records", "records": ""}, 1),  # late, but upwards all the same
        ({"training__train": "from autoseg.inference.predict import predict", "inference__predict": ""}, 1),
        ({"inference__predict": "from autoseg.training.train import train", "training__train": ""}, 0),
        ({"dataloading__stream": "from autoseg.nn.networks.unet import UNet", "nn__networks__unet": ""}, 1),
        ({"nn__blocks": "from autoseg.dataloading import store", "dataloading__store": ""}, 1),
        ({"nn__networks__unet": "from autoseg.nn.blocks import Block", "nn__blocks": ""}, 0),
        ({"nn__blocks": "from autoseg.planning.plan import Plan", "planning__plan": ""}, 1),
        ({"training__train": "from autoseg import __version__"}, 0),
        ({"training__train": "from autoseg import predict_images"}, 1),  # by way of the public names
        ({"commands__plan": "from autoseg.cli import main", "cli": ""}, 1),
        ({"training__train": "from autoseg.nonsense import x"}, 1),
        ({"nonsense": ""}, 1),  # a module without a place
        ({"training__train": "import autosegmentation, numpy.errors"}, 0),
    ],
)
def test_upward_imports_are_caught(modules, caught):
    assert len(edges(**modules)) == caught


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("cli", "import torch", True),
        ("cli", "from torch.nn import functional", True),
        ("cli", "def f():\n    import torch", False),
        ("cli", "if TYPE_CHECKING:\n    import torch", False),
        ("cli", "try:\n    import torch\nexcept ImportError:\n    pass", True),
        ("evaluation.evaluate", "import torch", True),
        ("imaging.resample", "def f():\n    import torch", True),
        ("dataloading.store", "import torch", True),
        ("dataloading.stream", "import torch", False),
        ("nn.blocks", "import torch", False),
        ("training.train", "import torch", False),
        ("cli", "import torchvision_like_name", False),
    ],
)
def test_misplaced_torch_is_caught(module, source, caught):
    assert bool(misplaced_torch({module: source})) == caught


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("eval('1')", True),
        ("exec(text)", True),
        ("model.eval()", False),
        ("import pickle", True),
        ("from pickle import loads", True),
        ("import cloudpickle as c", True),
        ("archive.extractall(folder)", True),
        ("archive.extract(member, folder)", False),
        ("pydoc.locate(name)", True),
        ("subprocess.run(command, shell=True)", True),
        ("subprocess.run(command, shell=flag)", True),
        ("subprocess.run(command)", False),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=strict)", True),
        ("torch.load(path, map_location='cpu', weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("yaml.load(text)", True),
        ("os.system(command)", True),
    ],
)
def test_dangerous_calls_are_caught(source, caught):
    assert bool(dangerous_calls(source)) == caught


def function_of(lines: int, parameters: str = "", decorated: str = "") -> str:
    return f"{decorated}def f({parameters}):\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("cli", function_of(60), set()),
        ("cli", function_of(61), {"cli.f"}),
        ("cli", "class A:\n" + "\n".join(f"    {line}" for line in function_of(61).splitlines()), {"cli.A.f"}),
        ("cli", "def g():\n" + "\n".join(f"    {line}" for line in function_of(60).splitlines()), {"cli.g"}),
        ("cli", "async " + function_of(61), {"cli.f"}),
        ("api.models", function_of(16, decorated="@checked\n"), set()),
        ("api.models", function_of(17, decorated="@checked\n"), {"api.models.f"}),
        ("api.models", "@checked\ndef f(" + "\n" * 99 + '):\n    """A.\n' + "\n" * 99 + '    """\n    g()', set()),
        ("api.models", function_of(61), {"api.models.f"}),
        ("cli", function_of(61, decorated="@checked\n"), {"cli.f"}),
    ],
)  # fmt: skip
def test_long_functions_are_caught(module, source, caught):
    assert too_long({module: source}) == caught


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        (function_of(2, "a, b, c, d, e, f, g, h"), False),
        (function_of(2, "a, b, c, d, e, f, g, h, i"), True),
        (function_of(2, "self, a, b, c, d, e, f, g, h"), False),
        (function_of(2, "a, b, c, d, /, e, f, *, g, h, i"), True),
        (function_of(2, "a, b, c, d, e, f, g, h, *more"), True),
        (function_of(2, "a, b, c, d, e, f, g, h, **more"), True),
        (function_of(2, "a, b, c, d, e, f, g, h, i", "@checked\n"), True),  # not in `api`
    ],
)
def test_many_parameters_are_caught(source, caught):
    assert bool(too_many_parameters({"cli": source})) == caught
    assert not too_many_parameters({"api.models": "@checked\n" + source.removeprefix("@checked\n")})


def test_circle_is_caught():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


# Code that does not belong to the package


def importers_of_files(sources: dict[str, str]) -> set[str]:
    """Modules that could import a file by its path, or have plugins imported."""
    words = ("exec_module", "spec_from_", "SourceFileLoader", "runpy", "load_plugins", "import_plugins", "sys.path")
    return {module for module, source in sources.items() if any(word in source for word in words)}


def test_files_are_imported_for_the_command_line_alone():
    """`plugins` imports what `cli` was told to, and `processes` has the same done in its workers. Nobody else does."""
    assert importers_of_files(SOURCES) == {"plugins", "cli", "processes"}


def test_an_importer_of_files_is_caught():
    assert importers_of_files({"models.model": "load_plugins(plan.plugins)", "rules": "x = 1"}) == {"models.model"}
