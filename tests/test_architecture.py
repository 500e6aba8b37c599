"""The rules of the house, as tests whose failure says the fix."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters import metrics
from quantum_alloc.services import app
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import GROUPS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "quantum_alloc"
PURE = {
    "__future__", "collections", "dataclasses", "enum", "functools", "hashlib", "html", "importlib", "json", "math",
    "numpy", "scipy", "struct", "typing", "_typeshed", "quantum_alloc",
}  # fmt: skip


def modules(folder: str) -> list[Path]:
    """The modules of a folder."""
    return sorted((SOURCE / folder).glob("*.py"))


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {n.name for n in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules("core"), ids=lambda p: p.stem)
def test_the_core_is_pure(path: Path) -> None:
    """The core imports a closed list of pure modules and itself; anything else belongs to adapters or services."""
    for name in imports(path):
        assert name.split(".")[0] in PURE, f"{path.name} imports {name}"
        assert not name.startswith(("quantum_alloc.adapters", "quantum_alloc.services"))


def test_importing_the_core_does_not_import_numpy() -> None:
    """numpy comes with the first array, not with the import; redis and prometheus_client never."""
    code = (
        "import sys, quantum_alloc.core; print([m for m in ('numpy','redis','prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_broad_except_and_one_loop() -> None:
    """Broad excepts are in services/loop.py alone."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                broad = caught in ("", "Exception", "BaseException")
                # the store closes a connection whose replies are under way, whatever ended the wait, and raises again
                if broad and not (path.name == "store.py" and caught == "BaseException"):
                    assert path.name == "loop.py", f"{path.name} line {node.lineno} catches everything"


@pytest.mark.parametrize("name", qa.__all__)
def test_the_public_surface_is_documented(name: str) -> None:
    """Every public name has a docstring; every parameter of a public function is named in it."""
    thing = getattr(qa, name)
    if name == "Reading":
        return
    doc = inspect.getdoc(thing)
    assert doc, f"{name} has no docstring"
    if inspect.isfunction(thing):
        for parameter in inspect.signature(thing).parameters:
            assert re.search(rf"\b{parameter}\b", doc), f"{name} does not tell what {parameter} is"
    elif inspect.isclass(thing) and hasattr(thing, "__dataclass_fields__"):
        for field in thing.__dataclass_fields__:
            assert re.search(rf"\b{field}\b", doc), f"{name} does not tell what {field} is"


@pytest.mark.parametrize("page", ["settings", "metrics", "logs", "keys", "alerts"])
def test_reference_pages_are_up_to_date(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The generated pages stand in docs/reference as they would be written now: run `make docs`."""
    assert main(["config", "docs", page], {}) == 0
    assert (ROOT / "docs" / "reference" / f"{page}.md").read_text() == capsys.readouterr().out


def test_every_service_has_settings_and_metrics() -> None:
    """A service without a group of settings, or without a table of metrics, cannot be operated."""
    assert app.SERVICES.keys() == GROUPS.keys() == metrics.TABLES.keys()


def test_metric_names_follow_the_rules() -> None:
    """Counters end in _total, names are lower case; new ones carry our prefix."""
    kept = re.compile(r"p29_|p30_|p31_|p32_|quantum_govern_|gov_p29_")
    for row in (*metrics.COMMON, *(r for rows in metrics.TABLES.values() for r in rows)):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", row.name)
        assert (row.kind == "counter") == row.name.endswith("_total")
        assert row.name.startswith("quantum_alloc_") or kept.match(row.name)
        assert row.help.endswith(".")


def links(text: str) -> list[str]:
    """Relative links of a Markdown text."""
    return [t for t in re.findall(r"\]\(([^)#\s]+)", text) if not t.startswith("http")]


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_documents_have_no_dead_links(path: Path) -> None:
    """Every relative link leads somewhere."""
    for target in links(path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def examples(path: Path) -> list[str]:
    """The Python blocks of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_python_examples_run(path: Path) -> None:
    """The Python blocks of a document run, one after the other, and their assertions hold."""
    space: dict[str, object] = {}
    for block in examples(path):
        exec(compile(block, path.name, "exec"), space)  # noqa: S102 - our own documents


def test_commands_in_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `quantum-alloc COMMAND` and `make TARGET` that a document names exists."""
    makefile = (ROOT / "Makefile").read_text()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = path.read_text()
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"
        for command in set(re.findall(r"quantum-alloc (run|demo|status|config [a-z]+|[a-z][a-z-]+)\b", text)):
            with pytest.raises(SystemExit) as caught:
                main([*command.split(), "--help"], {})
            assert caught.value.code == 0, f"{path.name}: quantum-alloc {command}"
    capsys.readouterr()


def test_nothing_of_this_machine_is_in_the_repository() -> None:
    """No absolute path of a developer's machine and no package index stands in a tracked file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    bad = re.compile(r"/(wo)rk/|/(ro)ot/|(py)pi\.org|--(ex)tra-index-url http")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.is_file():
            assert not bad.search(path.read_text(errors="replace")), name
