"""The architecture: imports point one way, importing is cheap, files stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a module imports only modules before it.
ORDER = (
    "__init__",
    "errors",
    "sources",
    "files",
    "screening",
    "isolation",
    "specs",
    "text",
    "recurrent",
    "networks",
    "pipelines",
    "archives",
    "inference",
    "checkpoint",
    "runtimes",
    "streaming",
    "batching",
    "peers",
    "orders",
    "tabular",
    "outputs",
    "scoring",
    "jobs",
    "engines",
    "reports",
    "verification",
    "metrics",
    "modules",
    "functional",
    "interception",
    "tracing",
    "parts",
    "opinions",
    "properties",
    "freezing",
    "graphs",
    "textgraphs",
    "textcases",
    "int8",
    "quantization",
    "exporter",
    "footprint",
    "timing",
    "scenarios",
    "comparison",
    "pages",
    "plots",
    "tables",
    "deployment",
    "clients",
    "triton",
    "hub",
    "delivery",
    "inspection",
    "selftest",
    "facts",
    "diagnosis",
    "terminal",
    "arguments",
    "cli",
    "__main__",
)


def imports_of(path):
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in guarded:
            if node.module == "seqexport":
                yield from (alias.name if alias.name in ORDER else "__init__" for alias in node.names)
            elif node.module.startswith("seqexport."):
                yield node.module.split(".")[1]


MODULES = sorted(path.stem for path in (ROOT / "seqexport").glob("*.py"))


def test_every_module_has_its_place():
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_point_one_way(module):
    allowed = set(ORDER[: ORDER.index(module)])
    assert set(imports_of(ROOT / "seqexport" / f"{module}.py")) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_named_like_a_public_function(module):
    import seqexport

    assert module not in seqexport.__all__


def test_the_package_reaches_neither_up_to_training_nor_to_the_demo():
    for path in (ROOT / "seqexport").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"training", "demo", "gradio"}, path


def test_files_stay_readable():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "seqexport").glob("*.py")}
    assert max(lengths.values()) < 600
    assert sum(lengths.values()) < 16_500


def test_importing_the_package_imports_neither_torch_nor_onnxruntime():
    code = "import sys, seqexport; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import seqexport

    for name in seqexport.__all__:
        assert getattr(seqexport, name).__name__ == name
