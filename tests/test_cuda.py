"What needs a CUDA card; `make gpu` runs it on a machine that has one."

from pathlib import Path

import pytest
import torch

from metakd.batch import Batch, all_subsets
from metakd.evaluation import evaluate
from metakd.lab.table1 import Brats
from metakd.lab.table2 import AudioVision, own_rate
from metakd.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DIGITS = [name for name in AudioVision.rows if own_rate(name) is None]
SCANS = list(Brats.methods())


def crops(window: tuple[int, int, int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = {m: torch.randn(4, 1, *window, generator=generator) for m in ("flair", "t1", "t1c", "t2")}
    y = (torch.rand(4, 3, *window, generator=generator) < 0.2).float()
    return Batch(x, all_subsets(4)[[4, 9, 12, 14]], y)


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_digits_are_trained_on_a_card_and_resumed(name, precision, tmp_path):
    def prepared():
        experiment = AudioVision(name, "image", 0.2)
        return experiment.prepare(experiment.recipe_type()(epochs=2, precision=precision))

    def fit(p, out, **options):
        return train(p.method, p.task, p.recipe, p.train, p.validation, p.tested, out, progress=False, **options)

    p = prepared()
    history = fit(p, tmp_path / "whole")
    assert p.method.device.type == "cuda" and history.loss.notna().all()
    fit(prepared(), tmp_path / "parts", stop_after=10)
    again = fit(prepared(), tmp_path / "parts", resume=True)
    assert abs(again.loss.iloc[-1] - history.loss.iloc[-1]) < 1e-3
    assert evaluate(p.method, p.task, p.test).accuracy.notna().all()


@pytest.mark.parametrize("name", SCANS)
def test_a_loss_on_a_card_is_that_on_the_cpu(name):
    window, found = (32, 32, 32), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        method = Brats(Path("."), name).build(Brats.recipe_for(name))[0].to(device).eval()
        method.progress = 0.1
        found.append(method.training_loss(crops(window).to(device))[0].item())
    assert abs(found[0] - found[1]) < 0.05 * abs(found[0])  # methods that draw random numbers draw others there


def test_a_step_waits_for_nothing():
    "CUDA itself says where a program waits for it."
    method = Brats(Path("."), "MetaKD").build(Brats.recipe_for("MetaKD"))[0].to("cuda").train()
    batch = crops((32, 32, 32)).to("cuda")
    method.training_loss(batch)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = method.training_loss(batch)
        loss.backward()
        method.optimizers["network"].step()
        method.meta_step(batch, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
