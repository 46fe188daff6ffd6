"""Nothing lost, nothing wrong in silence: what users do one step beside the path. The command line in this process;
each test is one promise.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import log
from metakd.batch import Batch
from metakd.cli import main
from metakd.data.audiovision import images
from metakd.data.scans import find_cases, normalise
from metakd.files import MetakdError
from metakd.methods.supervised import Supervised
from metakd.nn.model import classifier
from metakd.tasks.base import Recipe
from metakd.tasks.classification import Classification
from metakd.training import train

TINY = ["--recipe.epochs", "1", "--recipe.crops", "1", "--recipe.window", "24", "24", "24"]
pytestmark = pytest.mark.usefixtures("one_thread")


def metakd(*args) -> tuple[int, str, str]:  # exit status, output, errors
    "The command, in this process."
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        main([str(a) for a in args])
    except SystemExit as e:
        return e.code or 0, out.getvalue(), err.getvalue()
    finally:
        sys.stdout, sys.stderr = before
    return 0, out.getvalue(), err.getvalue()


def one_line(said: tuple[int, str, str], *words: str) -> None:
    "A mistake: status 2, one line, with these words."
    status, _, errors = said
    lines = [line for line in errors.strip().splitlines() if line.startswith("metakd: ")]
    assert status == 2 and lines and all(w in errors for w in words), said
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("trust") / "run"
    os.environ["METAKD_CACHE"] = str(out.parent / "cache")
    assert metakd("train", "brats", "--data", cohort, "--out", out, *TINY)[0] == 0
    yield out
    del os.environ["METAKD_CACHE"]


@pytest.fixture
def patient(cohort, tmp_path):
    "A folder with the four files of one complete patient, called as no challenge calls them."
    folder = tmp_path / "Anna"
    folder.mkdir()
    case = next(c for c in find_cases(cohort) if all(c.available))
    for m, image in case.images.items():
        shutil.copy(image.path, folder / f"{m}.nii.gz")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# 1. Nothing of the user's is overwritten


def test_predict_beside_the_scans_leaves_them_as_they_are(run, patient):
    before = contents(patient)
    status, said, _ = metakd(
        "predict",
        run,
        "--sequence",
        *(f"{m}={patient / f'{m}.nii.gz'}" for m in ("flair", "t1", "t1c", "t2")),
        "--out",
        patient,
        "--no-png",
    )
    assert (
        status == 0
        and "Anna: from flair+t1+t1c+t2; ET " in said
        and "labels of brats: 1 core, 2 oedema, 4 enhancing tumour" in said
    )
    after = contents(patient)
    assert {k: after[k] for k in before} == before and set(after) - set(before) == {"Anna_seg.nii.gz", "volumes.csv"}
    again = "predict", run, "--sequence", f"flair={patient / 'flair.nii.gz'}", "--out", patient, "--no-png"
    one_line(metakd(*again), "is there already")
    assert metakd(*again, "--overwrite")[0] == 0 and metakd(*again, "--skip-existing")[0] == 0
    one_line(metakd(*again, "--overwrite", "--skip-existing"), "choose one")
    assert len(pd.read_csv(patient / "volumes.csv")) == 1
    one_line(
        metakd(
            "predict",
            run,
            "--sequence",
            f"flair={patient / 'flair.nii.gz'}",
            "--out",
            patient,
            "--name",
            "flair.nii.gz/..",
        ),
        "is no name for files",
    )
    one_line(metakd("predict", run, "--sequence", "flair=a.nii", "flair=b.nii"), "--sequence flair: named twice")


def test_an_output_that_leads_to_an_input_is_refused(run, patient):
    scan = patient / "flair.nii.gz"
    before = scan.read_bytes()
    (patient / "B_seg.nii.gz").symlink_to(scan)
    one_line(
        metakd("predict", run, "--sequence", f"flair={scan}", "--name", "B", "--out", patient, "--overwrite"),
        "would overwrite the input",
    )
    os.link(scan, patient / "C_seg.nii.gz")
    one_line(
        metakd("predict", run, "--sequence", f"flair={scan}", "--name", "C", "--out", patient, "--overwrite"),
        "would overwrite the input",
    )
    assert scan.read_bytes() == before


def test_nobody_trains_on_a_prediction(run, cohort, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(cohort, own)
    case = find_cases(own)[0]
    case.label.unlink()
    assert metakd("predict", run, case.images["t1"].path.parent, "--out", case.label.parent, "--no-png")[0] == 0
    one_line(
        metakd("train", "brats", "--data", own, "--out", tmp_path / "new", *TINY),
        "is a prediction of metakd and no expert's segmentation",
    )
    assert not (tmp_path / "new").exists()


def test_two_patients_of_one_name(run, patient, tmp_path):
    (tmp_path / "siteA").mkdir(), (tmp_path / "siteB").mkdir()
    (
        shutil.copy(patient / "flair.nii.gz", tmp_path / "siteA" / "P1_flair.nii.gz"),
        shutil.copy(patient / "t1.nii.gz", tmp_path / "siteB" / "P1_t1.nii.gz"),
    )
    one_line(
        metakd("predict", run, tmp_path / "siteA", tmp_path / "siteB", "--out", tmp_path / "out"),
        "two patients of one name, P1",
    )
    for site, status in (("siteA", 0), ("siteB", 2)):
        assert metakd("predict", run, tmp_path / site, "--out", tmp_path / "one", "--no-png")[0] == status
    both = tmp_path / "both"
    both.mkdir()
    for site in ("siteA", "siteB"):
        (tmp_path / site).rename(both / site)
    status, said, errors = metakd("predict", run, both, "--out", tmp_path / "two", "--no-png")
    assert (
        status == 0
        and "siteA_P1: from flair;" in said
        and "siteB_P1: from t1;" in said
        and "read as different patients" in errors
    )


def test_a_table_of_somebody_else_is_no_output(run, tmp_path):
    mine = tmp_path / "label.csv"
    mine.write_text("PTID,DIAGNOSIS\nS1,1")
    one_line(metakd("evaluate", run, "--csv", mine), "holds something else")
    assert mine.read_text() == "PTID,DIAGNOSIS\nS1,1"


def test_two_trainings_in_one_folder(cohort, run, tmp_path):
    from metakd.files import claimed

    with claimed(tmp_path / "run", "training"):
        one_line(
            metakd("train", "brats", "--data", cohort, "--out", tmp_path / "run", *TINY),
            "another training is writing there now",
        )
    command = [
        sys.executable,
        "-m",
        "metakd.cli",
        "train",
        "audiovision",
        "--rate",
        "0.2",
        "--recipe.epochs",
        "4",
        "--out",
        str(tmp_path / "race"),
    ]
    two = [
        subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [p.communicate(timeout=240)[1] for p in two]
    assert sorted(p.returncode for p in two) == [0, 2]
    assert any("another training is writing there now" in e or "already holds a run" in e for e in errors)
    assert log(tmp_path / "race").epoch.tolist() == [1, 2, 3, 4]


def test_a_killed_worker_is_one_line(tmp_path):
    script = f"""
import os, signal
from metakd.lab.sweep import sweep
from metakd.files import MetakdError

def work(k): os.kill(os.getpid(), signal.SIGKILL)

try: sweep([dict(k=0), dict(k=1)], work, {str(tmp_path)!r}, lambda job, out: False)
except MetakdError as e: print(e)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("a worker was killed") and "Traceback" not in done.stdout, done.stderr[-2000:]


# 2. A run knows what it is


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda own: ("--data", own), "split.train"),
        (lambda own: ("--split", own / "other.json"), "split."),
        (lambda own: ("--method", "NoKD"), "settings.method: MetaKD then, NoKD now"),
        (lambda own: ("--recipe.lr", "0.1"), "lr: 0.002 against 0.1"),
    ],
)
def test_resume_refuses_what_differs(change, said, cohort, run, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(cohort, own)
    case = find_cases(own)[0]
    nib.save(
        nib.Nifti1Image(
            np.asarray(nib.load(case.images["t1"].path).dataobj) + 1, nib.load(case.images["t1"].path).affine
        ),
        case.images["t1"].path,
    )
    split = json.loads((own / "split.json").read_text())
    (own / "other.json").write_text(json.dumps(split | {"train": split["train"][1:]}))
    one_line(metakd("train", "brats", "--data", cohort, "--out", run, *TINY, "--resume", *change(own)), said)


def test_the_recipe_is_there_before_the_first_checkpoint(cohort, run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("experiment.json", "recipe.json"):
        shutil.copy(run / name, begun)
    one_line(
        metakd("train", "brats", "--data", cohort, "--out", begun, *TINY, "--resume", "--recipe.lr", "0.1"),
        "belongs to another recipe (lr: 0.002 against 0.1",
    )
    assert metakd("train", "brats", "--data", cohort, "--out", begun, *TINY, "--resume")[0] == 0 and log(
        begun
    ).epoch.tolist() == [1]


def test_resume_of_digits_at_another_rate(tmp_path):
    out = tmp_path / "run"
    assert metakd("train", "audiovision", "--rate", "0.2", "--recipe.epochs", "1", "--out", out)[0] == 0
    one_line(
        metakd("train", "audiovision", "--rate", "0.1", "--recipe.epochs", "1", "--out", out, "--resume"),
        "settings.rate: 0.2 then, 0.1 now",
    )
    status, _, errors = metakd(
        "train", "audiovision", "--rate", "0.2", "--recipe.epochs", "2", "--out", out, "--resume"
    )
    assert status == 0 and "trained for 1 epochs so far, now for 2" in errors and log(out).epoch.tolist() == [1, 2]


def test_evaluate_keeps_to_the_split_of_the_training_and_finds_data_that_moved(cohort, run, tmp_path, monkeypatch):
    own, moved = tmp_path / "own", tmp_path / "moved"
    shutil.copytree(cohort, own)
    monkeypatch.chdir(tmp_path)
    assert metakd("train", "brats", "--data", "own", "--out", tmp_path / "run", *TINY)[0] == 0
    first = metakd("evaluate", tmp_path / "run")
    split = json.loads((own / "split.json").read_text())
    (own / "split.json").write_text(json.dumps(split | {"train": split["test"], "test": split["train"]}))
    monkeypatch.chdir(cohort)  # a relative --data is not looked for from here
    assert metakd("evaluate", tmp_path / "run")[:2] == first[:2] and first[0] == 0
    own.rename(moved)
    one_line(metakd("evaluate", tmp_path / "run"), "own: no such folder")
    assert metakd("evaluate", tmp_path / "run", "--data", moved)[:2] == first[:2]
    case = next(c for c in find_cases(moved) if c.name == split["test"][0])
    image = nib.load(case.label)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, 0), image.affine), case.label)
    one_line(
        metakd("evaluate", tmp_path / "run", "--data", moved), "its test data are not those of its training any more"
    )
    (moved / "mine.json").write_text(json.dumps({"test": split["test"]}))
    assert metakd("evaluate", tmp_path / "run", "--data", moved, "--split", moved / "mine.json")[0] == 0
    (moved / "mine.json").write_text(json.dumps({"test": split["train"][:1]}))
    one_line(
        metakd("evaluate", tmp_path / "run", "--data", moved, "--split", moved / "mine.json"),
        "on which this run was trained or chosen",
    )


def test_a_stopped_run_can_be_evaluated_and_predicts(cohort, run, patient, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "weights.safetensors").unlink(), (stopped / "recipe.json").unlink()
    status, table, errors = metakd("evaluate", stopped)
    assert (
        status == 0
        and "this training has not ended; its weights are those after step" in errors
        and table == metakd("evaluate", run)[1]
    )
    assert metakd("predict", stopped, patient, "--out", tmp_path / "out", "--no-png")[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "3",
        "{",
        "",
        "[" * 100_000,
        '{"format": 2}',
        '{"format": 2, "about": {}, "training": {}, "versions": {}}',
        '{"experiment": "brats", "data": "x"}',
        '{"format": 2, "about": {"experiment": ["brats"]}, "training": {}, "versions": {}}',
        '{"format": 2, "about": {"experiment": "brats", "settings": 5, "paths": {}}, "training": {}, "versions": {}}',
    ],
)
def test_a_torn_or_foreign_experiment_is_one_line(text, run, patient, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(run, bad)
    (bad / "experiment.json").write_text(text)
    one_line(metakd("evaluate", bad))
    one_line(metakd("predict", bad, patient, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_of_a_stranger_writes_nowhere_else(cohort, run, patient, tmp_path):
    strange, elsewhere = tmp_path / "strange", tmp_path / "elsewhere"
    shutil.copytree(run, strange)
    said = json.loads((strange / "experiment.json").read_text())
    own = tmp_path / "own"
    shutil.copytree(cohort, own), (own / "split.json").unlink()
    said["about"]["paths"] = {
        k: {"typed": str(elsewhere / k), "absolute": str(elsewhere / k)} for k in ("cache", "split")
    } | {"data": {"typed": str(own), "absolute": str(own)}}
    (strange / "experiment.json").write_text(json.dumps(said))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert (
        metakd("evaluate", strange)[0] == 0
        and metakd("predict", strange, patient, "--out", tmp_path / "out", "--no-png")[0] == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "out"]) and not (own / "split.json").exists()


def test_new_patients_are_spoken_of(cohort, run, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(cohort, own)
    split = json.loads((own / "split.json").read_text())
    (own / "split.json").write_text(json.dumps(split | {"test": split["test"][1:]}))
    assert (
        f"1 of 10 cases are in no part of the split and are not used: {split['test'][0]}"
        in metakd("train", "brats", "--data", own, "--out", tmp_path / "run", *TINY)[2]
    )


# 3. One bad item never ends a batch


def test_one_bad_patient_never_ends_a_batch(run, patient, tmp_path):
    good = (patient / "flair.nii.gz").read_bytes()
    image = nib.load(patient / "flair.nii.gz")
    volume = np.asarray(image.dataobj).astype(np.float32)
    many = tmp_path / "many"
    many.mkdir()

    def put(name, content):
        if isinstance(content, bytes):
            (many / name).write_bytes(content)
        else:
            nib.save(content, many / name)

    middle = len(good) // 2
    hot, rgb = volume.copy(), np.zeros(volume.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    hot[tuple(s // 2 for s in hot.shape)] = 1e9
    huge = bytearray(nib.Nifti1Image(volume, image.affine).to_bytes())
    code = bytearray(nib.Nifti1Image(volume, image.affine).to_bytes())
    huge[42:48], code[70:72] = np.array([30_000] * 3, "<i2").tobytes(), np.array([999], "<i2").tobytes()
    bad = {
        "zlib": good[:middle] + bytes(64) + good[middle + 64 :],
        "cut": good[:-9],
        "empty": b"",
        "text": b"not a scan",
        "rgb": nib.Nifti1Image(rgb, image.affine),
        "huge": bytes(huge),
        "code": bytes(code),
        "nan": nib.Nifti1Image(np.where(volume > 0, np.nan, 0).astype(np.float32), image.affine),
        "flat": nib.Nifti1Image(volume * 0, image.affine),
        "complex": nib.Nifti1Image(volume.astype(np.complex64), image.affine),
    }
    fine = {
        "hot": nib.Nifti1Image(hot, image.affine),
        "slice": nib.Nifti1Image(volume[:, :, 12:13], image.affine),
        r"P$\frac$": good,
        "N" * 232: good,
        "ok": good,
    }
    for name, content in {**bad, **fine}.items():
        put(
            f"{name}_flair.nii{'.gz' if isinstance(content, bytes) and content[:2] == bytes([31, 139]) else ''}",
            content,
        )
    status, said, errors = metakd("predict", run, many, "--out", tmp_path / "out")
    assert (
        status == 1
        and f"{len(fine)} patients segmented" in said
        and f"{len(bad)} of {len(bad) + len(fine)} patients could not be segmented" in errors
        and "Traceback" not in errors
    )
    for name in bad:
        assert f"{name}_flair.nii" in errors or f"{name}:" in errors, name
    for name in fine:
        assert (tmp_path / "out" / f"{name}_seg.nii.gz").exists(), name
    one_line(
        metakd("predict", run, "--sequence", f"flair={tmp_path / 'x.mgz'}", "--out", tmp_path / "mgz"), "no such file"
    )
    (tmp_path / "x.mgz").write_bytes(bytes([0, 0, 0, 1, 0, 0, 0, 9]) + bytes(600))
    status, _, errors = metakd("predict", run, "--sequence", f"flair={tmp_path / 'x.mgz'}", "--out", tmp_path / "mgz")
    assert status == 1 and "not a whole MGH file" in errors


def test_everything_wrong_with_the_training_data_is_said_before_the_first_step(cohort, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(cohort, own)
    split, cases = json.loads((own / "split.json").read_text()), {c.name: c for c in find_cases(own)}
    train, validation, test = (cases[split[p][0]] for p in ("train", "validation", "test"))
    train.images["flair"].path.write_bytes(train.images["flair"].path.read_bytes()[:-20])
    label = nib.load(validation.label)
    nib.save(
        nib.Nifti1Image(np.asarray(label.dataobj), label.affine + np.array([[0, 0, 0, 30]] + [[0] * 4] * 3)),
        validation.label,
    )
    nib.save(nib.Nifti1Image(np.full(label.shape, 7, np.uint8), label.affine), test.label)
    said = metakd("train", "brats", "--data", own, "--out", tmp_path / "run", *TINY)
    one_line(
        said,
        "not a whole NIfTI file",
        "lie 30 mm apart",
        "label 7 is not one of 0, 1, 2, 4",
        train.name,
        validation.name,
        test.name,
    )
    assert not (tmp_path / "run").exists()


def test_a_cohort_in_which_nobody_is_complete(cohort, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(cohort, own), (own / "split.json").unlink()
    for k, case in enumerate(find_cases(own)):
        for m in [m for m in case.images if m not in (("flair", "t1"), ("t1c",), ("t2",))[k % 3]]:
            case.images[m].path.unlink()
        if not any(i.path.exists() for i in case.images.values()):
            shutil.rmtree(case.label.parent)
    for method in ("MetaKD", "NoKD"):
        status, _, errors = metakd(
            "train", "brats", "--data", own, "--method", method, "--out", tmp_path / method, *TINY
        )
        assert status == 0, errors
    for case in find_cases(own):  # and now nobody has two
        for m in list(case.images)[1:]:
            case.images[m].path.unlink()
    (own / "split.json").unlink()
    assert metakd("train", "brats", "--data", own, "--method", "NoKD", "--out", tmp_path / "one", *TINY)[0] == 0
    one_line(
        metakd("train", "brats", "--data", own, "--out", tmp_path / "two", *TINY), "no held-out sample has two of them"
    )


METAKD = [sys.executable, "-m", "metakd.cli"]
TABLE2 = [*METAKD, *"table2 --rates 0.2 --seeds 2 --protocols paper-random --recipe.epochs 1".split()]  # a small one


def test_an_ascii_terminal(tmp_path):
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TABLE2, "--methods", "NoKD", "--jobs", "1", "--out", tmp_path],
        env=env,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0 and b"+-" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    "args",
    [
        ["train", "audiovision", "--out", "FILE"],
        ["train", "audiovision", "--out", "FILE/run"],
        ["train", "audiovision", "--out", "/proc/run"],
        ["table2", "--out", "FILE"],
        ["table2", "--out", "/proc/t"],
        ["study", "--out", "/proc/t"],
        ["table1", "--data", "COHORT", "--out", "FILE"],
        ["demo", "--out", "FILE"],
        ["glioma", "--out", "FILE"],
        ["glioma", "--out", "/proc/g"],
        ["glioma", "--out", "NEW", "--shape", "32", "32", "32"],
        ["glioma", "--out", "NEW", "--jobs", "0"],
        ["glioma", "--out", "NEW", "--spacing", "nan"],
        ["glioma", "--out", "NEW", "--patients", "-1"],
        ["clinic", "--out", "FILE"],
        ["clinic", "--out", "NEW", "--patients", "-3"],
        ["clinic", "--out", "NEW", "--spacing", "nan"],
        ["clinic", "--out", "NEW", "--spacing", "inf"],
        ["predict", "RUN", "PATIENT", "--out", "NEW", "--device", "gpu"],
        ["predict", "RUN", "PATIENT", "--out", "NEW", "--device", "cuda:7"],
        ["predict", "RUN", "PATIENT", "--out", "NEW", "--device", "meta"],
        ["predict", "RUN", "PATIENT", "--out", "NEW", "--window-batch", "0"],
        ["predict", "RUN", "PATIENT", "--out", "FILE"],
        ["predict", "RUN", "PATIENT", "--out", "NEW", "--labels", "mine"],
        ["predict", "RUN", "--out", "NEW"],
        ["predict", "RUN", "PATIENT", "--sequence", "flair=FILE", "--out", "NEW"],
        ["evaluate", "RUN", "--device", "gpu"],
        ["evaluate", "RUN", "--csv", "/proc/x.csv"],
        ["evaluate", "RUN", "--split", "FILE"],
        ["evaluate", "RUN", "--data", "NEW"],
        ["evaluate", "FILE"],
        ["table1", "--data", "COHORT", "--out", "NEW", "--seeds", "0"],
        ["table1", "--data", "COHORT", "--out", "NEW", "--methods", "x"],
        ["table1", "--data", "COHORT", "--out", "NEW", "--split", "FILE"],
        ["table2", "--out", "NEW", "--backend", "nonsense", "--methods", "NoKD", "--recipe.epochs", "1"],
        ["table2", "--out", "NEW", "--rates", "2"],
        ["table2", "--out", "NEW", "--jobs", "0"],
        ["table2", "--out", "NEW", "--path", "FILE"],
        ["train", "brats", "--data", "COHORT", "--out", "NEW", "--patients", "("],
        ["train", "brats", "--data", "COHORT", "--out", "NEW", "--patients", "x"],
        ["train", "brats", "--data", "COHORT", "--out", "NEW", "--labels", "x"],
        ["train", "brats", "--data", "FILE", "--out", "NEW"],
        ["train", "brats", "--data", "COHORT", "--out", "NEW", "--cache", "FILE"],
        ["train", "brats", "--data", "COHORT", "--out", "NEW", "--checkpoint-seconds", "-1"],
        ["train", "audiovision", "--out", "NEW", "--recipe.lr", "nan"],
        ["train", "audiovision", "--out", "NEW", "--recipe.epochs", "x"],
        ["train", "audiovision", "--out", "NEW", "--rate", "nan"],
        ["train", "study", "--out", "NEW", "--hidden", "nan"],
        ["train", "study", "--out", "NEW", "--data", "FILE"],
        ["study", "--out", "NEW", "--folds", "-2"],
        ["bench", "--repeats", "0"],
        ["data", "--path", "FILE"],
        ["--plugin", "no.such.module", "cache"],
        ["--plugin", "../x", "cache"],
        ["cache", "--clear", "x"],
        ["nonsense"],
    ],
)
def test_nonsense_is_refused_with_status_2_and_leaves_nothing(args, cohort, run, patient, tmp_path):
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    places = {"FILE": tmp_path / "file", "COHORT": cohort, "RUN": run, "NEW": tmp_path / "new", "PATIENT": patient}
    words = [str(places.get(a, a)).replace("FILE/", f"{tmp_path / 'file'}/") for a in args]
    status, _, errors = metakd(*words)
    assert status == 2 and errors.strip() and "Traceback" not in errors, (status, errors[-800:])
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


# 4. and 5. What is read is what is on disk; same scan, same answer


def test_intensities_do_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    for shape in ((32, 32, 32), (240, 240, 155)):
        volume = np.zeros(shape, np.float32)
        inside = tuple(slice(n // 6, n - n // 6) for n in shape)
        volume[inside] = rng.gamma(4, 100, volume[inside].shape).astype(np.float32)
        plain = normalise(volume)
        for a, b in ((30, 0), (1e6, 0), (0.01, 0), (2, -500), (100, 1000)):
            assert np.abs(normalise((volume.astype(np.float64) * a + b).astype(np.float32)) - plain).max() < 5e-3, (
                shape,
                a,
                b,
            )


def test_one_flipped_bit_is_seen(cohort, tmp_path):
    from metakd.data.nifti import read_nifti

    case = find_cases(cohort)[0]
    good, rng = case.images["flair"].path.read_bytes(), np.random.default_rng(0)
    right = read_nifti(case.images["flair"].path).values
    for _ in range(40):
        bad, at = bytearray(good), int(rng.integers(10, len(good)))
        bad[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / "bad_flair.nii.gz"
        path.write_bytes(bytes(bad))
        with pytest.raises(MetakdError):
            assert not np.array_equal(read_nifti(path).values, right)


def test_a_score_is_that_of_the_file(cohort, run, tmp_path):
    "Dice of every written label map, from the files alone, is what `evaluate --each` says of the full subset."
    names = json.loads((cohort / "split.json").read_text())["test"]
    cases = [c for c in find_cases(cohort) if c.name in names]
    assert metakd("evaluate", run, "--each", "--csv", tmp_path / "each.csv")[0] == 0
    assert metakd("predict", run, *(c.label.parent for c in cases), "--out", tmp_path / "out", "--no-png")[0] == 0
    table = pd.read_csv(tmp_path / "each.csv")
    assert set(table.name) == set(names)
    for c in cases:
        subset = "+".join(m for m in ("flair", "t1", "t1c", "t2") if m in c.images)
        row = table[(table.name == c.name) & (table.subset == subset)].iloc[0]
        ours, truth = (np.asarray(nib.load(p).dataobj) for p in (tmp_path / "out" / f"{c.name}_seg.nii.gz", c.label))
        for region, values in {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}.items():
            a, b = np.isin(ours, values), np.isin(truth, values)
            dice = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0
            assert row[f"dice_{region}"] == pytest.approx(dice, abs=1e-6), (c.name, region)


def test_evaluate_says_distances_and_what_is_common(cohort, run, tmp_path):
    own, names = tmp_path / "own", json.loads((cohort / "split.json").read_text())["test"]
    shutil.copytree(cohort, own)
    next(c for c in find_cases(own) if c.name == names[0]).images["t1"].path.unlink()
    (own / "mine.json").write_text(json.dumps({"test": names}))
    status, _, errors = metakd(
        "evaluate", run, "--data", own, "--split", own / "mine.json", "--csv", tmp_path / "t.csv"
    )
    table = pd.read_csv(tmp_path / "t.csv").set_index("subset")
    assert status == 0, errors
    assert (
        (table.n["t2"], table.n["t1"], table.n_common["t2"], table.n_common["t1"]) == (3, 2, 2, 2)
        and table.common_dice_WT["t1"] == table.dice_WT["t1"]
        and "hd95_WT" in table
    )
    assert metakd("evaluate", run, "--post")[0] == 0


def test_labels_written_without_the_scans_header(run, patient, tmp_path):
    image = nib.load(patient / "flair.nii.gz")
    image.header["descrip"] = b"Anna Muster, born 1.1.1970"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Anna Muster"))
    nib.save(image, patient / "flair.nii.gz")
    assert metakd("predict", run, patient, "--out", tmp_path / "out", "--no-png", "--save-probabilities")[0] == 0
    for path in (tmp_path / "out").glob("*.nii.gz"):
        written = nib.load(path)
        assert (
            b"Muster" not in written.to_bytes()
            and not written.header.extensions
            and np.allclose(written.affine, image.affine)
        )


def test_a_scan_unlike_the_training_scans_is_spoken_of(run, patient, tmp_path):
    rng = np.random.default_rng(0)
    for m in ("flair", "t1", "t1c", "t2"):
        image = nib.load(patient / f"{m}.nii.gz")
        nib.save(
            nib.Nifti1Image(
                (np.asarray(image.dataobj) + rng.gamma(2, 150, image.shape)).astype(np.float32), image.affine
            ),
            patient / f"{m}.nii.gz",
        )
    status, _, errors = metakd("predict", run, patient, "--out", tmp_path / "out", "--no-png")
    assert status == 0 and "are not background, in training" in errors


# 7. Other people's methods

METHOD = """
from dataclasses import dataclass
from metakd import Recipe, Supervised, register
from metakd.methods.supervised import build_classifier

@dataclass(frozen=True)
class DoubtRecipe(Recipe):
    doubt: float = 0.1

class Doubt(Supervised):
    def training_loss(self, batch):
        loss, logs = super().training_loss(batch)
        p = self.model(batch.x, batch.available).log_softmax(1)
        return loss + self.recipe.doubt * (p.exp() * p).sum(1).mean(), logs

@register("Doubt", task="classification", recipe=DoubtRecipe)
def build(shapes, task, recipe):
    return Doubt(build_classifier(shapes, task, recipe), task, recipe)
"""


def test_a_method_of_a_script_runs_in_a_parallel_sweep(tmp_path):
    (tmp_path / "script.py").write_text(
        METHOD
        + f"""
if __name__ == "__main__":
    from metakd.lab.table2 import AudioVisionRecipe, table2, table2_jobs
    jobs = table2_jobs(("Doubt",), (0.2,), 2, (("paper", "random"),), ("image",))
    runs = table2({str(tmp_path / "out")!r}, AudioVisionRecipe(epochs=1), jobs, workers=2)
    print(runs.method.tolist())
"""
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "['Doubt', 'Doubt']" in done.stdout, done.stderr[-2000:]


def test_a_plugin_is_named_on_the_command_line(tmp_path):
    (tmp_path / "doubtful.py").write_text(METHOD)
    command = [*TABLE2, "--plugin", "doubtful", "--methods", "Doubt", "--out", tmp_path / "out"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "Doubt" in done.stdout, done.stderr[-2000:]
    done = subprocess.run(
        [*METAKD, *"train audiovision --plugin doubtful --method Doubt --help".split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "--recipe.doubt" in done.stdout


def test_the_cache_can_be_seen_and_emptied(tmp_path, monkeypatch, cohort):
    monkeypatch.setenv("METAKD_CACHE", str(tmp_path))
    assert metakd("train", "brats", "--data", cohort, "--method", "NoKD", "--out", tmp_path / "run", *TINY)[0] == 0
    (tmp_path / "scans" / "notes.txt").write_text("mine")
    assert "prepared scans: 20 files" in metakd("cache")[1]
    assert metakd("cache", "--clear")[0] == 0 and [p.name for p in (tmp_path / "scans").iterdir()] == ["notes.txt"]


def test_real_digits_in_any_unit_are_learnt_equally_well():
    pictures, y = images()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:1200]
    accuracy, answers = [], []
    for unit in (1, 255, 1e-3):
        torch.manual_seed(0)

        def present(part):
            return torch.ones(len(part), 1, dtype=torch.bool)

        parts = [Batch({"image": pictures[part] * unit}, present(part), y[part]) for part in (order[:800], order[800:])]
        task, recipe = Classification(10), Recipe(epochs=4)
        method = Supervised(classifier({"image": (1, 28, 28)}, 10), task, recipe)
        train(method, task, recipe, parts[0], parts[1], progress=False)
        answers.append(method.predict(parts[1].x, parts[1].available).argmax(1))
        accuracy.append((answers[-1] == y[order[800:]]).float().mean())
    assert min(accuracy) > 0.6 and max(accuracy) - min(accuracy) < 0.01
    assert all((a == answers[0]).float().mean() > 0.97 for a in answers)
