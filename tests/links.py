"""What `make tidy` writes into the notebooks. The links between chapters, drawn from what they import: each begins with
those that it needs and ends with the next one. The cell that installs metakd where a notebook is opened alone. Hidden
cells are folded, and progress bars, which would stand at 0 for ever, are taken out.
"""

import ast
import json
import re
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path

root = Path(__file__).parent.parent
NEEDS, NEXT = "**Needs:** ", "**Next:** "
BADGE = re.compile(r"\(https://colab\.research\.google\.com/github/[^)]*\)")
INSTALL = """#| hide
import importlib.util

if importlib.util.find_spec("metakd") is None:
    source = "{what}"
    get_ipython().run_line_magic("pip", f"install -q '{{source}}'")"""


def settings() -> dict:
    "What settings.ini says."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def colab(path: Path) -> str:
    "Where Colab opens a notebook."
    where = settings()["git_url"].removeprefix("https://github.com/")
    return f"(https://colab.research.google.com/github/{where}/blob/{settings()['branch']}/{path.relative_to(root)})"


def installation(cell: str) -> str:
    "The cell that installs metakd, for the version that the notebook was written for; its extras stay."
    said, found = settings(), re.search(r"metakd\[([\w,]+)\]", cell)
    extras = sorted({"course", *(found[1].split(",") if found else [])})
    name = f"metakd[{','.join(extras)}]"
    index = said["install_from"] == "index"
    what = f"{name}=={said['version']}" if index else f"{name} @ git+{said['git_url']}@{said['install_from']}"
    return INSTALL.format(what=what)


def chapters() -> list[Path]:
    "In the order in which they are read."
    return sorted((root / "nbs").glob("[0-9]*.ipynb"))


def sources(path: Path, kind: str = "code") -> list[str]:
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def module(path: Path) -> str | None:
    "What the chapter exports."
    found = [re.match(r"#\| default_exp (\S+)", s) for s in sources(path)]
    return next((f"metakd.{m[1]}" for m in found if m), None)


def imported(cells: list[str], inner: bool = False) -> set[str]:
    "Modules of ours that these cells import; with those that functions import when they run, if `inner`."
    found = set()
    for cell in cells:
        tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M))
        for node in ast.walk(tree) if inner else tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metakd":
                found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def exported(path: Path) -> list[str]:
    return [s for s in sources(path) if s.startswith("#| export")]


@lru_cache
def stands_on(path: Path) -> frozenset[Path]:
    "The chapters whose modules its exports import, or all its cells if it has none."
    homes = {module(p): p for p in chapters()}
    return frozenset({homes[m] for m in imported(exported(path) or sources(path)) if m in homes} - {path})


@lru_cache
def below(path: Path) -> frozenset[Path]:
    "All that those stand on, too."
    return frozenset().union(*(stands_on(p) | below(p) for p in stands_on(path) if p < path))


def needs(path: Path) -> list[Path]:
    "What it stands on, without what goes without saying because another of them stands on it. A tour needs nothing."
    if path.stem.startswith("000"):
        return []
    return sorted(stands_on(path) - below(path))


def title(path: Path) -> str:
    return re.match(r"# ([^:\n]+)", sources(path, "markdown")[0])[1].strip()


def link(path: Path) -> str:
    return f"[{path.stem[:3]} {title(path)}]({path.name})"


def linked(path: Path) -> dict:
    "The notebook with its links."
    notebook, order = json.loads(path.read_text()), chapters()
    words = [c for c in notebook["cells"] if c["cell_type"] == "markdown"]
    following = order[order.index(path) + 1 :][:1]
    for cell, mark, paths in ((words[0], NEEDS, needs(path)), (words[-1], NEXT, following)):
        text = re.sub(rf"\n*{re.escape(mark)}.*", "", "".join(cell["source"])).strip()
        line = mark + ", ".join(map(link, paths)) if paths else ""
        cell["source"] = "\n\n".join(part for part in (text, line) if part).splitlines(keepends=True)
    return notebook


def is_bar(output: dict) -> bool:
    "Is it a progress bar?"
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def installing(path: Path) -> dict:
    "The notebook, with its links if it is a chapter, its badge, and the cell that installs metakd."
    notebook = linked(path) if path in chapters() else json.loads(path.read_text())
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if not is_bar(o)]
            if text.startswith("#| hide"):
                cell["metadata"]["jupyter"] = {"source_hidden": True}
        if cell["cell_type"] == "code" and 'find_spec("metakd")' in text:
            cell["source"] = installation(text).splitlines(keepends=True)
        elif cell["cell_type"] == "markdown" and BADGE.search(text):
            cell["source"] = BADGE.sub(colab(path), text).splitlines(keepends=True)
    return notebook


if __name__ == "__main__":
    for page in sorted((root / "nbs").rglob("*.ipynb")):
        page.write_text(json.dumps(installing(page), indent=1, ensure_ascii=False) + "\n")
