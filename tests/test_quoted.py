"""Every number in README's prose, with the rows of results/ that it comes from: a sentence stands here with holes, and
what fills them is computed.
"""

import re
from pathlib import Path

import pytest

from metakd.lab.realtables import RUNS, against_best, finished_sets, ranks
from metakd.lab.summary import comparisons, real_gliomas, summary, times
from metakd.lab.sweep import read_runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def corrected_lead(method: str) -> tuple[float, float]:
    "Over NoKD on real patients; the interval allows for having looked at all methods."
    real = comparisons(RESULTS)["real gliomas"]
    gain = real.gain(method, "NoKD", real.others)
    return gain["gain"], gain["half"]


def lead_away(method: str) -> tuple[float, float]:
    "Over NoKD on hospitals that training never saw."
    gain = real_gliomas(RESULTS, "lgg_hospitals_cases.csv").gain(method, "NoKD")
    return gain["gain"], gain["half"]


QUOTED = [
    ("at {:.1f} times the time of MetaKD", lambda: [times(RESULTS)["digits"].SubsetKD]),
    ("on hospitals that training never saw its lead is gone ({:.1f} ± {:.1f} points)", lambda: lead_away("mmFormer")),
    ("on real patients by {:.1f} ± {:.1f} points from one training", lambda: corrected_lead("mmFormer")),
]
OTHERS = ("2405.07155", "3.10", "2.0")  # a paper, versions


def table() -> list[str]:
    "The rows of README's table."
    found = summary(RESULTS)
    return ["| " + " | ".join([name, *row]) + " |" for name, row in zip(found.index, found.values.tolist())]


def prose() -> str:
    "README without code, tables, links' addresses and what `code` says."
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"```.*?```|^( {4}|\|).*?$|\]\([^)]*\)|`[^`]*`", " ", text, flags=re.S | re.M)
    return text


@pytest.mark.parametrize("sentence, values", QUOTED, ids=[s[:40] for s, _ in QUOTED])
def test_quoted_numbers_are_those_of_the_results(sentence, values):
    assert sentence.format(*values()) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("row", table(), ids=lambda row: row.split("|")[1].strip())
def test_the_table_is_that_of_the_results(row):
    assert row in (ROOT / "README.md").read_text()


def test_the_advice_is_that_of_the_results():
    found, cost = comparisons(RESULTS), times(RESULTS)
    scans = [found["real gliomas"], found["simulated gliomas"]]
    assert [c.scores.mean().idxmax() for c in found.values()] == ["mmFormer", "mmFormer", "SubsetKD", "SubsetKD"]
    assert round(cost["scans"].mmFormer) == 5 and cost["scans"].NoKD < 1  # five times as long; NoKD otherwise
    assert all((gain := c.gain("MetaKD", "NoKD"))["gain"] < gain["half"] for c in scans)  # helps neither
    digits = [found[name].gain("MetaKD", "NoKD") for name in found if name.startswith("digits")]
    assert all(gain["gain"] > gain["half"] for gain in digits)  # helps here
    people = finished_sets(read_runs(RESULTS / RUNS).query("hidden == 0.4"))
    assert ranks(people).index[0] == "MetaKD" and ranks(people, "auc").index[0] == "LateFusion"
    assert people.groupby("method").seconds.median().LateFusion < 10
    assert not (leads := against_best(people)).gain.gt(leads.half).all()  # nobody is ahead on every set


def test_no_number_is_quoted_without_its_source():
    text = prose()
    for sentence, values in QUOTED:
        text = text.replace(sentence.format(*values()), "")
    left = [n for n in re.findall(r"\d+\.\d+|\d+ ± \d+", text) if n not in OTHERS]
    assert not left, f"README quotes {left}, and no row of QUOTED says where they come from"
