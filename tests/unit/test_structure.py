"""Holds the repository to its own rules: imports, short scripts, the tests' places, no unsafe loads, no machine paths.

Each checker is a function of source text, tested on a made-up offender first, so that none can pass always.
"""

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipelines", "models", "train", "tools")
TEST_MODULES = {"tests", "unit", "runs", "drills", "studies", "helpers"}  # the folder, and the modules on its path
FORBIDDEN = {  # CONTRIBUTING's table: nothing imports tools or the tests' modules
    "pipelines": {"models", "train", "tools"} | TEST_MODULES,
    "models": {"pipelines", "train", "tools"} | TEST_MODULES,
    "train": {"tools"} | TEST_MODULES,
    "tools": TEST_MODULES,
}
BUILT = ("build", "dist")  # by pip, and ignored by git
ENTRY_SCRIPTS = ("distill", "teacher", "router", "cache_logits", "evaluate", "predict")
ENTRY_MODULES = {f"train.{name}" for name in ENTRY_SCRIPTS}
ENTRY_LINES = 135
COMMANDS = (
    "bench",
    "compare",
    "convert",
    "demo",
    "figures",
    "find_lr",
    "logits",
    "report",
    "reproduce",
    "sweep",
)  # programs in tools/ that are run by name
COMMAND_LINES = 120
SCRIPTS = ENTRY_MODULES | {f"tools.{name}" for name in COMMANDS}
UNSAFE_LOADS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.load",
    "marshal.loads",
    "torch.load",
}
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|farm|root|tmp|nas|home/\w+)/\w")
# References to how or by whom the work was organised: the code must stand on its own.
ORIGINS = re.compile(
    r"(?i)\b(?:issues?|checks?|tasks?)\s+#?\d|\b(?:issue|task) asks\b|\b(?:sub)?agents?\b|\bchat session"
)
TESTS_OF_NO_MODULE = {
    "test_docs_method": "docs/method.md is no module",
    "test_structure": "is about all of them",
    "tools/test_setup": "tools/setup.sh, tools/test.sh and tools/demo.sh are no modules",
}
TEXT_SUFFIXES = {".py", ".sh", ".yaml", ".yml", ".md", ".cfg", ".toml", ".txt", ""}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a module of `package`; dynamic ones by literal name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, module) for module in dynamic(node))


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from ... import` in a module of `package` imports from."""
    parents = package.split(".")
    prefix = parents[: len(parents) - node.level + 1] if node.level else []
    return ".".join([*prefix, *([node.module] if node.module else [])])


def dynamic(node: ast.Call) -> list[str]:
    """The module of `importlib.import_module("a.b")`."""
    if not dotted(node.func).endswith(("import_module", "__import__")):
        return []
    return [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]


def import_violations(source: str, package: str) -> list[str]:
    top = package.split(".")[0]
    return sorted(
        {
            f"line {line}: {package} imports {module}"
            for line, module in imported(source, package)
            if module.split(".")[0] in FORBIDDEN[top] or module in SCRIPTS
        }
    )


def import_circles(modules: dict[str, str]) -> list[list[str]]:
    """Sets of modules that import each other, directly or through others, anywhere in their text; modules: {name: source}.

    `from package import name` is an import of the module package.name if there is one, and of the package's own otherwise.
    """
    graph = {name: _imports_of(name, source, modules) for name, source in modules.items()}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:  # Tarjan's strongly connected components
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            circle = stack[stack.index(name) :]
            del stack[-len(circle) :]
            if len(circle) > 1 or name in graph[name]:
                found.append(sorted(circle))

    for name in modules:
        if name not in number:
            visit(name)
    return found


def _imports_of(name: str, source: str, modules: dict[str, str]) -> set[str]:
    is_package = any(other.startswith(f"{name}.") for other in modules)
    package = name if is_package else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            found |= {one if (one := f"{base}.{alias.name}") in modules else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):
            found |= set(dynamic(node))
    return found & set(modules)


def names_of_modules(packages: tuple[str, ...]) -> dict[str, str]:
    """{dotted name: source} of all modules; a package's own is its __init__.py."""
    found = {}
    for path in (path for package in packages for path in sources(package)):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def without_a_module(tests: list[str], modules: set[str]) -> list[str]:
    """Tests `a/b/test_c` below tests/unit whose module or package a.b.c does not exist."""
    return [test for test in tests if test.replace("/test_", "/").replace("/", ".") not in modules]


def aliases(tree: ast.Module) -> dict[str, str]:
    """{local name: what it stands for} of all imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def unsafe_loads(source: str) -> list[str]:
    """Calls that would run code found in a file: pickle, torch.load without weights_only, numpy with allow_pickle."""
    tree, found = ast.parse(source), []
    names = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = dotted(node.func).partition(".")
        name = ".".join(filter(None, [names.get(first, first), rest]))
        safe_torch = name == "torch.load" and is_true(node, "weights_only")
        if (name in UNSAFE_LOADS and not safe_torch) or is_true(node, "allow_pickle"):
            found.append(f"line {node.lineno}: {name}")
    return found


def machine_paths(text: str) -> list[str]:
    return [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def repository_texts() -> list[Path]:
    folders = [*PACKAGES, "configs", "tests", "docs", ".ci"]
    files = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    # In a second working tree .git is a file that contains a path.
    left_out = (Path(__file__), ROOT / ".git")
    return sorted(path for path in files if path.is_file() and path.suffix in TEXT_SUFFIXES and path not in left_out)


@pytest.mark.parametrize(
    ("package", "source", "offender"),
    [
        ("pipelines", "import train.loop", "train.loop"),
        ("pipelines", "def f():\n    from models import registry as r", "models"),
        ("pipelines.logits", "from train.objectives import losses", "train.objectives.losses"),
        ("pipelines", "import importlib\nimportlib.import_module('models.resnet')", "models.resnet"),
        ("models", "from pipelines.errors import UserError", "pipelines.errors"),
        ("train", "from tools.convert import main", "tools.convert"),
        ("train", "from train import distill", "train.distill"),
        ("train", "from . import evaluate", "train.evaluate"),
        ("tools", "import train.cache_logits", "train.cache_logits"),
        ("tools.paper", "from tools import convert", "tools.convert"),
        ("tools.paper", "def f():\n    from ..logits import main", "tools.logits"),
        ("pipelines", "from tools import cifar", "tools"),
        ("tools", "from helpers.launch import run", "helpers.launch"),
        ("train", "import tests.drills", "tests.drills"),
    ],
)
def test_import_checker_sees_offenders(package: str, source: str, offender: str) -> None:
    assert any(found.endswith(f"imports {offender}") for found in import_violations(source, package))


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("pipelines.logits", "from ..errors import UserError\nfrom . import codec"),
        (
            "train",
            "from pipelines import records\nfrom train.evaluation import evaluate\nimport models.registry",
        ),
        ("tools", "import train.loop, models, pipelines.records"),
        ("models", "import training_tools, torch\nfrom trainer import tools"),
    ],
)
def test_import_checker_admits_the_table(package: str, source: str) -> None:
    assert import_violations(source, package) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_table(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        module = ".".join(path.relative_to(ROOT).parent.parts)
        assert import_violations(path.read_text(), module) == [], path


def test_the_table_covers_all_code() -> None:
    """Every Python file lies in an installed package of the table, or is a test; CONTRIBUTING.md says so too."""
    ours = [
        path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    written = {"exports"}  # by commands of the pages: an export holds its own load.py
    assert {path.relative_to(ROOT).parts[0] for path in ours} - written == {*PACKAGES, "tests"}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {".".join(path.relative_to(ROOT).parent.parts) for package in PACKAGES for path in sources(package)}
    assert setup["options"]["packages"] == "find:"
    assert setup["options.packages.find"]["include"].split() == [f"{package}*" for package in PACKAGES]
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").is_file() for folder in folders)
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert rows == [*PACKAGES, "configs", "tests"]


@pytest.mark.parametrize(
    ("modules", "circle"),
    [
        (
            {"p.a": "import p.b", "p.b": "def f():\n    from p import c", "p.c": "from p.a import x"},
            ["p.a", "p.b", "p.c"],
        ),
        ({"p": "from p.a import x", "p.a": "from p import x"}, ["p", "p.a"]),
        ({"p": "", "p.a": "from . import b", "p.b": "from .a import x"}, ["p.a", "p.b"]),
        ({"p": "from p.a import x", "p.a": "from p import b", "p.b": ""}, None),
        ({"p.a": "import p.b, torch", "p.b": "from q import c", "p.c": "import p.a"}, None),
    ],
)
def test_circle_checker_sees_offenders(modules: dict[str, str], circle: list[str] | None) -> None:
    assert import_circles(modules) == ([circle] if circle else [])


def test_no_module_imports_in_a_circle() -> None:
    modules = names_of_modules(PACKAGES)
    assert "pipelines.logits.reader" in modules and "train.run" in modules
    assert import_circles(modules) == []


def test_the_tests_lie_as_the_product_does() -> None:
    """tests/unit/a/b/test_c.py is about a/b/c.py, or about the folder a/b/c."""
    assert without_a_module(["a/test_b", "a/test_c", "test_a"], {"a", "a.b"}) == ["a/test_c", "test_a"]
    unit = ROOT / "tests" / "unit"
    tests = [path.relative_to(unit).with_suffix("").as_posix() for path in sorted(unit.rglob("test_*.py"))]
    assert without_a_module(tests, set(names_of_modules(PACKAGES))) == sorted(TESTS_OF_NO_MODULE)


def test_no_text_says_who_ordered_or_did_the_work() -> None:
    made_up = (" ".join(["See", "issue", "7"]), " ".join(["#", "check", "3:"]), "an" + " agent")
    assert all(ORIGINS.search(text) for text in made_up)
    assert not any(ORIGINS.search(text) for text in ("it checks them", "ignore[reportAttributeAccessIssue]"))
    for path in repository_texts():
        found = [line for line in path.read_text(errors="replace").splitlines() if ORIGINS.search(line)]
        assert found == [], path


def test_the_command_lines_are_those_of_the_table() -> None:
    assert {path.stem for path in sources("tools") if '"__main__"' in path.read_text()} == set(COMMANDS)
    assert all((ROOT / "tools" / f"{name}.py").is_file() for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_lines_are_short(name: str) -> None:
    """They read the command line and report the outcome; the folders beside them do the work."""
    lines = (ROOT / "tools" / f"{name}.py").read_text().splitlines()
    assert 0 < len(lines) <= COMMAND_LINES


def test_the_entry_scripts_are_those_of_the_table() -> None:
    """Scripts run by name put the repository's root first on the path before they import anything of ours."""
    scripts = {path.stem: path.read_text() for path in sources("train") if "__main__" in path.read_text()}
    assert set(scripts) == set(ENTRY_SCRIPTS)
    for name, text in scripts.items():
        guard = text.index("sys.path[0] = str(Path(__file__).resolve().parents[1])")
        lines = [number for number, module in imported(text, "train") if module.split(".")[0] in PACKAGES]
        assert lines and text[:guard].count("\n") + 1 < min(lines), name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import load as read\nread(f)",
        "import torch\ntorch.load(f)",
        "from torch import load\nload(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
    ],
)
def test_unsafe_load_checker_sees_offenders(source: str) -> None:
    assert len(unsafe_loads(source)) == 1


def test_unsafe_load_checker_admits_safe_loads() -> None:
    restricted = "import pickle\nclass Only(pickle.Unpickler): ...\nOnly(f).load()"
    assert unsafe_loads(f"{restricted}\nimport torch, json\ntorch.load(f, weights_only=True)\njson.load(f)") == []


def test_no_unsafe_loads() -> None:
    for path in (path for package in PACKAGES for path in sources(package)):
        assert unsafe_loads(path.read_text()) == [], path


def unknown_modules(text: str) -> list[str]:
    """Modules of ours that a text imports, in code, in a string or in a page, and that do not exist."""
    named = re.findall(r"\b(?:from|import) ((?:pipelines|models|train|tools)(?:\.\w+)+)", text)
    return [
        one for one in named if not any((ROOT / one.replace(".", "/")).with_suffix(end).exists() for end in ("", ".py"))
    ]


def test_every_module_that_is_named_exists() -> None:
    """Programs within strings and pages too: nothing else looks at those before they run."""
    gone = "train." + "no_such_module"
    assert unknown_modules(f"code = 'from {gone} import x'") == [gone] and not unknown_modules(
        "from train.loop import fit"
    )
    offenders = {path: unknown_modules(path.read_text(errors="replace")) for path in repository_texts()}
    assert not {path: found for path, found in offenders.items() if found}


def test_every_page_is_in_the_index_of_the_pages() -> None:
    docs = ROOT / "docs"
    named = re.findall(r"\]\(([\w/]+\.md)\)", (docs / "README.md").read_text())
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {"README.md"}
    assert pages == set(named) and len(named) == len(pages)


def test_no_machine_paths() -> None:
    made_up = "/".join(["", "home", "someone", "data"])
    assert machine_paths(f'x = "{made_up}"') and not machine_paths('x = root / "home/someone"; y = "$HOME/tmp/x"')
    texts = repository_texts()
    assert ROOT / "setup.cfg" in texts and ROOT / ".ci" / "run" in texts
    for path in texts:
        assert machine_paths(path.read_text(errors="replace")) == [], path


def test_the_files_that_are_started_first_exist() -> None:
    (names,) = re.findall(r"^LONGEST = (\(.*?^\))", (ROOT / "tests/conftest.py").read_text(), re.MULTILINE | re.DOTALL)
    longest = ast.literal_eval(names)
    assert longest and all((ROOT / "tests" / name).is_file() for name in longest)


@pytest.mark.parametrize("name", ENTRY_SCRIPTS)
def test_entry_scripts_are_short(name: str) -> None:
    lines = (ROOT / "train" / f"{name}.py").read_text().splitlines()
    assert 0 < len(lines) <= ENTRY_LINES


def test_the_loop_knows_no_teacher() -> None:
    """The objective owns the teacher or the cache; the loop must work for any objective."""
    text = (ROOT / "train" / "loop.py").read_text()
    assert text and "teacher" not in text.lower()
