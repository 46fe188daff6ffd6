"""Segmentation as a whole program: killed and resumed, interrupted while predicting, in two processes, with scans that
are wrong.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from conftest import assert_same_run, hears_ctrl_c, log, metakd_in_two_processes
from metakd.batch import all_subsets
from metakd.cli import main
from metakd.data.scans import Volumes, find_cases
from metakd.lab.table1 import Brats, table1
from metakd.methods.supervised import SegmentationRecipe
from metakd.training import load_weights, train

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    "--recipe.no-relative",
    "--recipe.epochs",
    "3",
    "--recipe.crops",
    "2",
    "--recipe.window",
    "16",
    "16",
    "16",
    "--recipe.drop-from",
    "0.3",
    "--recipe.distill-from",
    "0.3",
    "--checkpoint-seconds",
    "0",
]


def metakd(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "metakd.cli", *map(str, args)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    "A training that nobody disturbed."
    out = tmp_path_factory.mktemp("run") / "run"
    torch.set_num_threads(1)
    main(command(cohort, out)[3:])
    return out


def command(cohort, out, *more):
    return [
        sys.executable,
        "-m",
        "metakd.cli",
        "train",
        "brats",
        "--data",
        str(cohort),
        "--cache",
        str(out.parent / "cache"),
        "--out",
        str(out),
        *SMALL,
        *more,
    ]


def test_sigkill_then_resume_gives_the_same_bits(cohort, run, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(cohort, out), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(2400):
        if list((out / "checkpoints").glob("step-*")):
            break
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "weights.safetensors").exists()
    main(command(cohort, out, "--resume")[3:])
    assert_same_run(run, out)


def test_resume_in_mid_epoch_gives_the_same_bits(cohort, tmp_path):
    recipe = Brats(cohort).recipe_type()(epochs=2, crops=2, window=(16, 16, 16), drop_from=0.3, distill_from=0.3)

    def go(out, **how):
        p = Brats(cohort, cache=tmp_path / "cache").prepare(recipe)
        train(p.method, p.task, p.recipe, p.train, p.validation, None, out, progress=False, meta=p.meta, **how)
        return p.method.state_dict()

    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", stop_after=4)  # an epoch has three steps
    parts = go(tmp_path / "parts", resume=True)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_two_processes_give_the_losses_of_one(cohort, run, tmp_path):
    metakd_in_two_processes(tmp_path, *command(cohort, tmp_path / "two")[3:])
    one, two = log(run), log(tmp_path / "two")
    for column in ("loss", "task", "distillation", "meta", "w_t1c"):
        assert (one[column] - two[column]).abs().max() < 2e-3, column  # sums in another order, through AdamW


def test_an_absent_sequence_is_never_opened_and_each_window_is_encoded_once(cohort, tmp_path):
    cases = find_cases(cohort)
    four = next(c for c in cases if all(c.available))
    gone = tmp_path / "gone_t1.nii.gz"
    gone.write_bytes(b"a file that cannot be read")
    three = replace(four, images={m: i for m, i in four.images.items() if m != "t1"})
    assert Volumes([three], (16, 16, 16)).draw(torch.tensor([0]), 0).available.tolist() == [[True, False, True, True]]
    method, task = Brats(Path(".")).build(SegmentationRecipe(window=(16, 16, 16)), window_batch=1)
    rows = []
    method.model.encoders.networks[0].register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    batch = next(Volumes([four], (16, 16, 16)).whole())
    with torch.inference_mode():
        answers = task.answer(method, batch.x, batch.available, all_subsets(4))
    assert answers.shape == (15, 1, 3, *batch.y.shape[2:])
    windows = len(rows)
    assert rows == [4] * windows  # 15 subsets, and each window's four sequences went through the encoder once


@pytest.mark.parametrize("skips", ["mean", "zero"])
def test_what_stands_in_an_absent_sequence_does_not_matter(skips):
    method, _ = Brats(Path(".")).build(SegmentationRecipe(window=(16, 16, 16), skips=skips))
    x = {m: torch.randn(2, 1, 16, 16, 16) for m in method.modalities}
    present = torch.tensor([[True, False, False, True], [False, True, False, False]])
    with torch.inference_mode():
        clean = method.predict(x, present)
        poisoned = {
            m: v.masked_fill(~present[:, k].view(2, 1, 1, 1, 1), float("nan")) for k, (m, v) in enumerate(x.items())
        }
        assert torch.equal(method.predict(poisoned, present), clean)


def test_predictions_lie_on_the_input_and_a_volume_smaller_than_the_window_is_fine(cohort, run, tmp_path):
    small = tmp_path / "small"
    case = find_cases(cohort)[0]
    affine = np.array([[0, -2.0, 0, 10], [3.0, 0, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]])  # rotated, anisotropic
    volume = np.asarray(nib.load(case.images["t1"].path).dataobj)[6:18, 5:19, 8:16]
    small.mkdir()
    nib.save(nib.Nifti1Image(volume, affine), small / "X_t1.nii.gz")
    done = metakd("predict", run, small, "--out", tmp_path / "out", "--mirror", "--post", "--save-probabilities")
    assert done.returncode == 0, done.stderr
    label = nib.load(tmp_path / "out" / "X_seg.nii.gz")
    assert (
        label.shape == volume.shape
        and np.allclose(label.affine, affine)
        and np.allclose(label.header.get_zooms(), nib.load(small / "X_t1.nii.gz").header.get_zooms())
    )
    assert nib.load(tmp_path / "out" / "X_seg_probabilities.nii.gz").shape == (*volume.shape, 3)


def test_ctrl_c_while_predicting_leaves_no_half_file(cohort, run, tmp_path):
    many, out = tmp_path / "many", tmp_path / "out"
    flair = find_cases(cohort)[0].images["flair"].path.read_bytes()
    many.mkdir()
    for k in range(200):
        (many / f"P{k:03}_flair.nii.gz").write_bytes(flair)
    process = subprocess.Popen(
        [sys.executable, "-m", "metakd.cli", "predict", str(run), str(many), "--out", str(out)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    for _ in range(2400):
        if len(list(out.glob("*.nii.gz"))) >= 3:
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in errors
    written = list(out.glob("*.nii.gz"))
    assert 3 <= len(written) < 200 and not [p for p in out.iterdir() if p.name.endswith(".tmp")]
    for path in written:
        assert np.asarray(nib.load(path).dataobj).shape == (24, 24, 24)


@pytest.mark.parametrize(
    "args, said",
    [
        (["predict", "RUN", "TMP/empty"], "no sequence found"),
        (["predict", "TMP/nowhere", "COHORT"], "no such file"),
        (["predict", "RUN", "COHORT", "--out", "TMP/locked/out"], "could not be written"),
        (["train", "brats", "--data", "TMP/empty", "--out", "TMP/new"], "no cases found"),
        (
            ["train", "brats", "--data", "COHORT", "--out", "TMP/new", "--recipe.window", "20", "16", "16"],
            "multiples of 8 x 8 x 8",
        ),
        (["train", "brats", "--data", "COHORT", "--out", "TMP/new", "--method", "Oracle"], "unknown method"),
    ],
)
def test_mistakes_are_one_line_and_status_2(args, said, cohort, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").write_text("a file where a folder should be")
    with pytest.raises(SystemExit) as stopped:
        main([a.replace("RUN", str(run)).replace("COHORT", str(cohort)).replace("TMP", str(tmp_path)) for a in args])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and said in errors and "Traceback" not in errors
    assert not (tmp_path / "new").exists()


def test_training_on_half_precision_and_with_the_zero_skips(cohort, tmp_path):
    recipe = Brats(cohort).recipe_type()(
        epochs=1, crops=1, window=(24, 24, 24), precision="bf16", skips="zero", drop_from=0.0, distill_from=0.0
    )
    p = Brats(cohort, cache=tmp_path / "cache").prepare(recipe)
    history = train(p.method, p.task, p.recipe, p.train, p.validation, p.tested, meta=p.meta, progress=False)
    assert history.loss.notna().all() and {q.dtype for q in p.method.parameters()} == {torch.float32}


def test_table1_continues_where_it_stopped(cohort, tmp_path):
    recipe = SegmentationRecipe(epochs=1, crops=1, window=(24, 24, 24))
    kw = dict(recipe=recipe, seeds=1, workers=1, backend="sequential", runs=tmp_path / "runs")
    first = table1(tmp_path / "out", cohort, methods=["NoKD"], **kw)
    both = table1(tmp_path / "out", cohort, methods=["NoKD", "MetaKD"], **kw)
    assert len(both) == 2 * len(first) and both[both.method == "NoKD"].dice.tolist() == first.dice.tolist()
    trained = Brats(cohort).prepare(recipe)
    assert load_weights(tmp_path / "runs" / "MetaKD-0", trained.method)
