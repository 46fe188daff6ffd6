"How the site is built: `make docs` writes its pages with docs/prepare.py, and Sphinx makes HTML of them."

import inspect
import re
import sys
from pathlib import Path

from fastcore.docments import docments
from sphinx.util.typing import stringify_annotation

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent / "tests")]

from prepare import anchor, public, symbols  # noqa: E402

from links import chapters, module, settings  # noqa: E402

said = settings()
project, author, version = said["lib_name"], said["author"], said["version"]
copyright = said["copyright"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]

nb_execution_mode = "off"  # what is committed is shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!metakd\.).*"),  # other people's names: their pages are elsewhere
    ("py:.*", r"metakd\..*For\w*Recipe"),  # recipes that are joined when they are asked for
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
default_role = "literal"

html_theme = "sphinx_book_theme"
html_title = "metakd"
html_static_path = [str(here / "_static")]
html_favicon = str(here / "_static" / "icon.svg")
html_css_files = ["site.css"]
html_baseurl = said["doc_host"] + said["doc_baseurl"] + "/"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": said["git_url"],
    "repository_branch": said["branch"],
    "path_to_docs": said["nbs_path"],
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "navbar_persistent": [],
    "home_page_in_toc": True,
}

homes = {module(path): path.stem for path in chapters() if module(path)}
known = symbols(public())


def linkcode_resolve(domain: str, info: dict) -> str | None:
    "The place in the chapter where a name is defined."
    home, name = homes.get(info["module"]), info["fullname"].split(".")[0]
    return f"../{home}.html#{anchor(info['module'], name)}" if home and name else None


def as_rst(text: str) -> str:
    "A docstring, whose only markup is `code`."
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            name = " ".join(part.strip("`").split())
            parts[i] = f":py:obj:`{name} <{known[name]}>`" if name in known else f"``{name}``"
        else:
            parts[i] = re.sub(r"([*|\\]|(?<=\w)_(?=\W|$))", r"\\\1", part)
    return "\\ ".join(p for p in parts if p) if len(parts) > 1 else parts[0]


def parameter_table(obj) -> list[str]:
    "The parameters and what is returned as a table, from the comments beside them."
    try:
        found = docments(obj, full=True, returns=True)
    except (TypeError, ValueError, OSError, SyntaxError):
        return []
    if not any(about.get("docment") for about in found.values()):
        return []
    rows = []
    for name, about in found.items():
        if name in ("self", "cls") or (name == "return" and not about.get("docment")):
            continue
        kind = (
            "" if about.anno in (inspect.Parameter.empty, None) else f"``{stringify_annotation(about.anno, 'smart')}``"
        )
        usual = "" if about.default is inspect.Parameter.empty or name == "return" else f"``{about.default!r}``"
        rows.append(
            (
                f"``{name}``" if name != "return" else "*returns*",
                kind.replace("~", ""),
                usual,
                as_rst(about.docment or ""),
            )
        )
    lines = ["", ".. list-table::", "   :class: parameters", "   :header-rows: 1", ""]
    for row in [("parameter", "type", "default", "what"), *rows]:
        lines += [f"   {' ' if i else '*'} - {' '.join(cell.split())}" for i, cell in enumerate(row)]
    return [*lines, ""]


def process_docstring(app, what, name, obj, options, lines) -> None:
    "Docstrings are prose with `code` and examples; parameters are described beside them."
    blocks, inside = [[]], False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if example != inside:
            blocks.append([])
        blocks[-1].append(line)
        inside = example
    texts = ["\n".join(block) for block in blocks]
    lines[:] = "\n".join(as_rst(t) if i % 2 == 0 else t for i, t in enumerate(texts)).split("\n")
    if what in ("function", "class", "method"):
        lines += parameter_table(obj)


def skip(app, what, name, obj, skipped, options) -> bool | None:
    "Fields of named tuples explain themselves in the class; scikit-learn adds methods that are not ours."
    return True if type(obj).__name__ == "_tuplegetter" or re.fullmatch(r"set_\w+_request", name) else None


def setup(app) -> None:
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-skip-member", skip)
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it only copies a file
