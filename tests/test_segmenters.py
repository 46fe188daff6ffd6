"""Every column of Table 1 keeps the promises of the others: any subset, nothing absent read, killed and resumed, two
processes, predict.
"""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from conftest import (
    assert_equal_in_both,
    assert_nothing_absent_is_read,
    assert_same_run,
    in_two_processes,
    kill_in_training,
)
from metakd.batch import Batch, all_subsets
from metakd.cli import main
from metakd.data.scans import find_cases
from metakd.evaluation import evaluate
from metakd.files import MetakdError
from metakd.lab.table1 import REFERENCE, Brats, ScanFolder, from_authors
from metakd.methods.supervised import SegmentationRecipe
from metakd.nn.model import segmenter
from metakd.nn.networks import Pyramid
from metakd.training import load_weights

METHODS = list(Brats.methods())
SMALL = {"epochs": 3, "crops": 1, "window": (16, 16, 16), "drop_from": 0.3}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def split(cohort):
    "Less to validate and test on than elsewhere."
    names = [c.name for c in find_cases(cohort)]
    (cohort.parent / "few.json").write_text(
        json.dumps({"train": names[:5], "meta": names[5:6], "validation": names[6:7], "test": names[9:]})
    )
    return cohort.parent / "few.json"


def prepared(cohort, split, name, **recipe):
    experiment = Brats(cohort, name, split, cohort.parent / "cache")
    return experiment.prepare(experiment.recipe_type()(**{**SMALL, **recipe}))


def fit(p, out=None, **options):
    return p.fit(out, progress=False, **options)


def training_command(cohort, split, name, out):
    words = {"data": cohort, "split": split, "cache": cohort.parent / "cache", "method": name, "out": out}
    return ["train", "brats", *(w for option, value in words.items() for w in (f"--{option}", str(value)))]


@pytest.fixture(scope="module")
def runs(cohort, split, tmp_path_factory):
    "Every method, trained a little by the command."
    out = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    few = "--recipe.epochs 3 --recipe.crops 1 --recipe.window 16 16 16 --recipe.drop-from 0.3 --checkpoint-seconds 0"
    for name in METHODS:
        main([*training_command(cohort, split, name, out / name), *few.split()])
    return out


def test_there_are_all():
    assert METHODS == [
        "U-HeMIS",
        "U-HVED",
        "RobustSeg",
        "mmFormer",
        "ShaSpec",
        "NoKD",
        "MetaKD",
        "MetaKD (published)",
        "SubsetKD",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_subset_and_nothing_absent_is_read(name):
    torch.manual_seed(0)
    method, task = Brats(Path("."), name).build(Brats(Path("."), name).recipe_type()(**SMALL))
    method.progress = 0.9
    available = all_subsets(4)[[0, 2, 5, 9, 12, 13]]
    x, y = {m: torch.randn(6, 1, 16, 16, 16) for m in method.modalities}, (torch.rand(6, 3, 16, 16, 16) < 0.2).float()
    assert_nothing_absent_is_read(method, Batch(x, available, y))  # no sample has everything
    method.eval()
    with torch.inference_mode():
        all_there = torch.ones(6, 4, dtype=torch.bool)
        answers = method.predict_subsets(x, all_there, all_subsets(4))
        assert answers.shape == (15, 6, 3, 16, 16, 16) and answers.isfinite().all()
        for k in (0, 6, 14):
            torch.testing.assert_close(
                answers[k], method.predict(x, all_subsets(4)[k].expand(6, -1)), atol=1e-4, rtol=1e-3
            )
        assert (answers[0] - answers[-1]).abs().max() > 1e-3  # and it does matter what there is


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_one_batch(name):
    "Overfitting a pair of crops through the whole training loss: Dice above 0.9 with everything present."
    torch.manual_seed(0)
    method, task = Brats(Path("."), name).build(Brats(Path("."), name).recipe_type()(lr=1e-2, window=(16, 16, 16)))
    y = torch.zeros(2, 3, 16, 16, 16)
    y[:, 2, 3:13, 3:13, 3:13], y[:, 1, 5:11, 5:11, 5:11], y[:, 0, 7:9, 5:11, 5:11] = 1, 1, 1
    x = {
        m: torch.randn(2, 1, 16, 16, 16) + (y[:, 2:] if m == "flair" else 2 * y[:, :1] if m == "t1c" else y[:, 1:2])
        for m in method.modalities
    }
    present, best = torch.ones(2, 4, dtype=torch.bool), 0.0
    for step in range(80):
        loss, _ = method.train().training_loss(Batch(x, present, y))
        method.optimizers["network"].zero_grad()
        loss.backward()
        method.optimizers["network"].step()
        if step % 10 == 9:
            with torch.inference_mode():
                best = task.metrics(task.scores(method.eval().predict(x, present), y))["dice"]
            if best > 0.9:
                return
    raise AssertionError(f"Dice {best} after 80 steps")


@pytest.mark.parametrize("name", [m for m in METHODS if m != "MetaKD"])  # MetaKD: test_segmentation.py
def test_sigkill_then_resume_gives_the_same_bits(name, cohort, split, runs, tmp_path):
    killed = tmp_path / "killed"
    kill_in_training(lambda: prepared(cohort, split, name), lambda p: fit(p, killed, checkpoint_seconds=0), killed)
    fit(prepared(cohort, split, name), killed, resume=True)
    assert_same_run(runs / name, killed)


def test_two_processes_stay_equal(cohort, split):
    def work():
        for name in METHODS:
            p = prepared(cohort, split, name, epochs=1)
            fit(p)
            assert_equal_in_both(name, p.method)

    in_two_processes(work)


@pytest.mark.parametrize("name", METHODS)
def test_predict_from_what_there_is_at_any_size(name, cohort, runs, tmp_path):
    "Two patients, one with two sequences of 21 x 18 x 23 voxels: not a multiple of anything."
    source, few = find_cases(cohort)[-1], tmp_path / "few"
    few.mkdir()
    for m, suffix in (("flair", "flair"), ("t1c", "t1ce")):
        image = nib.load(source.images[m].path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:21, :18, :23], image.affine), few / f"few_{suffix}.nii.gz")
    main(
        [
            "predict",
            str(runs / name),
            str(few),
            str(Path(source.images["t1"].path).parent),
            "--out",
            str(tmp_path / "out"),
            "--no-png",
        ]
    )
    written = sorted(tmp_path.glob("out/*.nii.gz"))
    assert [nib.load(w).shape for w in written] == [(24, 24, 24), (21, 18, 23)]
    assert all(set(np.unique(nib.load(w).dataobj)) <= {0, 1, 2, 4} for w in written)


def test_another_methods_run_is_refused(cohort, split, runs, capsys):
    for name, other in zip(METHODS, METHODS[1:] + METHODS[:1]):
        if (name, other) != ("MetaKD", "MetaKD (published)"):  # the same network
            with pytest.raises(Exception, match="Was it trained with another method"):
                load_weights(runs / name, prepared(cohort, split, other).method)
        with pytest.raises(SystemExit):
            main([*training_command(cohort, split, other, runs / name), "--resume"])
        assert "belongs to another experiment" in capsys.readouterr().err


@pytest.mark.parametrize("name", METHODS[:5])
def test_half_precision(name, cohort, split):
    # with 2 x 2 x 2 voxels at the bottom, a CPU's gradient of the weights is not defined in bf16 (torch 2.13)
    p = prepared(cohort, split, name, epochs=1, window=(24, 24, 24), precision="bf16")
    few, everything = p.train.take(torch.arange(2)), torch.ones(4, dtype=torch.bool)  # a CPU is slow in bf16
    history = fit(replace(p, train=few, tested=everything))
    assert history.loss.notna().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_crop_that_shows_nothing_of_a_sequence_keeps_its_gradient(name):
    "A plain norm of a constant map divides by the root of its epsilon, layer by layer: see `InstanceNorm`."
    torch.manual_seed(0)
    method, _ = Brats(Path("."), name).build(Brats(Path("."), name).recipe_type()(**SMALL))
    x, y = {m: torch.randn(2, 1, 16, 16, 16) for m in method.modalities}, (torch.rand(2, 3, 16, 16, 16) < 0.2).float()
    present, norms = torch.ones(2, 4, dtype=torch.bool), []
    for flair in (x["flair"], torch.cat([torch.full((1, 1, 16, 16, 16), -0.7), x["flair"][1:]])):
        method.zero_grad()
        torch.manual_seed(1)
        method.training_loss(Batch({**x, "flair": flair}, present, y))[0].backward()
        norms.append(torch.stack([q.grad.norm() for q in method.parameters() if q.grad is not None]).norm())
    assert norms[1] < 10 * norms[0]


@pytest.mark.parametrize(
    "name, millions",
    [
        ("U-HeMIS", 1.1),
        ("U-HVED", 1.3),
        ("RobustSeg", 38.4),
        ("mmFormer", 36.0),
        ("ShaSpec", 180.0),
        ("MetaKD", 43.7),
        ("SubsetKD", 43.7),
    ],
)
def test_the_reference_networks_are_built(name, millions):
    "Their sizes as they are here, without memory for the weights; a forward pass of each is beyond a test."
    with torch.device("meta"):
        method, _ = Brats(Path("."), name).build(
            Brats.recipe_for(name, type(REFERENCE)(window=(128, 128, 128), network="reference"))
        )
    assert sum(q.numel() for q in method.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    "nnU-Net's layout: CT and PET, four organs, voxels that are no cubes; a case lacks PET, another CT."
    folder, rng = tmp_path_factory.mktemp("organs"), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (28, 24, 12)), indexing="ij"))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for k in range(7):
        label = np.zeros(grid.shape[1:], np.uint8)
        for organ, place in enumerate(((-0.4, -0.3, 0), (0.4, -0.3, 0), (-0.4, 0.4, 0), (0.4, 0.4, 0)), 1):
            label[((grid - np.reshape(place, (3, 1, 1, 1))) ** 2).sum(0) < 0.06 + 0.01 * (k % 3)] = organ
        body = (grid**2).sum(0) < 0.95
        for channel, sign in ((0, 1), (1, -1)):
            if (k, channel) not in ((1, 1), (2, 0)):
                image = np.where(body, 100 + sign * 10.0 * label + rng.normal(0, 1, label.shape), 0).astype(np.float32)
                nib.save(
                    nib.Nifti1Image(image, np.diag([1.5, 1.5, 3, 1])), folder / f"imagesTr/A{k}_000{channel}.nii.gz"
                )
        nib.save(nib.Nifti1Image(label, np.diag([1.5, 1.5, 3, 1])), folder / f"labelsTr/A{k}.nii.gz")
    labels = {"background": 0, "liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4}
    about = {"channel_names": {"0": "CT", "1": "PET"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    split = {"train": ["A0", "A1", "A2", "A3"], "meta": ["A4"], "validation": ["A5"], "test": ["A6"]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.mark.parametrize("window", [(16, 16, 8), (16, 16, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_any_layout(name, window, organs):
    experiment = ScanFolder(organs, name, cache=organs / "cache")
    recipe = experiment.recipe_type()(epochs=2, crops=1, window=window, drop_from=0.3, rotate=0.3, contrast=0.3)
    p = experiment.prepare(recipe)
    assert p.method.modalities == ("ct", "pet") and p.train.available.tolist()[1:3] == [[True, False], [False, True]]
    history = fit(p)
    assert history.loss.notna().all()
    table = evaluate(p.method, p.task, p.test)
    organ = [f"dice_{r}" for r in experiment.layout.regions]
    assert len(organ) == 4 and table.subset.tolist() == ["ct", "pet", "ct+pet"] and table[organ].notna().all(axis=None)


def test_a_window_is_halved_or_a_slice():
    for window in ((64, 64, 1), (16, 8, 24)):
        SegmentationRecipe(window=window)
    for window in ((1, 64, 64), (60, 64, 1), (64, 64, 4)):
        with pytest.raises(Exception, match="does not suit 'compact'"):
            SegmentationRecipe(window=window)
    with pytest.raises(Exception, match="does not suit 'reference'"):
        SegmentationRecipe(window=(64, 64, 1), network="reference")


def authors_state() -> dict[str, torch.Tensor]:
    "Names and shapes of a checkpoint of the authors' code, written down from what they published."
    shapes = {"shared_enc.backbone.conv1.weight": (64, 1, 7, 7, 7), "kd_weights.kd_weights": (4,)}
    normed = {"shared_enc.backbone.norm1": 64, "shared_enc.asppreduce.1": 256, "shared_enc.aspp.conv_cat.1": 256}
    inputs = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 320), (3, 4, 6, 3)), 1):
        for k in range(blocks):
            block = f"shared_enc.backbone.layer{stage}.{k}"
            for n, (i, o, size) in enumerate(((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
                shapes[f"{block}.conv{n}.weight"] = (o, i, size, size, size)
                normed[f"{block}.norm{n}"] = o
            if k == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, inputs, 1, 1, 1)
                normed[f"{block}.downsample.1"] = 4 * width
            inputs = 4 * width
    shapes["shared_enc.asppreduce.0.weight"] = (256, 1280, 1, 1, 1)
    for branch, size in enumerate((1, 3, 3, 3), 1):
        shapes[f"shared_enc.aspp.branch{branch}.0.weight"] = (256, 256, size, size, size)
        normed[f"shared_enc.aspp.branch{branch}.1"] = 256
    shapes["shared_enc.aspp.branch5_conv.weight"] = (256, 256, 1, 1, 1)
    normed["shared_enc.aspp.branch5_norm"] = 256
    shapes["shared_enc.aspp.conv_cat.0.weight"] = (256, 5 * 256, 1, 1, 1)
    below = 4 * 256
    for stage, (skip, width) in reversed(list(enumerate(((64, 32), (256, 64), (512, 128), (1024, 256))))):
        shapes[f"shared_dec.transposeconv_stage{stage}.weight"] = (below, width, 2, 2, 2)
        shapes[f"shared_dec.shortcut_conv{stage}.0.weight"] = (width, 4 * skip, 1, 1, 1)
        normed[f"shared_dec.shortcut_conv{stage}.1"] = width
        for n in (1, 2):
            shapes[f"shared_dec.stage{stage}_de.conv{n}.weight"] = (width, width, 3, 3, 3)
            normed[f"shared_dec.stage{stage}_de.norm{n}"] = width
        below = width
    shapes["shared_dec.cls_conv.0.weight"] = (3, 32, 1, 1, 1)
    shapes |= {f"{name}.{part}": (n,) for name, n in normed.items() for part in ("weight", "bias")}
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def test_a_checkpoint_of_the_authors_fits_the_reference_network():
    state = {f"module.{k}": v for k, v in authors_state().items()}
    state["module.shared_dec.cls_conv.0.weight"] = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 32, 1, 1, 1)
    weights = from_authors(state)
    with torch.device("meta"):
        network = segmenter(("flair", "t1", "t1c", "t2"), "reference")
    network.load_state_dict(weights, strict=True, assign=True)
    assert weights["decoder.out.weight"][:, 0, 0, 0, 0].tolist() == [0, 2, 1]  # ET, WT, TC are ET, TC, WT here
    levels = network.encoders.networks[0](torch.empty(4, 1, 32, 64, 64, device="meta"))
    assert network.decoder([level[None] for level in levels]).shape == (1, 3, 32, 64, 64)
    with pytest.raises(MetakdError, match="no checkpoint of the authors' network"):
        from_authors({k: v for k, v in state.items() if "layer3.5" not in k})


def test_a_constant_view_adds_nothing_to_the_pyramid():
    "Why filters of zeros stand for the authors' normalised global view."
    torch.manual_seed(0)
    pyramid, x = Pyramid(8).eval(), torch.randn(2, 8, 4, 4, 4)
    with torch.no_grad():
        answers = []
        for constant in (0.0, 0.7):
            views = [view(x) for view in pyramid.views]
            answers.append(pyramid.merge(torch.cat([*views, torch.full_like(views[0], constant)], 1)))
        pyramid.whole[0].weight.zero_()
        answers.append(pyramid(x))
    assert torch.allclose(answers[0], answers[1], atol=1e-4)
    assert torch.allclose(answers[0], answers[2], atol=1e-4)
