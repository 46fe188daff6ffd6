"""What every compared method must stand: kill and resume, half precision, several processes, incomplete data, any
number of modalities; and a new method in ten lines.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from conftest import (
    assert_equal_in_both,
    assert_nothing_absent_is_read,
    assert_same_run,
    in_two_processes,
    kill_in_training,
)
from metakd.batch import Batch, all_subsets
from metakd.files import MetakdError
from metakd.lab.table2 import AudioVision, AudioVisionRecipe, lead, own_rate, run, table2, table2_jobs, table2_view
from metakd.methods import registry
from metakd.methods.registry import register
from metakd.methods.supervised import Supervised, build_classifier
from metakd.tasks.base import Recipe
from metakd.tasks.classification import Classification
from metakd.training import train

COMPARED = [name for name in AudioVision.rows if own_rate(name) is None]
BASELINES = [name for name in COMPARED if name not in ("NoKD", "MetaKD")]
NEED_COMPLETE = ["AutoEncoder", "GAN", "Full2miss", "SMIL"]
pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(name, rate=0.2, **recipe):
    experiment = AudioVision(name, "image", rate)
    return experiment.prepare(experiment.recipe_type()(**{"epochs": 4, **recipe}))


def fit(p, out=None, **options):
    return train(p.method, p.task, p.recipe, p.train, p.validation, p.tested, out, progress=False, **options)


def test_there_are_all():
    assert BASELINES == ["AutoEncoder", "GAN", "Full2miss", "SMIL", "ShaSpec", "MetaKD (published)", "SubsetKD"]


@pytest.mark.parametrize("name", BASELINES)
def test_sigkill_then_resume_gives_the_same_bits(name, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(prepared(name), whole)
    kill_in_training(lambda: prepared(name), lambda p: fit(p, killed, checkpoint_seconds=0), killed)
    fit(prepared(name), killed, resume=True)
    assert_same_run(whole, killed)


@pytest.mark.parametrize("name", BASELINES)
def test_half_precision(name):
    p = prepared(name, epochs=2, precision="bf16")
    history = fit(p)
    assert history.loss.notna().all() and history.task.iloc[-1] < 2.5  # log 10 is chance


def test_two_processes_stay_equal():
    def work():
        for name in BASELINES:
            p = prepared(name, epochs=2)
            fit(p)
            assert_equal_in_both(name, p.method)

    in_two_processes(work)


@pytest.mark.parametrize("name", COMPARED)
def test_no_complete_sample(name):
    p = prepared(name, epochs=1)
    p.train.available[:, 1] &= ~p.train.available[:, 0]
    p.train.available[::3] = torch.tensor([False, True])  # some have a sound alone
    assert not p.train.available.all(1).any()
    if name in NEED_COMPLETE:
        with pytest.raises(MetakdError, match=f"{name} needs complete samples to .*use a method that does without"):
            fit(p)
    else:
        assert fit(p).loss.notna().all()


@pytest.mark.parametrize("name", COMPARED)
def test_three_modalities_any_subset_and_nothing_absent_is_read(name):
    torch.manual_seed(0)
    shapes, spec = {"a": (1, 16, 16), "b": (1, 20, 18), "c": (1, 16, 24)}, AudioVision.find(name)
    recipe = AudioVision(name).recipe_type()()
    method = spec.build(shapes, Classification(3), recipe)
    available = all_subsets(3).repeat(6, 1)
    data = Batch({m: torch.randn(42, *s) for m, s in shapes.items()}, available, torch.arange(42) % 3)
    method.setup(data)
    for progress in (0.0, 0.9):
        method.train().progress = progress
        assert_nothing_absent_is_read(method, data.take(~available.all(1)))  # without any complete sample
    method.eval()
    full = torch.ones(42, 3, dtype=torch.bool)
    logits = method.predict_subsets(data.x, full, all_subsets(3))
    assert logits.shape == (7, 42, 3) and logits.isfinite().all()
    alone = torch.tensor([[False, True, False]]).expand(42, 3)
    torch.testing.assert_close(method.predict({"b": data.x["b"]}, alone), logits[1], atol=1e-5, rtol=1e-4)


def test_a_toy_method_in_ten_lines(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class DoubtRecipe(Recipe):
        doubt: float = 0.1

    class Doubt(Supervised):
        "Never quite sure: a penalty on confident answers."

        def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            p = self.model(batch.x, batch.available).log_softmax(1)
            task = torch.nn.functional.nll_loss(p, batch.y)
            return task + self.recipe.doubt * (p.exp() * p).sum(1).mean(), {"task": task.detach()}

    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))

    @register("Doubt", task="classification", recipe=DoubtRecipe)
    def doubt(shapes, task, recipe):
        return Doubt(build_classifier(shapes, task, recipe), task, recipe)

    assert list(AudioVision.methods())[-1] == "Doubt" and AudioVision("Doubt").recipe_type()(doubt=0.5).doubt == 0.5
    runs = table2(
        tmp_path,
        AudioVisionRecipe(epochs=1),
        table2_jobs(("NoKD", "Doubt"), (0.2,), 2, (("paper", "random"),), ("image",)),
        backend="sequential",
    )
    assert runs.groupby("method").size().to_dict() == {"NoKD": 2, "Doubt": 2}
    assert table2_view(runs, "image").index.tolist() == ["NoKD", "Doubt"] and len(lead(runs, "Doubt")) == 1
    with pytest.raises(
        MetakdError, match=r"another recipe \(Doubt.doubt: 0.1 against 0.5"
    ):  # a method's own numbers belong to the sweep's recipe too
        table2(
            tmp_path,
            AudioVision("Doubt").recipe_type()(epochs=1, doubt=0.5),
            table2_jobs(("Doubt",), (0.2,), 3, (("paper", "random"),), ("image",)),
            backend="sequential",
        )
    same = run(AudioVision("Doubt", "image", 0.2), AudioVisionRecipe(epochs=1))[0]
    assert same["accuracy"] == runs[(runs.method == "Doubt") & (runs.seed == 0)].accuracy.item()
