"""The pages of the site, from the committed notebooks: `python docs/prepare.py FOLDER` writes them, and runs none.

Directives of nbdev are not shown, hidden cells are folded, names in prose become links into the reference of all public
names, which has a page for each module, and what `metakd --help` says is a page too.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from uuid import uuid4

root = Path(__file__).parent.parent
sys.path[:0] = [str(root / "tests"), str(root)]

from links import chapters, module, settings  # noqa: E402
from links import title as name_of  # noqa: E402

PARTS = {
    "0": "Before you begin",
    "1": "The method, piece by piece",
    "2": "Its use",
    "3": "Data",
    "4": "Peers",
    "5": "The lab",
    "6": "The command line",
}
FENCE = re.compile(r"(```.*?```|~~~.*?~~~|\$\$.*?\$\$)", re.S)
CODE = re.compile(r"(?<![`\[\w])`([A-Za-z_][\w.]*)`(?![`\]\w])")


def public() -> dict[str, list[str]]:
    "Module -> its public classes and functions, in the order of the source."
    found = {}
    for home in modules():
        module_ = import_module(home)
        made = {n: getattr(module_, n) for n in module_.__all__}
        found[home] = [n for n, o in made.items() if callable(o) and getattr(o, "__module__", "") == home]
    return found


def modules() -> list[str]:
    return [m for path in chapters() if (m := module(path))]


def symbols(public_names: dict[str, list[str]]) -> dict[str, str]:
    "A public name -> where it is in the reference; names that two modules have are left out."
    found = {}
    for home, names in public_names.items():
        for name in names:
            found.setdefault(name, []).append(f"{home}.{name}")
    return {name: where[0] for name, where in found.items() if len(where) == 1}


def anchor(home: str, name: str) -> str:
    "Of a definition within its chapter."
    return f"define-{home}-{name}".replace(".", "-")


def linked(text: str, known: dict[str, str], page: Path) -> str:
    "Prose with links: public names into the reference, files that are no page to the repository."

    def name(found: re.Match) -> str:
        return f"{{py:obj}}`{found[1]} <{known[found[1]]}>`" if found[1] in known else found[0]

    def file(found: re.Match) -> str:
        target = (page.parent / found[2]).resolve()
        if re.match(r"[a-z]+:|#|mailto", found[2]) or target.suffix == ".ipynb":
            return found[0]
        said = settings()
        if target.suffix == ".png":
            return f"{found[1]}({os.path.relpath(target, page.parent)[3:]})"
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}({said['git_url']}/{kind}/{said['branch']}/{target.relative_to(root)})"

    parts = FENCE.split(text)
    for i in range(0, len(parts), 2):
        lines = [
            line if line.startswith("#") or line.startswith("    ") else CODE.sub(name, line)
            for line in parts[i].split("\n")
        ]
        parts[i] = re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", file, "\n".join(lines))
    return "".join(parts)


def cells_for_reading(cell: dict, home: str | None, names: set[str]) -> list[dict]:
    "A cell as the site shows it: none, or with an anchor before it for what it defines."
    source = "".join(cell["source"])
    directives = re.findall(r"^#\|\s*(\S+.*)$", source, re.M)
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
    if not source.strip():
        return []
    if documented := re.findall(r"^show_doc\(([\w.]+)\)", source, re.M):
        return [words(", ".join(f"`{n}`" for n in documented))]
    tags = set(cell["metadata"].get("tags", ()))
    if any(d.startswith("hide") for d in directives):
        tags.add("hide-input")
    if any(re.match(r"echo:\s*false", d) for d in directives):
        tags.add("remove-input")
    for output in cell["outputs"]:  # pictures that a report wrote beside itself
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = re.sub(
                r"!\[[^\]]*\]\([^)]*\)", "", "".join(output["data"]["text/markdown"])
            )
    made = {**cell, "source": source, "metadata": {**cell["metadata"], "tags": sorted(tags)}}
    defined = [n for n in re.findall(r"^(?:class|def|async def) (\w+)", source, re.M) if n in names and home]
    spans = "".join(f'<span id="{anchor(home, n)}"></span>' for n in defined if "export" in " ".join(directives))
    return [*([words(spans)] if spans else []), made]


def words(text: str) -> dict:
    "A cell of text."
    return {"cell_type": "markdown", "id": uuid4().hex[:8], "metadata": {}, "source": text}


def page(path: Path, known: dict[str, str], names: dict[str, list[str]]) -> dict:
    "A notebook as the site shows it."
    notebook, made, home = json.loads(path.read_text()), [], module(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^\[!\[Open in Colab\].*\n+", "", "".join(cell["source"]), flags=re.M)
            made.append(words(linked(text, known, path)))
        else:
            for shown in cells_for_reading(cell, home, set(names.get(home, ()))):
                if shown["cell_type"] == "markdown":
                    shown["source"] = linked(shown["source"], known, path)
                made.append(shown)
    return {**notebook, "cells": made}


def reference(folder: Path, names: dict[str, list[str]]) -> None:
    "A page for each module, and one that lists them."
    homes = {module(path): path for path in chapters()}
    (folder / "api").mkdir()
    for home in names:
        path = homes[home]
        text = f"# {home}\n\nBuilt in chapter [{title(path)}](../{path.name}).\n\n"
        text += f"```{{eval-rst}}\n.. automodule:: {home}\n   :members:\n   :show-inheritance:\n```\n"
        (folder / "api" / f"{home}.md").write_text(text)
    lines = "\n".join(
        f"- {{py:mod}}`{home}`, chapter [{title(homes[home])}](../{homes[home].name}): "
        + ", ".join(f"{{py:obj}}`{n} <{home}.{n}>`" for n in names[home])
        for home in names
    )
    toc = "\n".join(names)
    (folder / "api" / "index.md").write_text(
        "# Reference\n\nEvery public name, by module; each definition links back to the chapter that builds it.\n\n"
        f"{lines}\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    )


def title(path: Path) -> str:
    "A chapter's number and name; the name of a notebook of the lab."
    return (path.stem[:3] + " " if path.stem[0].isdigit() else "") + name_of(path)


def help_of(*command: str) -> str:
    "What a command says with --help."
    from metakd.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).strip()


def commands(folder: Path) -> None:
    "What `metakd --help` says, and each command's own help."
    overview = help_of()
    text = f"# The command line\n\nWhat every command says with `--help`.\n\n```text\n{overview}\n```\n"
    for name in re.findall(r"^    (\w+)  ", overview, re.M):
        said = help_of(name)
        text += f"\n## metakd {name}\n\n```text\n{said}\n```\n"
        inner = re.match(rf"usage: metakd {name} \[-h\]\s+\{{([^}}]*)\}}", said)
        for part in re.split(r",\s*", inner[1]) if inner else ():
            text += f"\n### metakd {name} {part}\n\n```text\n{help_of(name, part.strip())}\n```\n"
    (folder / "commands.md").write_text(text)


def toctree(caption: str, entries: list[str]) -> str:
    lines = "\n".join(entries)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def pages(folder: Path, known: dict[str, str], names: dict[str, list[str]]) -> None:
    "Chapters, lab notebooks, and the written pages of docs/."
    lab = sorted((root / "nbs" / "lab").glob("*.ipynb"))
    (folder / "lab").mkdir()
    for path in [*chapters(), *lab]:
        made = json.dumps(page(path, known, names), ensure_ascii=False)
        (folder / path.relative_to(root / "nbs")).write_text(made)
    for path in (root / "docs").glob("*.md"):
        (folder / path.name).write_text(linked(path.read_text(), known, root / "nbs" / path.name))
    (folder / "results").mkdir()
    for path in (root / "results").glob("*.png"):
        shutil.copy(path, folder / "results")
    parts = {}
    for path in chapters():
        parts.setdefault(PARTS[path.stem[0]], []).append(f"{title(path)} <{path.stem}>")
    trees = [toctree("Start", ["Tour <000_tour>", "Results <lab/results>", "Eight sessions <lectures>"])]
    trees += [toctree(name, [e for e in entries if "<000_tour>" not in e]) for name, entries in parts.items()]
    trees += [toctree("Results", [f"{title(p)} <lab/{p.stem}>" for p in lab if p.stem != "results"])]
    trees += [toctree("Look it up", ["commands", "api/index"])]
    with (folder / "index.md").open("a") as index:
        index.write("\n" + "\n".join(trees))


def download(folder: Path) -> None:
    "What the download button gives is the notebook as it is."
    for path in (folder / "_sources").rglob("*.ipynb"):
        shutil.copy(root / "nbs" / path.relative_to(folder / "_sources"), path)


if __name__ == "__main__":
    if sys.argv[1] == "--download":
        download(Path(sys.argv[2]))
        sys.exit()
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    public_names = public()
    pages(folder, symbols(public_names), public_names)
    reference(folder, public_names)
    commands(folder)
