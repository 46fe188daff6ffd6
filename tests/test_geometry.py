"""The same patient stored in another way is the same patient: orientations, voxel sizes, sequences on different grids.

The network is a threshold on the sequences that are there, so that what comes out shows where things lie.
"""

import itertools
import json
import locale
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from metakd.data.layouts import layout_of
from metakd.data.nifti import Grid, turn
from metakd.data.scans import BRATS, Volumes, find_cases, median_spacing, read_case
from metakd.evaluation import evaluate
from metakd.files import MetakdError
from metakd.prediction import patients_in, predict
from metakd.tasks.base import Method
from metakd.tasks.segmentation import Segmentation

SPACING = (1.5, 1.5, 1.5)


class Bright(Method):
    "What is brighter than the mean of a brain, in the mean of the sequences that are there."

    modalities, shapes = BRATS.sequences, None

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor([1.6, 1.2, 0.8]))

    def predict_subsets(self, x, available, subsets):
        answers = []
        for subset in subsets:
            names = [m for m, asked in zip(self.modalities, subset.tolist()) if asked and m in x]
            answers.append(torch.stack([x[m] for m in names]).mean(0) - self.level.view(1, 3, 1, 1, 1))
        return torch.stack(answers)


def blobs(shape=(40, 48, 56), seed=0):
    "A head with a smooth tumour, bright in every sequence, and its labels."
    place = np.indices(shape).reshape(3, -1).T - np.array(shape) / 2 + 0.5
    head = (((place / (np.array(shape) / 2 - 3)) ** 2).sum(1) < 1).reshape(shape)
    distance = np.linalg.norm((place - [4, -6, 3]) / [9, 7, 15], axis=1).reshape(shape)
    bump = 300 * np.exp(-(distance**2))
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((4, *shape)), (0, 2, 2, 2)) * 60
    images = {m: np.where(head, 300 + bump + n, 0).astype(np.float32) for m, n in zip(BRATS.sequences, noise)}
    label = np.select([distance < 0.5, distance < 0.8, distance < 1], [4, 1, 2], 0).astype(np.uint8)
    return images, label


AFFINE = np.array([[-1.5, 0, 0, 31], [0, -1.5, 0, 40], [0, 0, 1.5, -20], [0, 0, 0, 1.0]])


def write(folder, images, label=None, affine=AFFINE, name="P1"):
    folder.mkdir(parents=True, exist_ok=True)
    for m, image in (images | ({} if label is None else {"seg": label})).items():
        nib.save(nib.Nifti1Image(image, affine), folder / f"{name}_{m}.nii.gz")
    return folder


def segment(folder, out, **options):
    "The label map of the one patient of a folder."
    cases, problems = patients_in([folder])
    rows, failed = predict(
        Bright(), Segmentation(tuple(BRATS.regions)), cases, out, png=False, spacing=SPACING, **options
    )
    assert not problems + failed, problems + failed
    return nib.load(out / rows[0]["file"])


def dice(a, b):
    a, b = (np.asarray(i.dataobj) > 0 for i in (a, b))
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture
def native(tmp_path):
    images, label = blobs()
    image = segment(write(tmp_path / "native", images, label), tmp_path / "out")
    assert 500 < (np.asarray(image.dataobj) > 0).sum() < 8000
    return image, images, label


def test_forty_eight_orientations_are_one_patient(native, tmp_path):
    expected, images, _ = native
    grid = Grid(expected.shape, AFFINE)
    names = [("L", "R"), ("P", "A"), ("I", "S")]
    for k, axes in enumerate(itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3))):
        code = "".join(names[axis][side] for axis, side in zip(*axes))
        stored = {m: turn(v, grid, code) for m, v in images.items()}
        folder = write(tmp_path / code, {m: v for m, (v, _) in stored.items()}, affine=stored["t1"][1].affine)
        found = segment(folder, tmp_path / f"out-{code}")
        assert nib.aff2axcodes(found.affine) == tuple(code) and np.allclose(found.affine, stored["t1"][1].affine)
        back, _ = turn(np.asarray(found.dataobj), stored["t1"][1], grid)
        assert np.array_equal(back, np.asarray(expected.dataobj)), (k, code)


@pytest.mark.parametrize("factors", [(0.5, 0.5, 0.5), (2, 2, 2), (1, 1, 4), (0.8, 1.3, 1)])
def test_other_voxel_sizes_come_back_on_their_own_grid(native, tmp_path, factors):
    expected, images, _ = native
    shape = tuple(int(round(n / f)) for n, f in zip(expected.shape, factors))
    affine = AFFINE @ np.diag([*factors, 1])
    affine[:3, 3] = (AFFINE @ [*(np.array(factors) / 2 - 0.5), 1])[:3]  # the same edge of the field of view
    blur = [max(0, f - 1) / 2 for f in factors]
    stored = {}
    for m, image in images.items():
        smooth = nib.Nifti1Image(ndimage.gaussian_filter(image, blur), AFFINE)
        stored[m] = np.asarray(resample_from_to(smooth, (shape, affine), order=1).dataobj)
    found = segment(write(tmp_path / "other", stored, affine=affine), tmp_path / "again")
    assert found.shape == shape and np.allclose(found.affine, affine)
    back = resample_from_to(found, (expected.shape, AFFINE), order=0)
    assert dice(back, expected) > 0.9


def test_a_sequence_on_another_grid_is_resampled_and_said(native, tmp_path):
    expected, images, label = native
    folder = write(tmp_path / "mixed", images, label)
    affine = AFFINE @ np.diag([2, 1, 2, 1])
    affine[:3, 3] = (AFFINE @ [0.5, 0, 0.5, 1])[:3]
    coarse = nib.Nifti1Image(ndimage.gaussian_filter(images["t2"], [0.5, 0, 0.5]), AFFINE)
    nib.save(resample_from_to(coarse, ((20, 48, 28), affine), order=1), folder / "P1_t2.nii.gz")
    with pytest.warns(
        UserWarning, match="P1_t2.nii.gz .20 x 48 x 28 voxels.* is resampled onto the grid of .*P1_flair"
    ):
        found = segment(folder, tmp_path / "again")
    assert found.shape == expected.shape and np.allclose(found.affine, AFFINE) and dice(found, expected) > 0.95
    case = find_cases(folder.parent / "mixed")[0]
    with pytest.raises(MetakdError, match="are not on one grid; resample them, or leave strict out"):
        read_case(case, strict=True)
    nib.save(nib.Nifti1Image(label[::2, :, ::2].copy(), affine), folder / "P1_seg.nii.gz")  # drawn on the T2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Volumes([case])
        assert made.prepared(0)["y"][2].sum() == pytest.approx((label > 0).sum(), rel=0.15)


@pytest.mark.parametrize("spacing", [SPACING, (3.0, 3.0, 3.0), (1.0, 1.0, 2.0)])
def test_scores_are_those_of_the_written_files(tmp_path, spacing):
    images, label = blobs()
    folder = write(tmp_path / "P1", images, label)
    task = Segmentation(tuple(BRATS.regions), hausdorff=True)
    source = Volumes(find_cases(folder), spacing=spacing)
    made = source.prepared(0)
    assert (made["native"] is None) == (spacing == SPACING)
    expected = [round(n * 1.5 / s) for n, s in zip(next(iter(source.whole())).y.shape[2:], spacing)]
    assert list(made["x"].shape[1:]) == expected
    table = evaluate(Bright(), task, source).set_index("subset")
    cases, _ = patients_in([folder])
    rows, failed = predict(Bright(), task, cases, tmp_path / "out", png=False, spacing=spacing)
    written = np.asarray(nib.load(tmp_path / "out" / rows[0]["file"]).dataobj)
    for region, values in BRATS.regions.items():
        a, b = np.isin(written, values), np.isin(label, values)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) == pytest.approx(
            table.loc["flair+t1+t1c+t2", f"dice_{region}"], abs=1e-6
        )


def test_a_dicom_series_is_a_scan_and_any_other_folder_is_none(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    images, _ = blobs()
    before = locale.setlocale(locale.LC_ALL)
    for folder, end in (("P2/T1", ".dcm"), ("P3/FLAIR", "")):
        (tmp_path / folder).mkdir(parents=True)
        image = itk.GetImageFromArray(images["t1"].round().astype(np.int16).T)
        image.SetSpacing(SPACING)
        writer = itk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for k in range(image.GetDepth()):
            piece = image[:, :, k]
            tags = {
                "0008|0060": "MR",
                "0020|000e": "1.2.3.4",
                "0020|0013": f"{k}",
                "0020|0032": f"-30\\-40\\{-20 + 1.5 * k}",
            }
            tags["0020|0037"] = "1\\0\\0\\0\\1\\0"
            for tag, value in tags.items():
                piece.SetMetaData(tag, value)
            writer.SetImageIO("GDCMImageIO")
            writer.SetFileName(str(tmp_path / folder / f"IM{k:03}{end}"))
            writer.Execute(piece)
    locale.setlocale(locale.LC_ALL, before)  # writing changes it
    (tmp_path / "P4" / "t1").mkdir(parents=True)
    (tmp_path / "P4" / "t1" / "notes.txt").write_text("no scan")
    cases = find_cases(tmp_path)
    assert {c.name: list(c.images) for c in cases} == {"P2": ["t1"], "P3": ["flair"]}
    for case in cases:
        volumes, grid, _, _ = read_case(case)
        assert np.array_equal(next(iter(volumes.values())), images["t1"].round())
        assert grid.spacing == SPACING and np.allclose(grid.affine @ [0, 0, 0, 1], [30, 40, -20, 1])
        assert locale.setlocale(locale.LC_ALL) == before  # reading must not: every later file would be read as ASCII


def test_the_network_sees_the_median_voxel(tmp_path):
    for k, factor in enumerate((1, 1, 2)):
        images, label = blobs()
        write(tmp_path / f"P{k}", images, label, AFFINE @ np.diag([factor, factor, factor, 1]), f"P{k}")
    cases = find_cases(tmp_path)
    assert median_spacing(cases) == SPACING
    cases[0].images["t1"].path.write_bytes(b"torn")
    assert median_spacing(cases) == (2.25, 2.25, 2.25)  # of the two that can be read
    with pytest.raises(MetakdError, match="P0_t1.nii.gz"):
        Volumes(cases).survey(progress=False)


def test_a_thin_volume_and_a_single_sequence(tmp_path):
    "One slice, one sequence, one region: everything that a layout may be at its smallest."
    from metakd.lab.table1 import ScanFolder
    from metakd.methods.supervised import SegmentationRecipe

    rng = np.random.default_rng(0)
    for k in range(5):
        image = np.zeros((30, 26, 1), np.float32)
        image[4:26, 4:22] = rng.uniform(50, 60, (22, 18, 1))
        label = np.zeros(image.shape, np.uint8)
        label[8:14, 8:16] = 1
        image[label > 0] += 40
        for part, name, values in (("imagesTr", f"case{k}_0000", image), ("labelsTr", f"case{k}", label)):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.diag([0.7, 0.7, 5, 1])), tmp_path / "set" / part / f"{name}.nii.gz")
    about = {"channel_names": {"0": "US"}, "labels": {"background": 0, "cyst": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(about))
    assert layout_of(tmp_path / "set").sequences == ("us",)
    experiment = ScanFolder(tmp_path / "set", "NoKD", cache=tmp_path / "cache")
    p = experiment.prepare(experiment.recipe_for("NoKD", SegmentationRecipe(epochs=1, crops=1, window=(24, 24, 8))))
    p.fit(tmp_path / "run", progress=False)
    assert evaluate(p.method, p.task, p.test).subset.tolist() == ["us"]
    again = ScanFolder.reopen(json.loads(json.dumps(p.about)), tmp_path / "elsewhere")
    assert again.layout == experiment.layout
    cases, _ = patients_in([tmp_path / "set"], layout=again.layout)
    rows, failed = predict(p.method, p.task, cases[:1], tmp_path / "out", spacing=p.about["scans"]["spacing"])
    assert not failed and nib.load(tmp_path / "out" / rows[0]["file"]).shape == (30, 26, 1)


def test_organs_that_exclude_each_other_never_share_a_voxel():
    parents = (2, None, None, None)  # a tumour in the third region
    margin = torch.randn(2, 4, 6, 6, 6)
    found = Segmentation(("tumour", "spleen", "liver", "kidney"), parents=parents).decide(margin, (1, 1, 1))
    assert (found[:, 1:].sum(1) <= 1).all() and not (found[:, 0] & ~found[:, 2]).any()
    assert found[:, 1:].any(1).eq(margin.amax(1) > 0).all()
    with pytest.raises(MetakdError, match="share labels"):
        replace(BRATS, regions={"a": (1, 2), "b": (2, 4)})


def test_a_region_that_no_training_case_has_is_said_before_the_first_step(tmp_path):
    from metakd.lab.table1 import Brats
    from metakd.methods.supervised import SegmentationRecipe

    for k in range(5):
        images, label = blobs((20, 22, 18), k)
        write(tmp_path / f"P{k}", images, np.where(label == 4, 1, label).astype(np.uint8), name=f"P{k}")
    with pytest.raises(MetakdError, match="no voxel of ET in any training case"):
        Brats(tmp_path, "NoKD", cache=tmp_path / "cache").prepare(SegmentationRecipe(window=(16, 16, 16)))
