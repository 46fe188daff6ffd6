"""Every number in README's prose, with the rows of results/ that it comes from: a sentence stands here with holes, and
what fills them is computed.
"""

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from metakd.lab.crossvalidation import with_subsets
from metakd.lab.studies import shared_part, study_gains
from metakd.lab.sweep import read_runs
from metakd.lab.table1 import CASES, TABLE1, table1_gains
from metakd.lab.table2 import TABLES, lead, own_rate, shared_by
from metakd.stats import mean_interval, paired_gain

ROOT = Path(__file__).parent.parent


@cache
def rows(name: str) -> pd.DataFrame:
    return read_runs(ROOT / "results" / name)


@cache
def table2(tested: str) -> pd.DataFrame:
    runs = rows(TABLES[tested])
    mean = runs[["accuracy_image", "accuracy_audio", "accuracy_both"]].mean(axis=1)
    return runs[[own_rate(m) is None for m in runs.method]].assign(mean=mean)


def subsetkd_lead(tested: str, other: str) -> tuple[float, float]:
    "Of SubsetKD, over the four rates and the three subsets, with the paper's protocol."
    runs = table2(tested).query("frontend == 'paper' and split == 'random'")
    wide = runs.pivot_table(index="seed", columns="method", values="mean")
    gain = paired_gain(wide.SubsetKD, wide[other], shared_by(runs))
    return gain["gain"], gain["half"]


def firsts(method: str, without: tuple[str, ...] = ()) -> tuple[int]:
    "At how many of the 16 settings a method is the first over the three subsets."
    n = 0
    for tested in TABLES:
        runs = table2(tested)
        means = runs[~runs.method.isin(without)].groupby(["frontend", "split", "rate", "method"])["mean"].mean()
        n += (means.unstack().idxmax(axis=1) == method).sum()
    return (n,)


def clear_leads(method: str, without: tuple[str, ...] = ()) -> tuple[int]:
    "At how many of the 16 settings the interval of its lead over the next best excludes 0, over the three subsets."
    n = 0
    for tested in TABLES:
        runs = table2(tested)
        runs = runs[~runs.method.isin(without)].assign(accuracy=lambda r: r["mean"])
        for _, part in runs.groupby(["frontend", "split"]):
            leads = lead(part, method)
            n += (leads.gain > leads.half).sum()
    return (n,)


def study(data: str, drop: float, method: str, metric: str) -> float:
    runs = rows("studies.csv").query("data == @data and drop == @drop and method == @method")
    return runs[metric].mean()


def study_lead(data: str, drop: float) -> tuple[float, float]:
    runs = rows("studies.csv").query("data == @data and drop == @drop")
    wide = runs.pivot(index="seed", columns="method", values="f1")
    gain = paired_gain(wide.MetaKD, wide.NoKD, shared_part(runs))
    assert gain["gain"] == pytest.approx(study_gains(runs).loc[("NoKD", "f1"), "MetaKD is better by"])
    return gain["gain"], gain["half"]


def gliomas(method: str, subset: str, table: str = "lgg_cases.csv") -> tuple[float, float]:
    named = with_subsets(rows(table))
    part = named[(named.method == method) & (named.subset == subset)]
    return mean_interval(part.groupby("case").dice.mean())


def gliomas_without_flair(method: str, other: str, table: str = "lgg_cases.csv") -> tuple[float, float]:
    named = rows(table).query("flair == 0 and method in [@method, @other]")
    wide = named.pivot_table(index="case", columns="method", values="dice")
    gain = paired_gain(wide[method], wide[other])
    return gain["gain"], gain["half"]


def table1(method: str, over_seeds: bool = True) -> list[float]:
    "ET, TC and WT over the 15 subsets: means, or means and intervals over trainings."
    runs = rows(TABLE1).query("method == @method")
    found = [mean_interval(runs[runs.region == r].groupby("seed").dice.mean()) for r in ("ET", "TC", "WT")]
    return [v for f in found for v in (f if over_seeds else f[:1])]


def table1_lead(other: str) -> list[float]:
    gains = table1_gains(rows(CASES)).query("against == @other").set_index("region")
    return gains.loc[["ET", "TC", "WT"], ["gain", "half"]].to_numpy().ravel().tolist()


OURS, CHOSEN = ("SubsetKD", "MetaKD (published)"), "two, each alone, distillation"
AWAY = "lgg_hospitals_cases.csv"  # each hospital left out in turn
ALL, T1, FLAIR, T1C = "t1+flair+t1c", "t1", "flair", "t1c"
QUOTED = [
    (
        "it is the first of the paper's methods at {} of 16 settings (the interval of its lead excludes 0 at {} of "
        "them)",
        lambda: firsts("MetaKD", OURS) + clear_leads("MetaKD", OURS),
    ),
    (
        "leads NoKD by {:.1f} ± {:.1f} points where training has all pictures and by {:.1f} ± {:.1f} where it has all "
        "sounds",
        lambda: subsetkd_lead("image", "NoKD") + subsetkd_lead("audio", "NoKD"),
    ),
    (
        "ShaSpec by {:.1f} ± {:.1f} and {:.1f} ± {:.1f}",
        lambda: subsetkd_lead("image", "ShaSpec") + subsetkd_lead("audio", "ShaSpec"),
    ),
    (
        "MetaKD by {:.1f} ± {:.1f} and {:.1f} ± {:.1f}",
        lambda: subsetkd_lead("image", "MetaKD") + subsetkd_lead("audio", "MetaKD"),
    ),
    (
        "it is the first at {} of all 16 settings, and one of the two rows of MetaKD at the others",
        lambda: firsts("SubsetKD"),
    ),
    (
        "at {:.1f} times the time of a training of MetaKD's",
        lambda: [(m := rows("subsetkd_search.csv").groupby("variant").seconds.mean())[CHOSEN] / m.MetaKD],
    ),
    (
        "MetaKD's macro F1 is {:.1f} %, that of the same network without distillation {:.1f} (five splits); but hiding "
        "further tables in training brings that network to {:.1f} without any distillation, and MetaKD to {:.1f}",
        lambda: [
            study("digits", d, m, "present_f1") for d in (0, 1) for m in (("MetaKD", "NoKD"), ("NoKD", "MetaKD"))[d]
        ],
    ),
    (
        "MetaKD's lead over NoKD in macro F1 is {:.1f} ± {:.1f} points on 333 real people with four modalities (50 "
        "runs) and {:.1f} ± {:.1f} on 2,400 simulated ones (three splits)",
        lambda: study_lead("alzheimer", 1) + study_lead("clinic", 1),
    ),
    (
        "MetaKD {:.1f} ± {:.1f} from all sequences, {:.1f} ± {:.1f} from FLAIR alone, {:.1f} ± {:.1f} from T1 alone, "
        "{:.1f} ± {:.1f} from T1 with contrast",
        lambda: sum((gliomas("MetaKD", s) for s in (ALL, FLAIR, T1, T1C)), ()),
    ),
    (
        "the same network without distillation {:.1f} ± {:.1f}, {:.1f} ± {:.1f}, {:.1f} ± {:.1f} and {:.1f} ± {:.1f}",
        lambda: sum((gliomas("NoKD", s) for s in (ALL, FLAIR, T1, T1C)), ()),
    ),
    ("and does not: {:.1f} ± {:.1f} points", lambda: gliomas_without_flair("MetaKD", "NoKD")),
    (
        "mmFormer, whose trainings take several times as long, has the highest mean from every subset: {:.1f} ± {:.1f} "
        "from all sequences, and where FLAIR is missing {:.1f} ± {:.1f} points more than NoKD",
        lambda: gliomas("mmFormer", ALL) + gliomas_without_flair("mmFormer", "NoKD"),
    ),
    (
        "NoKD has {:.1f} ± {:.1f} from all sequences and MetaKD {:.1f} ± {:.1f}; where FLAIR is missing they are "
        "level ({:.1f} ± {:.1f} points)",
        lambda: (
            gliomas("NoKD", ALL, AWAY) + gliomas("MetaKD", ALL, AWAY) + gliomas_without_flair("MetaKD", "NoKD", AWAY)
        ),
    ),
    (
        "RobustSeg has {:.1f} ± {:.1f} from all sequences, and from T1 with contrast alone {:.1f} ± {:.1f}",
        lambda: gliomas("RobustSeg", ALL) + gliomas("RobustSeg", "t1c"),
    ),
    (
        "ShaSpec has {:.1f} ± {:.1f} from all sequences, and where FLAIR is missing {:.1f} ± {:.1f} points less than "
        "NoKD",
        lambda: gliomas("ShaSpec", ALL) + gliomas_without_flair("NoKD", "ShaSpec"),
    ),
    (
        "a Dice of {:.1f} ± {:.1f}, {:.1f} ± {:.1f} and {:.1f} ± {:.1f} % on ET, TC and WT",
        lambda: table1("MetaKD"),
    ),
    (
        "the same network without distillation {:.1f} ± {:.1f}, {:.1f} ± {:.1f} and {:.1f} ± {:.1f} %",
        lambda: table1("NoKD"),
    ),
    ("a gain of {:.1f} ± {:.1f}, {:.1f} ± {:.1f} and {:.1f} ± {:.1f} points", lambda: table1_lead("NoKD")),
    ("mmFormer is, on all three ({:.1f}, {:.1f}, {:.1f})", lambda: table1("mmFormer", False)),
    ("U-HeMIS ({:.1f}, {:.1f}, {:.1f})", lambda: table1("U-HeMIS", False)),
    ("RobustSeg ({:.1f}, {:.1f}, {:.1f})", lambda: table1("RobustSeg", False)),
    ("ShaSpec ({:.1f}, {:.1f}, {:.1f})", lambda: table1("ShaSpec", False)),
    ("U-HVED ({:.1f}, {:.1f}, {:.1f})", lambda: table1("U-HVED", False)),
]
OTHERS = ("83.6", "2405.07155", "3.10", "2.0")  # the data set's authors', a paper, versions


def prose() -> str:
    "README without code, tables, links' addresses and what `code` says."
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"```.*?```|^( {4}|\|).*?$|\]\([^)]*\)|`[^`]*`", " ", text, flags=re.S | re.M)
    return text


@pytest.mark.parametrize("sentence, values", QUOTED, ids=[s[:40] for s, _ in QUOTED])
def test_quoted_numbers_are_those_of_the_results(sentence, values):
    assert sentence.format(*values()) in (ROOT / "README.md").read_text()


def test_no_number_is_quoted_without_its_source():
    text = prose()
    for sentence, values in QUOTED:
        text = text.replace(sentence.format(*values()), "")
    left = [n for n in re.findall(r"\d+\.\d+|\d+ ± \d+", text) if n not in OTHERS]
    assert not left, f"README quotes {left}, and no row of QUOTED says where they come from"
