"`nbdev_test` where there is nothing but the notebooks and the installed wheel."

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from links import installing, settings

root = Path(__file__).parent.parent
pages = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The wheel, built from the source distribution, and unpacked where this checkout is not seen."
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(folder), str(root)]
    subprocess.run(build, check=True, capture_output=True)
    (source,) = folder.glob("*.tar.gz")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), *map(str, folder.glob("*.whl"))], check=True
    )
    assert all(
        (folder / "site" / "metakd" / name).exists() for name in ("data/fsdd.sha256", "py.typed", "results/table2a.csv")
    )
    return folder / "site"


def test_every_notebook_runs_detached(site, tmp_path):
    shutil.copy(root / "settings.ini", tmp_path)
    shutil.copytree(root / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    env = {**os.environ, "PYTHONPATH": str(site), "MPLBACKEND": "Agg", "TQDM_DISABLE": "1", "IN_TEST": "1"}
    found = subprocess.run(
        [sys.executable, "-c", "import metakd; print(metakd.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(str(site)), found.stdout + found.stderr
    done = subprocess.run(
        [str(Path(sys.executable).parent / "nbdev_test"), "--n_workers", "2", "--timing"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    print(done.stdout[-5000:])  # how long each took: pytest -rP
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def test_the_readme_of_the_package_index_links_to_the_repository(site):
    (about,) = site.glob("metakd-*.dist-info/METADATA")
    text = about.read_text()
    address = settings()["git_url"]
    assert f"]({address}/blob/main/nbs/413_subsetkd.ipynb)" in text and f"({address}/raw/main/results/" in text
    assert not re.findall(r"\]\((?!https?:|#)", text)
    assert f"Project-URL: Issues, {address}/issues" in text


def test_files_beside_the_package_say_the_same_version_and_address():
    said, citation = settings(), (root / "CITATION.cff").read_text()
    for page in ("README.md", "docs/index.md"):
        assert set(re.findall(r"git\+(https:[^\s\"]+)", (root / page).read_text())) == {said["git_url"]}
    assert f"version: {said['version']}\n" in citation and f"repository-code: {said['git_url']}\n" in citation


IMPORTS = {"sklearn": "scikit-learn", "PIL": "pillow", "huggingface_hub": "huggingface-hub", "SimpleITK": "simpleitk"}
COLAB = {"IPython", "google"}  # what runs a notebook has these


@pytest.mark.parametrize("page", pages, ids=lambda p: p.stem)
def test_a_notebook_alone_imports_what_its_first_cell_installs(page):
    "Its own imports; those of metakd are metakd's business."
    assert json.loads(page.read_text()) == installing(page), "run python tests/links.py"
    cells = ["".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code"]
    extras = [name for cell in cells for found in re.findall(r"metakd\[([\w,]+)\]", cell) for name in found.split(",")]
    said = settings()
    kinds = ("audio", "scans", "tables", "logs")  # which the extra `course` has too
    wanted = " ".join([said["requirements"], *(said[f"{name}_requirements"] for name in (*kinds, *extras))])
    installed = {re.split(r"[<>=;!]", r)[0].lower() for r in wanted.split()} | {"metakd"}
    known = {m for m in imports(cells) if m not in sys.stdlib_module_names and m not in COLAB}
    missing = {m for m in known if IMPORTS.get(m, m).lower().replace("_", "-") not in installed}
    assert not missing, f"{page.name} imports {', '.join(sorted(missing))}, which {extras or 'metakd'} does not install"


def imports(cells: list[str]) -> set[str]:
    "The packages that the cells import."
    found = set()
    for cell in cells:
        for node in ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M))):
            if isinstance(node, ast.Import):
                found |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found
