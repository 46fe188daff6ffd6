"""What a GPU would do, tried where there is none: on the meta device nothing can be looked at, so that a step which
waits for the device fails there, and so does an operation on two devices; and shapes of any size cost nothing.
"""

from pathlib import Path

import pytest
import torch

from metakd.batch import Batch, all_subsets, on_device
from metakd.estimators import recipe_of
from metakd.lab.table1 import Brats
from metakd.lab.table2 import AudioVision, own_rate
from metakd.methods.registry import methods
from metakd.methods.supervised import SegmentationRecipe
from metakd.tasks.base import Method
from metakd.tasks.classification import Classification

DIGITS = [name for name in AudioVision.rows if own_rate(name) is None]
SCANS = list(Brats.methods())


def on_meta(batch: Batch) -> Batch:
    moved = batch.to("meta")
    assert moved.available.device.type == "meta"
    return moved


def elsewhere(method: Method) -> Method:
    "The method on the meta device, with optimizers of the parameters that are there."
    method.to("meta")
    assert {q.device.type for q in method.parameters()} == {"meta"}
    return method.train()


def step(method: Method, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
    "What the trainer does on a batch, and the outer level where there is one."
    method.progress = progress
    loss, logs = method.training_loss(batch)
    for optimizer in method.optimizers.values():
        optimizer.zero_grad()
    loss.backward()
    method.optimizers["network"].step()
    if method.meta_every:
        logs |= method.meta_step(batch, batch)
    assert loss.shape == () and all(v.device.type == "meta" and not v.requires_grad for v in logs.values())
    return logs


@pytest.mark.parametrize("name", DIGITS)
def test_a_step_on_digits_waits_for_nothing(name):
    experiment = AudioVision(name, "image", 0.2)
    p = experiment.prepare(experiment.recipe_type()(epochs=2))
    p.method.setup(p.train)
    if name == "SMIL":
        p.method.find_priors()  # k-means runs on the host, once in a training
    method, batch = elsewhere(p.method), on_meta(p.train.take(slice(0, 32)))
    for progress in (0.1, 0.5, 0.9):
        step(method, batch, progress)


def scans(window: tuple[int, int, int]) -> Batch:
    "Two to four sequences of each of four crops; what is not there is not even allocated."
    x = {m: torch.empty(4, 1, *window, device="meta") for m in ("flair", "t1", "t1c", "t2")}
    moved = on_meta(Batch({}, all_subsets(4)[[4, 9, 12, 14]], torch.zeros(4)))
    return moved._replace(x=x, y=torch.empty(4, 3, *window, device="meta"))


@pytest.mark.parametrize("name", SCANS)
def test_a_step_on_scans_waits_for_nothing(name):
    recipe = Brats(Path("."), name).recipe_type()(window=(32, 32, 32))
    method = elsewhere(Brats(Path("."), name).build(recipe)[0])
    step(method, scans(recipe.window), 0.9)


@pytest.mark.parametrize("name", ["NoKD", "MetaKD", "MetaKD (published)"])
def test_the_reference_network_at_the_papers_size(name):
    window = (80, 160, 160)
    experiment = Brats(Path("."), name)
    recipe = experiment.recipe_type()(network="reference", window=window)
    method, batch = elsewhere(experiment.build(recipe)[0]), scans(window)
    step(method, batch, 0.9)
    method.eval()
    with torch.inference_mode():
        assert method.predict(batch.x, batch.available).shape == (4, 3, *window)
        assert method.predict_subsets(batch.x, batch.available, on_device(all_subsets(4), "meta")).shape[:3] == (
            15,
            4,
            3,
        )


@pytest.mark.parametrize("name", ["NoKD", "MetaKD", "ShaSpec", "SubsetKD"])
def test_a_step_on_tables_waits_for_nothing(name):
    shapes, spec = {f"sensor{k}": (3,) for k in range(6)}, methods("classification")[name]
    available = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    available[:, 0] |= ~available.any(1)
    batch = Batch({m: torch.zeros(20, 3) for m in shapes}, available, torch.zeros(20, dtype=torch.long))
    method = spec.fresh(shapes, Classification(2), recipe_of(spec)())
    method.setup(batch)
    step(elsewhere(method), on_meta(batch), 0.9)


def test_a_wait_is_found():
    "The test can fail: looking at a mask that was made on the device is refused there."
    mask = on_meta(Batch({}, torch.ones(3, 2, dtype=torch.bool), torch.zeros(3))).available
    with pytest.raises((NotImplementedError, RuntimeError)):
        bool((mask & mask).all())


def test_autocast_on_the_cpu_is_what_it_is_on_a_gpu():
    "Losses and imputed features stay finite and single where autocast halves what lies between."
    torch.manual_seed(0)
    recipe = SegmentationRecipe(window=(16, 16, 16))
    for name in ("MetaKD", "RobustSeg", "mmFormer"):
        method = Brats(Path("."), name).build(Brats.recipe_for(name, recipe))[0]
        x = {m: torch.randn(2, 1, 16, 16, 16) for m in method.modalities}
        batch = Batch(x, all_subsets(4)[[9, 14]], (torch.rand(2, 3, 16, 16, 16) < 0.2).float())
        method.progress = 0.9
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = method.training_loss(batch)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite(), name
        assert all(q.grad is None or q.grad.isfinite().all() for q in method.parameters()), name
