"Notebooks, package and README agree, and notebooks are as they should be committed."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from readme import readme

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def tool(name):
    return str(Path(sys.executable).parent / name)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project, copied so that the checks change nothing here."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "metakd"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(root / name, folder)
    return folder


def test_package_is_what_the_notebooks_export(copy):
    for old in (copy / "metakd").rglob("*.py"):
        if old.name != "__init__.py":
            old.unlink()
    subprocess.run([tool("nbdev_export")], cwd=copy, check=True)
    ours = {p.relative_to(root): p.read_text() for p in (root / "metakd").rglob("*.py")}
    exported = {p.relative_to(copy): p.read_text() for p in (copy / "metakd").rglob("*.py")}
    assert ours.keys() == exported.keys()
    for name in ours:
        assert ours[name] == exported[name], f"{name} differs: edit the notebook, then run make export"


def test_notebooks_are_clean(copy):
    subprocess.run([tool("nbdev_clean"), "--fname", str(copy / "nbs")], cwd=copy, check=True)
    for nb in notebooks:
        assert json.loads(nb.read_text()) == json.loads((copy / nb.relative_to(root)).read_text()), (
            f"{nb}: run .venv/bin/nbdev_clean"
        )


@pytest.mark.parametrize("nb", notebooks, ids=lambda p: p.stem)
def test_notebook_is_executed_and_small(nb):
    cells = json.loads(nb.read_text())["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert outputs, "not executed"
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"], "warnings or progress bars in the outputs"
    assert "widgets" not in json.loads(nb.read_text())["metadata"], "state of progress bars in the metadata"
    assert nb.stat().st_size < 500_000
    assert "/root/" not in nb.read_text() and "/home/" not in nb.read_text(), "a path of somebody's machine"


def test_readme_is_the_index():
    assert (root / "README.md").read_text() == readme(), "run make readme"
