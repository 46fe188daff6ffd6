"""Damaged files, made by the hundred: every loader either reads what is there or says in a
`MetakdError` what is wrong. No traceback, and no file accepted that was cut off.

METAKD_FUZZ says how many examples there are in all; 300 where it says nothing."""

import gzip
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from metakd.data.adni import read_array
from metakd.data.audiovision import read_wav
from metakd.data.layouts import layout_of
from metakd.data.lgg import read_picture
from metakd.data.nifti import read_nifti, read_scan
from metakd.data.scans import Case, Image, read_case, read_label, read_split
from metakd.data.tables import read_split as read_people
from metakd.data.tables import read_view
from metakd.files import MetakdError, read_json
from metakd.lab.sweep import read_runs
from metakd.training import load_weights, read_run

EXAMPLES = int(os.environ.get("METAKD_FUZZ", 300))
pytestmark = pytest.mark.filterwarnings("ignore")
counts: dict[str, list[int]] = {}  # loader -> refused, read


class Loader(NamedTuple):
    good: bytes
    suffix: str
    load: Callable[[Path], object]
    same: Callable[[object, object], bool] | None = (
        None  # a damaged file that is read must give what the whole one gives, since the format has a check sum
    )
    whole: bool = True  # a file that was cut must be refused


def saved(write: Callable[[Path], None], suffix: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write(path)
        return path.read_bytes()


def sound(path: Path, **how) -> None:
    soundfile.write(path, np.sin(np.arange(800) / 5).astype("float32"), 8000, **how)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def weights(path: Path):
    "Into a fresh network, from a folder."
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "weights.safetensors").write_bytes(path.read_bytes())
    return {k: v.numpy() for k, v in load_weights(folder, Tiny()).state_dict().items()}


def runs_json(path: Path):
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "experiment.json").write_bytes(path.read_bytes())
    return read_run(folder)


def saved_weights() -> bytes:
    from safetensors.torch import save

    return save(Tiny().state_dict())


rng = np.random.default_rng(0)
SCAN = nib.Nifti1Image(rng.integers(0, 900, (7, 6, 5)).astype(np.int16), np.diag([-2.0, -2, 2, 1]))
LABEL = nib.Nifti1Image(rng.choice([0, 1, 2, 4], (7, 6, 5)).astype(np.uint8), np.diag([-2.0, -2, 2, 1]))
CASES = [Case(f"P{k}", {"t1": Image(Path("t1"))}, Path("seg")) for k in range(8)]
SPLIT = {"train": ["P0", "P1", "P2"], "meta": ["P3"], "validation": ["P4", "P5"], "test": ["P6", "P7"]}
TABLE = pd.DataFrame(
    {"who": [f"P{k}" for k in range(9)], "tau": rng.normal(size=9).round(3), "abeta": rng.normal(size=9).round(3)}
)


def equal(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


VOXELS = np.arange(210, dtype=np.float32).reshape(7, 6, 5)


def volume(path):
    return read_scan(path).values


def through_itk(suffix):
    itk = pytest.importorskip("SimpleITK")
    return saved(lambda p: itk.WriteImage(itk.GetImageFromArray(VOXELS), str(p)), suffix)


def picture():
    return saved(lambda p: Picture.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(p), ".tif")


LOADERS = {
    "nii.gz": Loader(gzip.compress(SCAN.to_bytes(), mtime=0), ".nii.gz", lambda p: read_nifti(p).values, equal),
    "nii": Loader(SCAN.to_bytes(), ".nii", lambda p: read_nifti(p).values),
    "case": Loader(
        gzip.compress(SCAN.to_bytes(), mtime=0),
        "_t1.nii.gz",
        lambda p: read_case(Case("P", {"t1": Image(p)})).volumes["t1"],
        equal,
    ),
    "label": Loader(
        gzip.compress(LABEL.to_bytes(), mtime=0),
        "_seg.nii.gz",
        lambda p: read_label(Case("P", {}, p), read_nifti_of_label()),
        equal,
    ),
    "wav": Loader(saved(sound, ".wav"), ".wav", read_wav),
    "float wav": Loader(saved(lambda p: sound(p, subtype="FLOAT"), ".wav"), ".wav", read_wav),
    "flac": Loader(saved(sound, ".flac"), ".flac", read_wav, whole=False),
    "csv": Loader(TABLE.to_csv(index=False).encode(), ".csv", read_view, whole=False),
    "european csv": Loader(
        TABLE.to_csv(index=False, sep=";", decimal=",").encode("utf-16"), ".csv", read_view, whole=False
    ),
    "runs": Loader(TABLE.to_csv(index=False).encode(), ".csv", read_runs, whole=False),
    "split": Loader(json.dumps(SPLIT).encode(), ".json", lambda p: read_split(p, CASES)),
    "people": Loader(json.dumps({k: v for k, v in SPLIT.items() if k != "meta"}).encode(), ".json", read_people),
    "experiment": Loader(
        json.dumps({"format": 2, "about": {"experiment": "brats"}, "training": {}, "versions": {}}).encode(),
        ".json",
        runs_json,
    ),
    "mgz": Loader(gzip.compress(nib.MGHImage(VOXELS, np.eye(4)).to_bytes(), mtime=0), ".mgz", volume, equal),
    "mha": Loader(through_itk(".mha"), ".mha", volume),
    "nrrd": Loader(through_itk(".nrrd"), ".nrrd", volume),
    "tif": Loader(picture(), ".tif", lambda p: read_picture(p, "RGB")),
    "dataset.json": Loader(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "all": [1, 2], "core": 2},
                "regions_class_order": [1, 2],
            }
        ).encode(),
        ".json",
        lambda p: layout_of(p.parent, p).about(),
    ),
    "scans.json": Loader(
        json.dumps(
            {
                "sequences": {"ct": ["ct"], "pet": "suv"},
                "labels": {"liver": 1, "tumour": 2},
                "regions": {"liver": ["liver", "tumour"], "tumour": "tumour"},
            }
        ).encode(),
        ".json",
        lambda p: layout_of(p.parent, p).about(),
    ),
    "json": Loader(json.dumps({"a": [1, 2], "b": "c"}).encode(), ".json", read_json),
    "npy": Loader(
        saved(lambda p: np.save(p, rng.random((4, 6)).astype(np.float32)), ".npy"),
        ".npy",
        lambda p: np.asarray(read_array(p, (2, 4))),
    ),
    "weights": Loader(saved_weights(), ".safetensors", weights),
}


def read_nifti_of_label():
    from metakd.data.nifti import Grid, turn

    return turn(np.asarray(LABEL.dataobj), Grid((7, 6, 5), LABEL.affine))[1]


@st.composite
def damage(draw, good: bytes) -> tuple[str, bytes]:
    "A way to hurt a file, and the file."
    how, n = draw(st.sampled_from(["cut", "bit", "bytes", "gap", "doubled", "zeros", "other"])), len(good)
    at = draw(st.integers(0, n - 1))
    if how == "cut":
        return how, good[:at]
    if how == "bit":
        return how, good[:at] + bytes([good[at] ^ 1 << draw(st.integers(0, 7))]) + good[at + 1 :]
    if how == "bytes":
        return how, good[:at] + draw(st.binary(min_size=1, max_size=16)) + good[at:]
    if how == "gap":
        return how, good[:at] + good[at + draw(st.integers(1, 64)) :]
    if how == "doubled":
        return how, good[:at] + good[max(0, at - draw(st.integers(1, 64))) :]
    if how == "zeros":
        return how, good[:at] + bytes(min(n - at, draw(st.integers(1, 64)))) + good[at + 64 :]
    return how, draw(
        st.one_of(
            st.binary(max_size=400),
            st.sampled_from(
                [b"", b"null", b"[]", b"PK\x03\x04", b"\x1f\x8b", b"RIFF", b"\x93NUMPY", b"[" * 20_000, b"\0" * 400]
            ),
        )
    )


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_read_right_or_refused(name, tmp_path):
    loader = LOADERS[name]
    path = tmp_path / f"P{loader.suffix}"
    path.write_bytes(loader.good)
    right, seen = loader.load(path), counts.setdefault(name, [0, 0])

    @settings(
        max_examples=-(-EXAMPLES // (len(LOADERS) + 1)),
        deadline=None,
        database=None,
        derandomize=EXAMPLES <= 300,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(loader.good))
    def check(hurt):
        how, content = hurt
        path.write_bytes(content)
        try:
            found = loader.load(path)
        except MetakdError as e:
            seen[0] += 1
            assert str(e) and len(str(e)) < 5000
            return
        seen[1] += 1
        if loader.same:
            assert loader.same(found, right), f"{how}: read, and wrong"
        if loader.whole and how == "cut":
            assert content == loader.good, "a file that was cut is read"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()


WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            "x",
            "-1",
            "0",
            "nan",
            "inf",
            "1e999",
            "None",
            "--",
            "-",
            "/proc/x",
            "/dev/null",
            "é±",
            "a" * 300,
            "cuda:9",
            "[",
            "(",
            "\\",
            "3 4",
            "true",
            "../..",
            "{}",
        ]
    ),
    st.text(max_size=12).filter(lambda s: "\0" not in s),
)
OPTIONS = [
    "evaluate RUN --csv",
    "evaluate RUN --split",
    "evaluate RUN --data",
    "evaluate RUN --device",
    "evaluate",
    "predict RUN --sequence",
    "predict RUN --out OUT --window-batch",
    "predict RUN SCAN --out OUT --labels",
    "predict RUN SCAN --out OUT --device",
    "predict RUN SCAN --out OUT --precision",
    "predict",
    "predict RUN --out OUT --table",
    "report",
    "train tables --labels scan --out OUT --table",
    "train tables --table scan --out OUT --labels",
    "glioma --out OUT --shape",
    "glioma --out OUT --spacing",
    "glioma --out OUT --patients",
    "clinic --out OUT --spacing",
    "clinic --out OUT --patients",
    "train",
    "train brats --out OUT --data",
    "train audiovision --out OUT --rate",
    "train audiovision --out OUT --method",
    "train audiovision --out OUT --tested",
    "train audiovision --out OUT --recipe.lr",
    "train audiovision --out OUT --recipe.epochs",
    "train audiovision --out OUT --recipe.precision",
    "train study --out OUT --folds",
    "train study --out OUT --data",
    "table2 --out OUT --rates",
    "table2 --out OUT --methods",
    "table2 --out OUT --backend",
    "table1 --out OUT --data",
    "study --out OUT --hidden",
    "study --out OUT --methods",
    "demo --out OUT --rate",
    "bench --repeats",
    "--plugin",
    "data --path",
    "cache --clear",
]
# a value among WORDS may be a right one
WORKS = {"evaluate RUN --csv", "predict RUN --out OUT --window-batch", "glioma --out OUT --patients"}


def test_the_command_line_given_nonsense(tmp_path, monkeypatch, capfd):
    from metakd.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text("{}")
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "P_flair.nii.gz").write_bytes(LOADERS["nii.gz"].good)
    seen = counts.setdefault("command line", [0, 0])

    @settings(
        max_examples=-(-EXAMPLES // (len(LOADERS) + 1)),
        deadline=None,
        database=None,
        derandomize=EXAMPLES <= 300,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(OPTIONS), WORDS)
    def check(command, word):
        args = [{"RUN": "run", "SCAN": "scan", "OUT": "out"}.get(a, a) for a in command.split()] + [word]
        if (
            word in ("0", "-1", "3 4", "true")
            and command.startswith(("train", "table", "study", "demo", "bench"))
            or word.strip().isdecimal()
            or word in ("--help", "-h", "None")
        ):
            return  # may be right
        try:
            main(args)
        except SystemExit as e:
            assert e.code in (0, 1, 2), (args, e.code)
        else:
            seen[1] += 1
            return
        seen[0] += 1
        assert not (tmp_path / "out" / "weights.safetensors").exists()

    check()


def test_how_many(capsys):
    "The counts of this run, for whoever asks with -s."
    total = np.array(list(counts.values()) or [[0, 0]]).sum(0)
    with capsys.disabled():
        print(f"\nfuzzed: {total.sum()} inputs, {total[0]} refused, {total[1]} read")
