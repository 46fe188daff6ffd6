"`nbdev_test` where there is nothing but the notebooks and the installed wheel."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The wheel, built and unpacked where this checkout is not seen."
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(root)], check=True)
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), *map(str, folder.glob("*.whl"))], check=True
    )
    assert (folder / "site" / "metakd" / "data" / "fsdd.sha256").exists()
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
