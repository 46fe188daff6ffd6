"""Methods for modalities of any shape: nothing absent read, kill and resume, several processes; and the command line
from a folder to a table.
"""

import pandas as pd
import pytest
import torch

from conftest import (
    assert_equal_in_both,
    assert_nothing_absent_is_read,
    assert_same_run,
    in_two_processes,
    kill_in_training,
    with_rubbish,
)
from metakd.batch import Batch, all_subsets
from metakd.cli import main
from metakd.lab.studies import Study
from metakd.tasks.classification import Classification

METHODS = list(Study.rows)
TRAINED = [*(m for m in METHODS if m != "HistGradientBoosting"), "SubsetKD"]  # step by step
SHAPES = {"scan": (1, 8, 8, 8), "blood": (7,), "genes": (20,), "picture": (1, 16, 16)}
SMALL = {"epochs": 3, "batch_size": 64, "feature_size": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(name, **changes):
    own = {"width": 16, "patches": 2, "experts": 3, "top": 2, "moe_hidden": 8} if name == "Flex-MoE" else {}
    return Study(method=name).recipe_type()(**{**SMALL, **own, **changes})


def fit(name, out=None, own=None, **options):
    p = Study("alzheimer", name, 0.3, 5).prepare(recipe(name, **(own or {})))
    p.fit(out, progress=False, checkpoint_seconds=0, **options)
    return p


def test_there_are_all():
    assert METHODS == ["MeanInput", "ZeroFill", "HistGradientBoosting", "Flex-MoE", "NoKD", "MetaKD"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_subset_and_nothing_absent_is_read(name):
    torch.manual_seed(0)
    available, y = all_subsets(4), torch.arange(15) % 3
    x = {m: torch.randn(15, *s) for m, s in SHAPES.items()}
    x["blood"][available[:, 1].nonzero()[0], 2] = float("nan")  # a single unknown value is no absent modality
    method = Study(method=name).spec().build(SHAPES, Classification(3), recipe(name))
    batch = Batch(x, available, y)
    scales = []
    for b in (with_rubbish(batch, float("inf")), batch):
        method.setup(b)
        scales.append({k: v.clone() for k, v in method.named_buffers()})
    assert scales[0] and all(torch.equal(scales[0][k], scales[1][k]) for k in scales[0])
    assert_nothing_absent_is_read(method, batch, float("inf"))
    method.eval()
    with torch.inference_mode():
        answers = method.predict_subsets(x, torch.ones(15, 4, dtype=torch.bool), available)
        for s in (0, 6, 14):
            torch.testing.assert_close(answers[s], method.predict(x, available[s].expand(15, -1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name, own",
    [
        *((m, {}) for m in TRAINED),
        *(("MetaKD", {"hypergradient": h, "inner_steps": 2, "meta_every": 1}) for h in ("unrolled", "implicit")),
    ],
)
def test_stopped_anywhere_then_resumed_gives_the_same_bits(name, own, tmp_path):
    for out, stops in ((tmp_path / "whole", ()), (tmp_path / "parts", (2, 4, 7))):
        for stop in stops:
            fit(name, out, own, resume=True, stop_after=stop)
        fit(name, out, own, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_sigkill_then_resume(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    study = Study("alzheimer", "Flex-MoE", 0.3, 5)

    def go(p, out, **options):
        p.fit(out, progress=False, checkpoint_seconds=0, **options)

    kill_in_training(lambda: study.prepare(recipe("Flex-MoE")), lambda p: go(p, killed), killed)
    go(study.prepare(recipe("Flex-MoE")), killed, resume=True)
    go(study.prepare(recipe("Flex-MoE")), whole)
    assert_same_run(killed, whole)


def test_two_processes_stay_equal():
    def work():
        for name in TRAINED:
            assert_equal_in_both(name, fit(name).method)
        assert_equal_in_both("unrolled", fit("MetaKD", own={"hypergradient": "unrolled", "inner_steps": 2}).method)

    in_two_processes(work)


def test_from_a_folder_to_a_table(tmp_path, capsys):
    folder, run = tmp_path / "clinic", tmp_path / "run"
    main(["clinic", "--out", str(folder), "--patients", "150", "--spacing", "16"])
    main(["train", "study", "--data", str(folder), "--method", "NoKD", "--out", str(run), "--recipe.epochs", "1"])
    main(["evaluate", str(run)])
    assert "image+genomic+clinical+biospecimen" in capsys.readouterr().out
    main(
        [
            "adni",
            "--data",
            str(folder),
            "--methods",
            "NoKD",
            "MetaKD",
            "--seeds",
            "2",
            "--jobs",
            "1",
            "--out",
            str(tmp_path / "results"),
            "--recipe.epochs",
            "1",
        ]
    )
    said = capsys.readouterr().out
    assert "MetaKD" in said and "not to be compared digit by digit" in said
    runs = pd.read_csv(tmp_path / "results" / "studies.csv")
    curves = pd.read_csv(tmp_path / "results" / "studies_importance.csv")
    assert (
        len(runs) == 4
        and set(curves.method) == {"MetaKD"}
        and set(curves.modality) == {"image", "genomic", "clinical", "biospecimen"}
    )


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["train", "study", "--data", "nowhere", "--out", "{out}"],
            "unknown study 'nowhere': choose digits, alzheimer, clinic, ",
        ),
        (
            ["study", "--methods", "Gan", "--out", "{out}"],
            "unknown method 'Gan': choose MeanInput, ZeroFill, HistGradientBoosting, Flex-MoE, NoKD, MetaKD",
        ),
        (
            ["train", "study", "--data", "alzheimer", "--method", "HistGradientBoosting", "--out", "{out}"],
            "what it learns is not in its weights",
        ),
        (["study", "--hidden", "1.5", "--out", "{out}"], "hidden = 1.5 is not in 0..1"),
        (["clinic", "--out", "{full}"], "is not empty; choose a new folder"),
        (["adni", "--data", "{full}", "--out", "{out}"], "label.csv: not readable"),
    ],
)
def test_mistakes_get_one_line(args, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main([a.format(out=tmp_path / "out", full=tmp_path / "full") for a in args])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in said and "\n" not in said
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine" and not (tmp_path / "out").exists()
