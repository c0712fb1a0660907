"""The rules of the house, enforced: who imports whom, sizes, and what must not appear."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("grpo", "adapter", "symbols", "tests", "benchmarks", "examples")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
SOURCES.append(ROOT / "train.py")
PACKAGES = ("grpo", "adapter", "symbols")
MAY_IMPORT = {"grpo": set(), "adapter": {"grpo", "symbols"}, "symbols": {"adapter", "grpo"}}
GROUND = {"run": set(), "ranks": set(), "speed": set(), "guards": {"run", "ranks", "speed"}}  # of grpo: who may use whom
ALGORITHM = ("types", "config", "trainer", "rollout", "advantage", "batch", "logprob", "loss", "update", "evaluate",
             "policy", "sampler")
OURS = (*PACKAGES, "train")


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports; the linter bans relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} if node.module not in OURS else {f"{node.module}.{a.name}" for a in node.names}
    return names


def imports_of_ours(path: Path) -> set[Path]:
    """The files of ours that a file imports, those for annotations alone left out."""
    tree, found = ast.parse(path.read_text()), set()
    annotations = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in annotations for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                whole, part = (ROOT / name.replace(".", "/") for name in (node.module, f"{node.module}.{alias.name}"))
                found.add(next(p for p in (part.with_suffix(".py"), whole.with_suffix(".py"), whole / "__init__.py")
                               if p.is_file()))
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package):
    """symbols -> adapter -> grpo, and nothing imports train.py."""
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            if name.split(".")[0] in OURS:
                assert name.split(".")[0] in MAY_IMPORT[package] | {package}, f"{path.name} imports {name}"


def test_no_file_imports_itself_by_way_of_others():
    """Not even inside a function. A circle of folders, the files at the top of a package apart, is one too."""
    files = {p: imports_of_ours(p) for p in SOURCES if p.relative_to(ROOT).parts[0] in PACKAGES}
    rooms = {p: p.parent for p in files if len(p.relative_to(ROOT).parts) > 2 and p.name != "__init__.py"}
    between = {(rooms[p], rooms[q]) for p in rooms for q in files[p] & rooms.keys() if rooms[p] != rooms[q]}
    assert {(a, b) for a, b in between if (b, a) in between} == set()
    while leaves := {p for p, of in files.items() if not of & files.keys() - {p}}:
        files = {p: of for p, of in files.items() if p not in leaves}
    assert [str(p.relative_to(ROOT)) for p in files] == []


@pytest.mark.parametrize("room", GROUND)
def test_the_rooms_of_grpo_stand_on_the_ground(room):
    """run/, ranks/ and speed/ know the nouns and the settings alone; guards/ knows them, the policy and the engine too."""
    top = {"grpo.types", "grpo.config"}
    top |= {"grpo.policy", "grpo.sampler", "grpo.update"} if room == "guards" else set()
    for path in (ROOT / "grpo" / room).glob("*.py"):
        for name in imported(path):
            rooms = {f"grpo.{other}" for other in GROUND[room] | {room}}
            assert not name.startswith("grpo") or name in top or any(name.startswith(r) for r in rooms), f"{path}: {name}"


def test_the_corrector_knows_no_arithmetic_in_signs():
    """The minus sign of a printed number is none of an expression's."""
    for path in (ROOT / "adapter").rglob("*.py"):
        assert not set(path.read_text(encoding="utf-8")) & set("×÷θαγβ"), path
        assert "−" not in path.read_text(encoding="utf-8") or path.name == "number.py"


def test_arithmetic_imports_only_the_standard_library():
    import sys

    for path in (ROOT / "symbols" / name for name in ("expression.py", "generate.py")):
        assert {n.split(".")[0] for n in imported(path)} <= set(sys.stdlib_module_names) | {"symbols"}


def test_files_and_functions_stay_small():
    lines = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in SOURCES}
    longest = sorted(lines.items(), key=lambda kv: -kv[1])[:5]
    algorithm = sum(lines[Path("grpo") / f"{name}.py"] for name in ALGORITHM)
    print("longest:", ", ".join(f"{p} {n}" for p, n in longest), "| read in one sitting:", algorithm, "of 1800")
    assert longest[0][1] <= 250
    assert all(len(p.read_text().splitlines()) <= 250 for p in (ROOT / "grpo" / "report").iterdir() if p.is_file())
    assert lines[Path("train.py")] <= 100
    assert algorithm <= 1800
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is longer than 60 lines"


def test_public_functions_and_modules_have_docstrings():
    for path in SOURCES:
        if path.parts[-2] == "tests":
            continue
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_nothing_swallows_errors_or_runs_data():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("eval", "exec", "torch.load"), f"{path.name}:{node.lineno}"
        assert "pickle" not in imported(path)


def test_no_test_asserts_a_time():
    """A busy machine is no fault; times live in benchmarks/."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                read = {of.attr for of in ast.walk(node) if isinstance(of, ast.Attribute)}
                assert not read & {"monotonic", "perf_counter"}, f"{path.name}:{node.lineno}"


def test_every_text_file_names_its_encoding():
    """A locale's own may know no γ. The linter's rule sees only what it knows to be a path."""
    for path in (p for p in SOURCES if "tests" not in p.relative_to(ROOT).parts):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.endswith((".read_text", ".write_text", ".open", ".fdopen")) or name == "open":
                binary = any(re.fullmatch("[rwxa+]*b[+]?", str(getattr(arg, "value", ""))) for arg in node.args)
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                other = name in ("os.open", "gzip.open", "Image.open")
                assert binary or named or other, f"{path.name}:{node.lineno}: {name}"


def test_rivals_are_not_imported():
    for path in SOURCES:
        if path.parts[-2] != "benchmarks":
            assert not {n.split(".")[0] for n in imported(path)} & {"trl", "unsloth", "verl"}, path


def test_the_readme_names_every_file_of_the_tree():
    readme = (ROOT / "README.md").read_text()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py" and path.parent.name not in ("report", "compare"):  # named as folders
                assert re.search(rf"\b{re.escape(path.name)}\b", readme), f"README's tree lacks {path.relative_to(ROOT)}"


def test_the_readmes_proofs_exist():
    readme = (ROOT / "README.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", readme)
    assert len(named) > 8
    assert [name for name in named if f"def {name}(" not in tests] == []
    assert [name for name in re.findall(r"\btest_\w+\.py", readme) if not (ROOT / "tests" / name).is_file()] == []
