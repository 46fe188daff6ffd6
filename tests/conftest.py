import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

METAKD = """
import metakd.training
from metakd.cli import main

made = metakd.training.make_accelerator

def in_two(*args):
    accelerator = made(*args)
    assert accelerator.num_processes == 2
    return accelerator

metakd.training.make_accelerator = in_two
main({args!r})
"""


def metakd_in_two_processes(folder: Path, *args: str) -> None:
    """The command `metakd ...` under a launcher (`accelerate launch --cpu` would start one process, unless MPI is
    there); training makes sure that there are two.
    """
    script = folder / "two.py"
    script.write_text(
        f"{METAKD.format(args=list(args))}\nimport torch\nif torch.distributed.is_initialized(): "
        "torch.distributed.destroy_process_group()\n"
    )  # threads of a group that is left open may abort the interpreter's end
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), str(script)]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_two_processes(work: Callable[[], None]) -> None:
    "Call it in two processes on the CPU at once, joined as a launcher joins them; forked, so that nothing is imported."
    import torch
    from accelerate.state import AcceleratorState

    port = free_port()

    def one(rank: int) -> None:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in where.items()}, ACCELERATE_USE_CPU="true")
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        work()
        torch.distributed.destroy_process_group()

    both = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    until = time.monotonic() + 300
    while any(p.exitcode is None for p in both) and not any(p.exitcode for p in both) and time.monotonic() < until:
        time.sleep(0.05)  # one that has failed leaves the other waiting for it
    for process in both:
        if process.exitcode is None:
            process.join(1)  # it is done, or it waits
            process.kill()
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


def assert_equal_in_both(name: str, method) -> None:
    "For `in_two_processes`: both have the same weights; every player is stepped with the gradients of both."
    import torch

    mine = torch.cat([q.detach().flatten() for q in method.parameters()])
    first = mine.clone()
    torch.distributed.broadcast(first, 0)
    assert torch.distributed.get_world_size() == 2 and mine.isfinite().all() and torch.equal(mine, first), name


def log(run: Path | str):
    "A run's log, without what is different every time."
    import pandas as pd

    return pd.read_csv(Path(run) / "log.csv").drop(columns="seconds")


def assert_same_run(a: Path, b: Path) -> None:
    "Two folders hold the same log and the same weights, to the bit."
    import pandas as pd
    import safetensors.torch
    import torch

    pd.testing.assert_frame_equal(log(a), log(b), check_exact=True)
    weights, others = (safetensors.torch.load_file(x / "weights.safetensors") for x in (a, b))
    assert weights.keys() == others.keys() and all(torch.equal(weights[k], others[k]) for k in weights)


def kill_in_training(prepare, train, run: Path) -> None:
    "Prepare and train in a process of its own; kill it once a checkpoint lies in the run's folder."
    import torch

    def slowly():
        # renews the pool that did not survive the fork, before two loading threads do so at once
        torch.set_num_threads(1)
        p = prepare()
        loss = p.method.training_loss
        # time to be killed in
        p.method.training_loss = lambda batch: (time.sleep(0.3 if p.method.progress > 0.4 else 0), loss(batch))[1]
        train(p)

    process = multiprocessing.get_context("fork").Process(target=slowly)
    process.start()
    while not list((run / "checkpoints").glob("step-*")):
        assert process.is_alive(), "the training ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (run / "weights.safetensors").exists()


def with_rubbish(batch, rubbish: float = float("nan")):
    "The same batch with rubbish where nothing is."
    import torch

    return batch._replace(
        x={
            m: torch.where(batch.available[:, k].view(-1, *[1] * (v.ndim - 1)), v, rubbish)
            for k, (m, v) in enumerate(batch.x.items())
        }
    )


def assert_nothing_absent_is_read(method, batch, rubbish: float = float("nan")) -> None:
    "The training loss does not depend on what stands where nothing is, and its gradients are finite."
    import torch

    seen = []
    for b in (batch, with_rubbish(batch, rubbish)):
        torch.manual_seed(1)
        method.zero_grad()
        loss, _ = method.training_loss(b)
        loss.backward()
        assert all(q.grad is None or q.grad.isfinite().all() for q in method.parameters())
        seen.append(loss.item())
    assert seen[0] == seen[1]


@pytest.fixture
def one_thread():
    "Sums in one order, here and in the processes that are started."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hears_ctrl_c() -> None:
    "For `preexec_fn`: a shell that starts tests in the background makes their processes deaf to SIGINT."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "Ten tiny patients; the third has no T1c and the fourth nothing but FLAIR."
    from metakd.data.glioma import write_cohort
    from metakd.data.scans import find_cases

    out = tmp_path_factory.mktemp("cohort") / "cases"
    write_cohort(out, patients=10, shape=(24, 24, 24), spacing=7.5, jobs=1)
    for number, gone in ((3, ("t1ce",)), (4, ("t1", "t1ce", "t2"))):
        for name in gone:
            next(out.glob(f"*/Glioma_{number:04d}/*_{name}.nii.gz")).unlink()
    names = [c.name for c in find_cases(out)]
    (out / "split.json").write_text(
        json.dumps({"train": names[:5], "meta": names[5:6], "validation": names[6:7], "test": names[7:]})
    )
    return out
