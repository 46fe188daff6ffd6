"""Segmentation goes through the same contracts: MONAI blocks, two levels, a shared encoder, four sequences, per-sample
holes.
"""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from monai.losses import DiceLoss
from monai.networks.blocks import Convolution
from torch import nn

import metakd.methods.hypergradients  # noqa: F401
from conftest import with_rubbish
from metakd.batch import Batch, all_subsets, drop_random
from metakd.evaluation import evaluate
from metakd.methods.metakd import HYPERGRADIENTS, MetaKD, MetaKDRecipe, meta_gradient
from metakd.nn.model import MultimodalModel, classifier
from metakd.nn.networks import Encoders
from metakd.tasks.base import Task
from metakd.tasks.classification import Classification
from metakd.training import train

SEQUENCES = ("flair", "t1", "t1c", "t2")


class Regions(Task):
    main_metric = "dice"

    def __init__(self):
        self.dice = DiceLoss(sigmoid=True)

    def loss(self, logits, y):
        return self.dice(logits, y) + nn.functional.binary_cross_entropy_with_logits(logits, y)

    def scores(self, logits, y):
        p, y = (logits > 0).flatten(2), y.bool().flatten(2)
        return {"dice": (2 * (p & y).sum(2) / (p.sum(2) + y.sum(2)).clamp(min=1))}

    def metrics(self, scores):
        return {f"dice_{r}": v for r, v in zip(("et", "tc"), scores["dice"].mean(0).tolist())} | {
            "dice": scores["dice"].mean().item()
        }


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Convolution(3, 1, 8, strides=2), Convolution(3, 8, 16, strides=2)

    def forward(self, x):
        a = self.a(x)
        return [a, self.b(a)]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = Convolution(3, 64, 16, strides=2, is_transposed=True)
        self.out = Convolution(3, 48, 2, strides=2, is_transposed=True, conv_only=True)

    def forward(self, features):
        skip, deep = (f.flatten(1, 2) for f in features)
        return self.out(torch.cat([self.up(deep), skip], 1))


def cohort(n, seed):
    "A bright cube in a noisy volume; the core shows in t1c alone."
    g = torch.Generator().manual_seed(seed)
    y = torch.zeros(n, 2, 16, 16, 16)
    for k in range(n):
        z, r, c = torch.randint(0, 8, (3,), generator=g)
        y[k, 1, z : z + 8, r : r + 8, c : c + 8] = 1
        y[k, 0, z + 2 : z + 6, r + 2 : r + 6, c + 2 : c + 6] = 1
    x = {
        m: torch.randn(n, 1, 16, 16, 16, generator=g) * 0.3 + (y[:, :1] if m == "t1c" else y[:, 1:]) for m in SEQUENCES
    }
    return Batch(x, torch.ones(n, 4, dtype=torch.bool), y)


def build(recipe):
    torch.manual_seed(recipe.seed)
    return MetaKD(MultimodalModel(Encoders(dict.fromkeys(SEQUENCES, Encoder())), Decoder()), Regions(), recipe)


RECIPE = MetaKDRecipe(epochs=12, batch_size=4, lr=1e-2, weight_decay=0.0, drop=0.5, meta_every=2, alpha=0.05)


def test_metakd_segments_in_3d_with_holes_and_resumes(tmp_path):
    data, validation = cohort(16, 0), cohort(8, 1)
    data = data._replace(available=drop_random(data.available, torch.Generator().manual_seed(0), p=0.5))
    method = build(RECIPE)
    history = train(method, method.task, RECIPE, data, validation, progress=False)
    table = evaluate(method, method.task, cohort(8, 2))
    assert len(table) == 15 and {"dice_et", "dice_tc"} <= set(table.columns)
    assert table.dice.iloc[-1] > 0.6 and history.loss.iloc[-1] < history.loss.iloc[0]  # it learns
    assert {"w_flair", "w_t1", "w_t1c", "w_t2", "distillation", "meta"} <= set(history.columns)

    train(build(RECIPE), method.task, RECIPE, data, validation, None, tmp_path / "r", progress=False, stop_after=30)
    again = train(
        build(RECIPE), method.task, RECIPE, data, validation, None, tmp_path / "r", resume=True, progress=False
    )
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"), check_exact=True)


def test_an_absent_sequence_is_never_read_and_each_is_encoded_once():
    method, data = build(RECIPE), cohort(3, 3)
    data = data._replace(available=all_subsets(4)[[0, 7, 13]])
    loss, clean = method.training_loss(with_rubbish(data))[0], method.training_loss(data)[0]
    assert loss.isfinite() and torch.equal(loss, clean)

    rows = []
    method.model.encoders.networks[0].register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    method.training_loss(data)
    assert rows == [data.available.sum().item()]
    rows.clear()
    evaluate(method, method.task, cohort(5, 4))
    assert rows == [4 * 5]  # 15 subsets, one encoding of each modality


def test_the_meta_gradient_in_3d_equals_the_whole_one():
    method, data = build(replace(RECIPE, alpha=0.1)), cohort(2, 5)
    _, cheap = meta_gradient(method.model, method.importance, method.task, data)
    w = method.importance()
    method.eval()
    features = [f * w.view(1, -1, 1, 1, 1, 1) for f in method.model.encode(data.x, data.available)]
    method.task.loss(method.model.decode(features), data.y).backward()
    assert torch.allclose(cheap, method.importance.raw.grad, atol=1e-7)


@pytest.mark.parametrize("scaled", ["all", "deepest"])
def test_every_hypergradient_scales_the_same_levels(scaled):
    "Through steps of nearly no length the unrolled gradient is the one of a network held fixed."
    method, data = build(replace(RECIPE, alpha=0.1, scaled=scaled, inner_lr=1e-9)), cohort(2, 5)
    fixed, unrolled = (HYPERGRADIENTS[name](method, data, data)[1] for name in ("first_order", "unrolled"))
    assert torch.allclose(fixed, unrolled, rtol=1e-3, atol=1e-8)
    other = meta_gradient(method.model, method.importance, method.task, data, ("deepest", "all")[scaled == "deepest"])[
        1
    ]
    assert not torch.allclose(fixed, other, rtol=1e-1)


@pytest.mark.parametrize("normalisation", ["softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("distance", ["l1", "mse"])
def test_every_option_takes_a_step(normalisation, distance):
    recipe = replace(RECIPE, normalisation=normalisation, distance=distance, epochs=1)
    method = build(recipe)
    history = train(method, method.task, recipe, cohort(8, 6), cohort(4, 7), progress=False)
    assert history.loss.notna().all() and (method.importance() > 0).all()


@pytest.mark.parametrize("name", ["first_order", "unrolled", "implicit"])
def test_networks_that_are_called_as_one_have_the_hypergradients_of_each_alone(name, monkeypatch):
    shapes = {f"sensor{k}": (3,) for k in range(5)}
    available = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    available[:, 0] |= ~available.any(1)
    batch = Batch({m: torch.randn(20, 3) for m in shapes}, available, torch.randint(2, (20,)))
    found = []
    for together in (4, 99):
        monkeypatch.setattr("metakd.nn.networks.TOGETHER", together)
        torch.manual_seed(1)
        recipe = MetaKDRecipe(hypergradient=name, inner_lr=0.1)
        method = MetaKD(classifier(shapes, 2), Classification(2), recipe)
        method.setup(batch)
        method.progress = 1.0
        found.append(HYPERGRADIENTS[name](method, batch, batch)[1])
    assert found[0].abs().max() > 1e-4 and torch.allclose(*found, atol=1e-7)
