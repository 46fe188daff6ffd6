"The site and JupyterLab in a real browser: `make browser`. Chromium is the one of $CHROMIUM, or what is installed."

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

root = Path(__file__).parent.parent
site = root / "_docs" / "html"
PICTURES = root / "_docs" / "screenshots"
SIZES = {"desk": (1300, 1000), "phone": (390, 844)}
PAGES = ("index", "000_tour", "105_distillation", "api/metakd.nn.distillation", "lab/results", "commands")


@pytest.fixture(scope="module")
def address():
    "Where the site is served."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium is installed; name one in $CHROMIUM")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, request):
    "A page of a size and colour scheme, which notes every error."
    PICTURES.mkdir(exist_ok=True)
    size, scheme = getattr(request, "param", ("desk", "light"))
    width, height = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    made = context.new_page()
    made.errors = []
    made.on("console", lambda message: made.errors.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.on("response", lambda answer: made.errors.append(f"{answer.status}: {answer.url}") if not answer.ok else None)
    made.on("requestfailed", lambda asked: made.errors.append(f"not found: {asked.url}"))
    yield made
    context.close()


@pytest.mark.parametrize(
    "page", [("desk", "light"), ("phone", "light"), ("desk", "dark")], indirect=True, ids=lambda p: "-".join(p)
)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_without_a_network(page, address, name, request):
    page.goto(f"{address}/{name}.html", wait_until="networkidle")
    assert page.errors == []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page scrolls sideways"
    assert "#| " not in page.inner_text("article"), "a directive of nbdev is shown"
    page.screenshot(path=PICTURES / f"{request.node.name.replace('/', '_')}.png")


def test_equations_are_set(page, address):
    page.goto(f"{address}/105_distillation.html", wait_until="networkidle")
    assert page.locator("mjx-container").count() > 5
    assert "\\mathrm" not in page.inner_text("article")


def test_hidden_cells_are_folded_and_open(page, address):
    page.goto(f"{address}/105_distillation.html")
    folded = page.locator("details.hide").first
    assert not folded.evaluate("d => d.open")
    folded.locator("summary").click()
    assert folded.evaluate("d => d.open") and "find_spec" in folded.inner_text()


def test_search_finds_a_name(page, address):
    page.goto(f"{address}/search.html?q=MetaKDClassifier", wait_until="networkidle")
    page.wait_for_selector("#search-results li", timeout=20_000)
    found = page.locator("#search-results").inner_text()
    assert "metakd.estimators.MetaKDClassifier" in found


def test_a_definition_links_to_its_chapter(page, address):
    page.goto(f"{address}/api/metakd.nn.distillation.html")
    entry = page.locator("dt", has=page.locator("text=distillation_loss")).first
    target = entry.locator("a:has-text('source')").get_attribute("href")
    page.goto(f"{address}/api/{target}")
    assert page.url.endswith("105_distillation.html#define-metakd-nn-distillation-distillation_loss")
    assert page.locator("#define-metakd-nn-distillation-distillation_loss").count() == 1


def test_parameters_are_a_table(page, address):
    page.goto(f"{address}/api/metakd.nn.distillation.html")
    assert "importance weights" in page.locator("table.parameters").nth(2).inner_text()


def test_a_notebook_opens_in_colab_and_downloads_as_it_is(page, address):
    page.goto(f"{address}/000_tour.html")
    links = page.eval_on_selector_all("a", "all => all.map(a => a.href)")
    assert any(a.endswith("/blob/main/nbs/000_tour.ipynb") and "colab.research.google.com" in a for a in links)
    (source,) = {a for a in links if "_sources/000_tour.ipynb" in a}
    with urllib.request.urlopen(source) as answer:
        assert answer.read() == (root / "nbs" / "000_tour.ipynb").read_bytes()


@pytest.fixture
def lab(tmp_path):
    "JupyterLab over a copy of the notebooks."
    shutil.copytree(root / "nbs", tmp_path / "nbs")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    quiet = ["--no-browser", "--allow-root", "--ServerApp.token=", "--LabApp.extension_manager=readonly"]
    command = [sys.executable, "-m", "jupyterlab", *quiet, f"--port={port}", f"--ServerApp.root_dir={tmp_path / 'nbs'}"]
    env = {**os.environ, "IN_TEST": "1", "PYTHONPATH": str(root)}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api")
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", tmp_path / "nbs"
    server.terminate()
    server.wait(20)


IDLE = "text=Kernel status: Idle"


def run_all(page, address: str, path: Path) -> dict:
    "Open a notebook in JupyterLab, run all of it, save it, and read what was saved."
    page.goto(f"{address}/lab/tree/{path.name}?reset", wait_until="networkidle")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector(IDLE, state="attached", timeout=60_000)
    page.wait_for_timeout(2_000)  # extensions join after the kernel
    before = path.stat().st_mtime
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.wait_for_timeout(500)
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    for _ in range(120):
        page.wait_for_timeout(1_000)
        page.keyboard.press("Control+s")
        try:
            notebook = json.loads(path.read_text())
        except json.JSONDecodeError:  # it is being written
            continue
        counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
        failed = [o for c in notebook["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"]
        if failed or (path.stat().st_mtime > before and all(counts) and page.locator(IDLE).count()):
            return notebook
    page.screenshot(path=PICTURES / "not_run.png")
    raise AssertionError(f"not all cells of {path.name} have run: {counts}")


def test_the_tour_runs_in_jupyterlab(page, lab, request):
    address, folder = lab
    path = folder / "000_tour.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook))
    cells = [c for c in run_all(page, address, path)["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in cells for o in c["outputs"]]
    assert not [o["evalue"] for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert page.locator(".jp-OutputArea-output img").count() >= 1
    page.screenshot(path=PICTURES / f"{request.node.name}.png")


BAR = """from metakd import Classification, Supervised, train
from metakd.data.audiovision import SHAPES, load, setting
from metakd.lab.table2 import AudioVisionRecipe
from metakd.methods.supervised import build_classifier

s, recipe, task = setting(load()), AudioVisionRecipe(epochs=2), Classification(10)
method = Supervised(build_classifier(SHAPES, task, recipe), task, recipe)
history = train(method, task, recipe, s.train, s.validation)"""


def test_a_progress_bar_is_shown_and_ends(page, lab):
    address, folder = lab
    path, cell = folder / "bar.ipynb", {"cell_type": "code", "id": "a", "metadata": {}, "outputs": []}
    cell |= {"execution_count": None, "source": BAR}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    run_all(page, address, path)
    page.wait_for_selector(".widget-hprogress", timeout=20_000)
    assert "100%" in page.locator(".jp-OutputArea").first.inner_text()
