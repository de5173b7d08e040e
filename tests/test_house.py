"""The house holds its form: imports point downwards, heavy libraries load late, files and functions stay short."""

import ast
import re

import pytest
from conftest import ROOT

STAGES = ("generate", "label", "train_student", "score_ood", "evaluate", "report")
HEAVY = {"torch", "transformers", "vllm", "sklearn", "matplotlib", "jinja2", "markupsafe"}
LAYERS = (  # of gold/, from below: a file imports only from the layers under its own
    "causes command control_tokens equations fingerprint programmes templates text",
    "disk figures model_folder near_duplicates nearest reasoning scores stopping task_checks",
    "task",
    "attempts encoding engine jsonl metrics prompts runs soft_labels",
    "engines examples gather parsing serve server student",
    "answers cards feedback predict retrieval sections selection teacher",
    "journal remote_labels",
    "labels",
    "calibration page split trainer tuning",
)
FILES = [ROOT / f"{stage}.py" for stage in STAGES] + sorted((ROOT / "gold").glob("*.py"))


def imports_of(node: ast.AST) -> set[str]:
    """The modules that are imported anywhere in a piece of code: `torch`, `gold.jsonl` ..."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and inner.module == "gold":
            found |= {f"gold.{alias.name}" for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom):
            found.add(inner.module)
    return found


def functions_of(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_length(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_keeps_to_its_place_and_length(path):
    text = path.read_text(encoding="utf-8")
    tree, is_stage = ast.parse(text), path.parent == ROOT
    # Arrows
    imported = {name for name in imports_of(tree) if name.split(".")[0] in {"gold", "data", "bench", *STAGES}}
    if is_stage:
        assert all(name.startswith("gold.") for name in imported), f"a stage imports only gold: {imported}"
    elif path.name != "__init__.py":
        layer = {f"gold.{name}": depth for depth, names in enumerate(LAYERS) for name in names.split()}
        mine = layer[f"gold.{path.stem}"]
        assert all(layer.get(name, 99) < mine for name in imported), f"{path.stem} stands in {mine}: {imported}"
    # A name is imported from the file that defines it
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("gold.")):
        source = (ROOT / f"{node.module.replace('.', '/')}.py").read_text(encoding="utf-8")
        defined = re.findall(r"^(?:def |class )?(\w+)\b", source, re.M)
        assert {alias.name for alias in node.names} <= {*defined}, f"{node.module} does not define all of {path.stem}'s"
    assert not re.search(r"^ *\):  # (?!fmt)", text, re.M), "a comment that the formatter broke: give it a line"
    # Libraries that take seconds
    late = imports_of(
        ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
    )
    early = {name for name in late if name.split(".")[0] in HEAVY}
    assert not early or path.name == "trainer.py", f"imported at the top: {early}"
    # Lengths: ruff holds code at 120; help texts and messages stand whole
    assert max(map(len, text.splitlines()), default=0) <= 128
    assert len(text.splitlines()) <= (350 if is_stage else 300)
    long = {f"{f.name}: {body_length(f)}" for f in functions_of(tree) if body_length(f) > 60}
    assert not long, long
    # No function changes the variables of another
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Nonlocal | ast.Global)]


def test_the_layers_name_the_files_of_gold():
    named = [name for names in LAYERS for name in names.split()]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "gold").glob("*.py") if path.stem != "__init__")


def test_the_docs_name_tests_that_exist():
    defined = {name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    for path in ROOT.glob("docs/*.md"):
        named = re.findall(r"(?:::|, )(test_\w+)", path.read_text())
        assert set(named) <= defined, f"{path}: {set(named) - defined}"


def test_top_level_holds_the_stages_alone():
    assert {path.stem for path in ROOT.glob("*.py")} == set(STAGES)
