"Notebooks run opened alone in an empty folder, with nothing but the installed wheel: all, and of the chapters of compared methods, which are alike, the first for each kind of data."
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and (p.stem[0] != "4" or p.stem in ("40_autoencoder", "45_hemis")))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The wheel, built and unpacked where this checkout is not seen."
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(root)], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), *map(str, folder.glob("*.whl"))], check=True)
    assert (folder / "site" / "metakd" / "data" / "fsdd.sha256").exists()
    return folder / "site"


@pytest.fixture(scope="session")
def runs(site, tmp_path_factory):
    "Each notebook in a process and a folder of its own, two at a time."
    def run(nb):
        folder = tmp_path_factory.mktemp(nb.stem)
        alone = folder / nb.name
        alone.write_bytes(nb.read_bytes())
        script = f"""
import metakd, sys
assert metakd.__file__.startswith({str(site)!r}), metakd.__file__
from pathlib import Path
from nbdev.test import test_nb
ok, seconds = test_nb(Path({str(alone)!r}), skip_flags=["notest", "slow", "cuda"], basepath=Path({str(folder)!r}))
sys.exit(not ok)
"""
        env = {**os.environ, "PYTHONPATH": str(site), "IN_TEST": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}
        return subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    with ThreadPoolExecutor(2) as pool: return dict(zip(notebooks, pool.map(run, notebooks)))


@pytest.mark.parametrize("nb", notebooks, ids=lambda p: p.stem)
def test_notebook_runs_detached(nb, runs):
    assert runs[nb].returncode == 0, (runs[nb].stdout + runs[nb].stderr)[-3000:]
