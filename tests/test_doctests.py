"The examples in docstrings."

import doctest
from importlib import import_module

import pytest

import metakd

MODULES = sorted({f"metakd.{home}" for home in metakd.HOMES.values()} | {"metakd.data.scans", "metakd.nn.networks"})
SHOWN = ("Batch", "Classification", "Segmentation", "MetaKD", "Supervised", "Recipe")


@pytest.mark.parametrize("name", [*MODULES, "metakd.nn.distillation"])
def test_examples_are_right(name):
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize("name", SHOWN)
def test_classes_that_people_import_have_one(name):
    assert ">>> " in getattr(metakd, name).__doc__
