"""A sweep through Ray. The last file, so that Ray starts when little else is running: it gives its own processes 30
seconds.
"""

import sys

import pandas as pd
import pytest

from metakd.files import MetakdError
from metakd.lab.table2 import AudioVisionRecipe, table2, table2_jobs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_small_sweep_through_a_local_ray(tmp_path):
    ray = pytest.importorskip("ray", reason="the backend 'ray' is an extra: pip install metakd[ray]")
    jobs = table2_jobs(("NoKD", "SMIL"), (0.2,), 1, (("paper", "random"),), ("image",))
    for attempt in range(3):  # Ray gives its own processes 30 seconds to start, which a busy machine may exceed
        try:
            runs = table2(tmp_path / "ray", AudioVisionRecipe(epochs=1), jobs, workers=2, backend="ray")
            break
        except Exception as e:
            if "timed out during startup" not in str(e) or attempt == 2:
                raise
        finally:
            ray.shutdown()
    present = table2(tmp_path / "here", AudioVisionRecipe(epochs=1), jobs, workers=1, backend="sequential")
    key = ["method", "seed", "accuracy", "validation", "train_loss"]
    pd.testing.assert_frame_equal(
        runs[key].sort_values("method", ignore_index=True), present[key].sort_values("method", ignore_index=True)
    )


def test_ray_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(MetakdError, match=r"pip install metakd\[ray\]"):
        table2(
            tmp_path,
            AudioVisionRecipe(epochs=1),
            table2_jobs(("NoKD",), (0.2,), 1, (("paper", "random"),), ("image",)),
            backend="ray",
        )
