"""A sweep through Ray. The last file, so that Ray starts when little else is running: it gives its own processes 30
seconds.
"""

import sys
import threading
import time
from functools import partial

import pandas as pd
import pytest

from metakd.files import MetakdError
from metakd.lab.sweep import check_backend, through_ray
from metakd.lab.table2 import AudioVisionRecipe, table2, table2_jobs

pytestmark = pytest.mark.usefixtures("one_thread")


def two_nodes():
    "A cluster of two nodes with one processor each, joined; Ray gives its own processes 30 seconds to start."
    ray = pytest.importorskip("ray", reason="the backend 'ray' is an extra: pip install metakd[ray]")
    from ray.cluster_utils import Cluster

    for attempt in range(3):  # a busy machine may exceed that
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            second = cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            return ray, cluster, second
        except Exception as e:
            ray.shutdown()
            if "timed out" not in str(e) or attempt == 2:
                raise
    raise AssertionError


def test_a_sweep_over_two_nodes_survives_the_loss_of_one(tmp_path):
    jobs = table2_jobs(("NoKD", "SMIL"), (0.2,), 3, (("paper", "random"),), ("image",))
    ray, cluster, second = two_nodes()
    lost = threading.Event()

    def lose_one():
        while not (tmp_path / "ray" / "table2a.csv").exists():
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)  # with a run on it
        lost.set()

    thread = threading.Thread(target=lose_one, daemon=True)
    thread.start()
    try:
        assert len(ray.nodes()) == 2
        runs = table2(tmp_path / "ray", AudioVisionRecipe(epochs=2), jobs, workers=2, backend="ray")
        with pytest.raises(
            MetakdError, match="^unknown backend 'abacus'"
        ):  # a sentence, not a traceback of another machine
            list(through_ray([partial(check_backend, "abacus")], 1))
    finally:
        thread.join(60)
        ray.shutdown()
        cluster.shutdown()
    assert lost.is_set()
    present = table2(tmp_path / "here", AudioVisionRecipe(epochs=2), jobs, workers=1, backend="sequential")
    key = ["method", "seed", "accuracy", "validation", "train_loss"]
    by = ["method", "seed"]
    pd.testing.assert_frame_equal(
        runs[key].sort_values(by, ignore_index=True), present[key].sort_values(by, ignore_index=True)
    )


def test_ray_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MetakdError, match=r"pip install metakd\[ray\]"):
        table2(
            tmp_path,
            AudioVisionRecipe(epochs=1),
            table2_jobs(("NoKD",), (0.2,), 1, (("paper", "random"),), ("image",)),
            backend="ray",
        )
