"The package reads in one direction: what a module may import, how long that takes, and chapters linked in that order."

import ast
import json
import re
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path
from urllib.parse import unquote

import pytest

from links import chapters, exported, imported, linked, module, root, sources

LAYERS = (  # a module imports from its own layer and from those before it
    ("files",),
    ("stats",),
    ("batch",),
    ("nn",),
    ("tasks",),
    ("plots", "evaluation"),
    ("training",),
    ("data",),
    ("prediction",),
    ("methods",),
    ("estimators",),
    ("reports", "export"),
    ("hub",),
    ("lab",),
    ("cli",),
)
LAYER = {name: k for k, names in enumerate(LAYERS) for name in names}
FILES = {
    ".".join(p.relative_to(root).with_suffix("").parts): p
    for p in (root / "metakd").rglob("*.py")
    if p.stem not in ("__init__", "__main__", "_modidx")
}


def imports(name: str) -> set[str]:
    "Modules of ours that a module imports, anywhere in it."
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            start = name.split(".")[: -node.level] if node.level else []
            home = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            found |= {home, *(f"{home}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & set(FILES)


def test_modules_import_from_their_own_layer_and_those_before_it():
    wrong = [
        f"{name} imports {other}"
        for name in FILES
        for other in imports(name)
        if LAYER[other.split(".")[1]] > LAYER[name.split(".")[1]]
    ]
    assert not wrong
    assert len(list(TopologicalSorter({name: imports(name) for name in FILES}).static_order())) == len(FILES)


def test_constants_of_a_data_set_stay_with_it():
    names = {"flair", "t1", "t1c", "t2", "ET", "TC", "WT", "image", "audio"}
    for name, path in FILES.items():
        if name.split(".")[1] in ("data", "lab", "cli") or name == "metakd.plots":  # one colour for one thing
            continue
        found = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)} & names
        assert not found, f"{name} knows {found}"


def test_chapters_export_from_earlier_ones_only():
    order = {module(p): k for k, p in enumerate(chapters()) if module(p)}
    assert {m for m in order} == set(FILES)
    for k, path in enumerate(chapters()):
        later = [m for m in imported(exported(path), inner=True) if order.get(m, -1) > k]
        assert not later, f"{path.name} imports {later}"


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_chapters_are_linked(path):
    assert json.loads(path.read_text()) == linked(path), "run python tests/links.py"


def test_links_lead_somewhere():
    for path in [*(root / "nbs").rglob("*.ipynb"), root / "README.md", root / "CONTRIBUTING.md"]:
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
            text = "\n".join("".join(c["source"]) for c in cells)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            colab = re.fullmatch(r"https://colab\.research\.google\.com/github/metakd/metakd/blob/main/(.*)", target)
            if colab:
                assert (root / colab[1]).exists() and root / colab[1] == path, f"{path.name}: {target}"
            elif not re.match(r"https?:|mailto:", target):
                assert (path.parent / unquote(target)).exists(), f"{path.name}: {target}"


def loads(statement: str) -> set[str]:
    "The modules that are there after a statement in a fresh interpreter."
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_data_of_scans_load_no_network_and_no_sounds():
    there = loads("import metakd.data.scans")
    assert not there & {"librosa", "soundfile"}
    assert not [m for m in there if re.match(r"metakd\.(nn|methods|lab)\b", m)]
    assert not [
        m for m in loads("import metakd.data.audiovision") if re.match(r"metakd\.(nn|methods|lab|data\.scans)\b", m)
    ]


def seconds(*args: str) -> float:  # the shortest of three
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, *args], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def test_the_door_opens_at_once():
    empty = seconds("-c", "")
    assert seconds("-c", "import metakd") - empty < 0.1
    assert seconds("-m", "metakd.cli", "--help") - empty < 1
    script = "from metakd import MetaKD, train, evaluate, classifier, segmenter, align; print(train.__name__)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "train\n"


def test_every_name_of_the_front_door_is_there():
    import metakd

    assert all(getattr(metakd, name) is not None for name in metakd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'MetaDK'"):
        metakd.MetaDK  # noqa: B018


def test_no_line_of_code_is_longer_than_120_characters():
    "Ruff lets a line pass that has no blank to break it at."
    notebooks = sorted((root / "nbs").rglob("*.ipynb"))
    lines = [(p.name, line) for p in notebooks for s in sources(p) for line in s.splitlines()]
    lines += [(p.name, line) for p in (root / "tests").glob("*.py") for line in p.read_text().splitlines()]
    assert not [(name, line) for name, line in lines if len(line) > 120]


def test_ruff_is_content():
    tool = str(Path(sys.executable).parent / "ruff")
    ours = ["nbs", "tests", "setup.py"]
    complete = ["check", "--isolated", "--select", "F", "metakd"]  # no module leans on a test cell of its notebook
    for command in (["check", *ours], ["format", "--check", *ours], complete):
        done = subprocess.run([tool, *command], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
