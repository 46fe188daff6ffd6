"A new task is one class: regression, through tables, training, evaluation, a study; and a set of scans is one value."

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metakd import MetaKD, MetakdError, MetaKDRecipe, Task, align, classifier, evaluate, stratified_split, train
from metakd.data.scans import ScanLayout, Volumes, find_cases, from_regions, to_regions
from metakd.estimators import TableRecipe
from metakd.lab.studies import RUNS, Samples, Study, result_rows
from metakd.lab.table1 import Brats
from metakd.methods.supervised import SegmentationRecipe
from metakd.prediction import predict
from metakd.tasks.multilabel import MultiLabel
from metakd.tasks.survival import Survival

pytestmark = pytest.mark.usefixtures("one_thread")


class Regression(Task):
    "One number for each sample; Huber's loss, the mean absolute error."

    main_metric, higher_is_better, outputs = "error", False, 1

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(logits[:, 0], y)

    def scores(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"error": (logits[:, 0] - y).abs()}

    def metrics(self, scores: dict[str, Tensor]) -> dict[str, float]:
        return {"error": scores["error"].double().mean().item()}


def people(n: int = 300) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    rng, ids = np.random.default_rng(0), pd.Index([f"P{k}" for k in range(n)])
    a, b = (pd.DataFrame(rng.normal(size=(n, 4)), ids) for _ in range(2))
    y = pd.Series(a[0] + 0.5 * b[1] + 0.1 * rng.normal(size=n), ids)
    return {"blood": a.iloc[:250], "memory": b.iloc[60:]}, y


@dataclass(frozen=True)
class Numbers(Study):
    labels: ClassVar[type[Task]] = Regression

    def samples(self, seed: int):
        views, y = people()
        return align(views, y, self.labels), y

    def split(self, samples: Samples, y: pd.Series, seed: int):
        return stratified_split(samples, seed=seed)

    def task_for(self, samples: Samples, y: Tensor | None) -> Task:
        return Regression()


def test_regression_is_one_class():
    samples = align(*people(), Regression)
    assert samples.counts().people.tolist() == [300] and samples.batch.y.dtype == torch.float32
    parts = {p: samples.at(ids) for p, ids in stratified_split(samples).items()}
    means = [p.y.mean().item() for p in parts.values()]
    assert max(means) - min(means) < 0.2  # parts are alike in what is to be predicted
    recipe = MetaKDRecipe(epochs=60, lr=3e-3)
    method = MetaKD(classifier(samples.shapes, Regression.outputs, dropout=0.0), Regression(), recipe)
    history = train(method, method.task, recipe, parts["train"], parts["validation"], progress=False)
    table = evaluate(method, method.task, parts["test"]).set_index("subset").error
    blind = (parts["test"].y - parts["train"].y.mean()).abs().mean().item()
    assert table["blood+memory"] < table["blood"] < 0.75 * blind
    held_out = evaluate(method, method.task, parts["validation"]).error.mean()
    assert held_out == pytest.approx(history.error.min(), rel=1e-4)  # the smallest error was kept, not the largest
    with pytest.raises(MetakdError, match="not all numbers"):
        align(people()[0], people()[1].round().astype(str), Regression)


@pytest.mark.parametrize("method", ["NoKD", "MetaKD", "ZeroFill", "Flex-MoE"])
def test_a_study_of_numbers(method):
    study = Numbers(method=method)
    p = study.prepare(study.recipe_type()(epochs=10))
    history = train(p.method, p.task, p.recipe, p.train, p.validation, progress=False)
    blind = (p.validation.y - p.train.y.mean()).abs().mean().item()
    assert history.error.notna().sum() == 2 and history.error.min() < 0.8 * blind
    found = evaluate(p.method, p.task, p.test).error.mean()
    row = dict(result_rows(study, p, history.error.min()))[RUNS][0]
    assert row["error"] == pytest.approx(found, abs=1e-4)  # not in percent
    assert row["validation"] == pytest.approx(history.error.min(), abs=1e-4)
    again = study.prepare_test(TableRecipe(), p.about)
    assert again.names == p.names and torch.equal(again.test.y, p.test.y)


@dataclass(frozen=True)
class Several(Numbers):
    labels: ClassVar[type[Task]] = MultiLabel

    def samples(self, seed: int):
        views, y = people()
        return align(views, y.map(lambda v: ("high",) * (v > 0.3) + ("low",) * (v < 0.0)), self.labels), y

    def task_for(self, samples: Samples, y: Tensor | None) -> Task:
        return MultiLabel(len(samples.classes))


@dataclass(frozen=True)
class Lives(Numbers):
    labels: ClassVar[type[Task]] = Survival

    def samples(self, seed: int):
        views, y = people()
        times = np.exp(-y)
        return align(views, times.where(times < times.quantile(0.7), -times.quantile(0.7)), self.labels), times

    def task_for(self, samples: Samples, y: Tensor | None) -> Task:
        return Survival()


@pytest.mark.parametrize("kind, metric", [(Several, "auc"), (Lives, "concordance")])
@pytest.mark.parametrize("method", ["NoKD", "MetaKD", "ShaSpec"])
def test_a_study_of_several_labels_and_of_times(kind, metric, method):
    study = kind(method=method)
    p = study.prepare(study.recipe_type()(epochs=10, lr=3e-3, balanced=False))
    history = p.fit(progress=False)
    row = dict(result_rows(study, p, history[metric].max()))[RUNS][0]
    assert row[metric] == pytest.approx(100 * evaluate(p.method, p.task, p.test)[metric].mean(), abs=1e-3)
    assert row[f"present_{metric}"] > 70  # a coin has 50
    again = study.prepare_test(TableRecipe(), json.loads(json.dumps(p.about)))
    assert again.names == p.names and torch.equal(again.test.y, p.test.y)


ABDOMEN = ScanLayout(
    "abdomen",
    ("ct", "pet"),
    {"liver": (1,), "kidneys": (2, 3), "spleen": (4,), "tumour": (5,)},
    {"plain": {v: v for v in range(6)}, "shifted": {0: 0} | {v + 10: v for v in range(1, 6)}},
    {"ct": ("ct",), "pet": ("pet", "suv"), "seg": ("seg", "organs")},
)


@pytest.fixture
def clinic(tmp_path):
    "Six patients with CT and PET and four organs, one without a PET."
    rng, grid = np.random.default_rng(0), np.indices((24, 24, 24)) - 11.5
    body = np.sqrt((grid**2).sum(0)) < 10
    for k in range(6):
        label = np.zeros(body.shape, np.uint8)
        for value in range(1, 6):
            centre = rng.uniform(-4, 4, 3)[:, None, None, None]
            label[(((grid - centre) ** 2).sum(0) < 9) & body] = value
        for name in ("ct", "pet"):
            image = np.where(body, 100 + 20 * label + rng.normal(0, 5, body.shape), 0).astype(np.float32)
            write(tmp_path / "clinic" / f"P{k}" / f"{name}.nii.gz", image)
        write(tmp_path / "clinic" / f"P{k}" / "organs.nii.gz", label)
    (tmp_path / "clinic" / "P3" / "pet.nii.gz").unlink()
    return tmp_path / "clinic"


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


class Abdomen(Brats):
    layout: ClassVar[ScanLayout] = ABDOMEN


def test_another_set_of_scans_is_one_value(clinic, tmp_path):
    cases = find_cases(clinic, layout=ABDOMEN)
    assert [list(c.images) for c in cases] == [["ct", "pet"]] * 3 + [["ct"]] + [["ct", "pet"]] * 2
    assert all(c.convention == "plain" and c.label.name == "organs.nii.gz" for c in cases)
    label = torch.arange(6)
    assert from_regions(to_regions(label, ABDOMEN).bool(), "shifted", ABDOMEN).tolist() == [0, 11, 12, 12, 14, 15]
    with pytest.raises(MetakdError, match="cases of different layouts"):
        Volumes([cases[0], replace(cases[1], layout=replace(ABDOMEN, name="other"))])
    experiment = Abdomen(clinic, "MetaKD", cache=tmp_path / "cache")
    recipe = experiment.recipe_for("MetaKD", SegmentationRecipe(epochs=1, crops=1, window=(16, 16, 16)))
    p = experiment.prepare(recipe)
    assert p.about["layout"] == ABDOMEN.about() and p.method.modalities == ("ct", "pet")
    assert experiment.prepare_test(recipe, json.loads(json.dumps(p.about))).names == p.names
    with pytest.raises(MetakdError, match="trained on scans of the layout {'name': 'abdomen'"):
        Brats(clinic).prepare_test(recipe, p.about)
    train(p.method, p.task, p.recipe, p.train, p.validation, progress=False, meta=p.meta)
    table = evaluate(p.method, p.task, p.test)
    assert {"dice_liver", "dice_kidneys", "dice_spleen", "dice_tumour"} <= set(table)
    rows, problems = predict(p.method, p.task, cases[:1] + cases[3:4], tmp_path / "out")
    assert not problems and [r["sequences"] for r in rows] == ["ct+pet", "ct"] and "spleen_ml" in rows[0]
    found = np.asarray(nib.load(tmp_path / "out" / "P0_seg.nii.gz").dataobj)
    assert found.shape == (24, 24, 24) and set(np.unique(found)) <= set(range(6))
    rows, problems = predict(p.method, p.task, cases[:1], tmp_path / "post", post=True)
    assert not rows and "there is no post-processing for abdomen" in problems[0]


def test_a_tracker_of_ones_own_and_the_row_of_an_epoch(tmp_path):
    from accelerate.tracking import GeneralTracker

    class Kept(GeneralTracker):
        name, requires_logging_directory, rows = "kept", False, []

        def __init__(self):
            super().__init__()

        @property
        def tracker(self):
            return self.rows

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **more):
            self.rows.append((step, values))

    samples, tracker = align(*people(), Regression), Kept()
    recipe = MetaKDRecipe(epochs=2)
    method = MetaKD(classifier(samples.shapes, 1), Regression(), recipe)
    how = {"progress": False, "watch": lambda method, row: {"twice": 2 * row["loss"]}}
    history = train(method, method.task, recipe, samples.batch, samples.batch, out=tmp_path, trackers=[tracker], **how)
    assert [v["twice"] for _, v in tracker.rows] == history.twice.tolist() == (2 * history.loss).tolist()
    with pytest.raises(MetakdError, match="no tracker 'slate' here: install it, or choose from"):
        train(method, method.task, recipe, samples.batch, samples.batch, out=tmp_path / "b", trackers=["slate"], **how)
