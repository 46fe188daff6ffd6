"What runs without the packages that only some data need, and what a command says that needs one of them."

import subprocess
import sys

import pytest

EXTRAS = {
    "audio": ("librosa", "soundfile", "pooch", "mlxtend"),
    "scans": ("monai", "nibabel"),
    "tables": ("sklearn", "skops"),
    "logs": ("tensorboard",),
}
WITHOUT = """
import importlib.machinery, sys

found = importlib.machinery.PathFinder.find_spec


def hide(name, path=None, target=None):
    return None if name.split(".")[0] in {absent!r} else found(name, path, target)


importlib.machinery.PathFinder.find_spec = hide
"""
TRAINS = """
import torch
from metakd import Batch, Classification, MetaKD, MetaKDRecipe, classifier, evaluate, train

shapes = {"a": (3,), "b": (2,)}
x = {m: torch.randn(64, *s) for m, s in shapes.items()}
data = Batch(x, torch.ones(64, 2, dtype=torch.bool), torch.randint(2, (64,)))
task, recipe = Classification(2), MetaKDRecipe(epochs=2)
method = MetaKD(classifier(shapes, 2), task, recipe)
train(method, task, recipe, data, data, out=sys.argv[1], progress=False)
assert len(evaluate(method, task, data)) == 3
"""


def run(code: str, *args, absent: tuple[str, ...]) -> subprocess.CompletedProcess:
    "Python where some packages are not to be found."
    program = WITHOUT.format(absent=set(absent)) + code
    return subprocess.run([sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True)


def test_a_network_trains_without_any_of_them(tmp_path):
    done = run(TRAINS, tmp_path / "run", absent=sum(EXTRAS.values(), ()))
    assert done.returncode == 0, done.stderr[-2000:]


HELP = """
from contextlib import suppress
from metakd.cli import main

for command in ("--version", "train --help", "table2 --help", "lgg --help", "train scans --help"):
    with suppress(SystemExit):
        main(command.split())
"""


def test_help_needs_none_of_them():
    done = run(HELP, absent=sum(EXTRAS.values(), ()))
    assert done.returncode == 0 and done.stdout.count("usage: metakd") == 4, done.stderr[-2000:]


@pytest.mark.parametrize(
    "extra, code",
    [
        (
            "audio",
            "from metakd.data.audiovision import mfcc, FRONT_ENDS; import numpy as np; "
            "mfcc([np.zeros(4000, np.float32)], FRONT_ENDS['paper'])",
        ),
        (
            "scans",
            "from metakd.data.nifti import Grid; import numpy as np; Grid((2, 2, 2), np.eye(4)).spacing",
        ),
        ("tables", "from metakd import MetaKDClassifier"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(extra, code):
    done = run(code, absent=EXTRAS[extra])
    assert done.returncode != 0 and f"pip install 'metakd[{extra}]'" in done.stderr, done.stderr[-2000:]
