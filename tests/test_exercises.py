"Every chapter ends with exercises: a question, a check that has no answer yet, and a solution, folded."

import json
import re
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
chapters = sorted(p for p in (root / "nbs").glob("[0-9]*.ipynb") if not p.stem.startswith(("000", "003")))


@pytest.mark.parametrize("chapter", chapters, ids=lambda p: p.stem)
def test_a_chapter_ends_with_exercises(chapter):
    cells = json.loads(chapter.read_text())["cells"]
    text = ["".join(c["source"]) for c in cells]
    start = next(k for k, t in enumerate(text) if "## Exercises" in t)
    assert text[-1].startswith("**Next:**") or chapter == chapters[-1]
    asked = [cells[k : k + 3] for k in range(start + 1, len(cells) - 1, 3)]
    assert 2 <= len(asked) <= 3
    for number, (question, check, solution) in enumerate(asked, 1):
        assert question["cell_type"] == "markdown" and "".join(question["source"]).startswith(f"**{number}.** ")
        source, solved = "".join(check["source"]), "".join(solution["source"])
        (name,) = re.findall(r"^(\w+) = Exercise\(", source, re.M)
        assert re.search(rf"^answer = \.\.\.  # .+\n{name}\(answer\)$", source, re.M), "no place for an answer"
        assert "".join(check["outputs"][0]["data"]["text/plain"]) == "'not yet'"
        assert solved.startswith("#| hide\n") and f"{name}.solution(" in solved
        assert solution["metadata"]["jupyter"]["source_hidden"]
