"Runs that are killed, interrupted, out of disk, or spread over processes. Each starts real processes, as a user would."

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from conftest import assert_same_run, hears_ctrl_c, log, metakd_in_two_processes

BASE = [
    "train",
    "audiovision",
    "--rate",
    "0.2",
    "--recipe.epochs",
    "15",
    "--checkpoint-seconds",
    "0",
]  # long enough that a busy machine can still stop it in time
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(out, *more):
    return [sys.executable, "-m", "metakd.cli", *BASE, "--out", str(out), *more]


def finish(out, *more, **options):
    done = subprocess.run(command(out, *more), env=ENV, capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def wait_for_checkpoint(process, out, step):
    for _ in range(2400):
        found = sorted((out / "checkpoints").glob("step-*"))
        if found and int(found[-1].name[5:]) >= step:
            return
        assert process.poll() is None, "the training ended before it could be stopped"
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nobody disturbed."
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(out)
    return out


def test_sigkill_in_mid_epoch_then_resume_gives_the_same_bits(whole, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(out), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(process, out, 58)
    time.sleep(0.1)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "weights.safetensors").exists()
    finish(out, "--resume")
    assert_same_run(whole, out)


def test_ctrl_c_leaves_a_checkpoint_and_resumes(whole, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "--checkpoint-seconds", "1000"),
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    for _ in range(2400):
        if (out / "log.csv").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped at step" in errors and "Traceback" not in errors
    assert list((out / "checkpoints").glob("step-*"))
    finish(out, "--resume")
    assert_same_run(whole, out)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    from metakd.lab.table2 import AudioVision, AudioVisionRecipe
    from metakd.training import latest_checkpoint, load_checkpoint

    out, recipe = tmp_path / "run", AudioVisionRecipe(epochs=3)
    p = AudioVision(rate=0.2).prepare(recipe)
    p.fit(out, progress=False, checkpoint_seconds=0, stop_after=29)
    before = {f.name: f.read_bytes() for f in latest_checkpoint(out).iterdir()}
    script = f"""
import resource, sys
from metakd.cli import main
# weights are larger than that: every write of them fails half-way, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
main(
    ["train", "audiovision", "--out", {str(out)!r}, "--rate", "0.2"]
    + ["--recipe.epochs", "3", "--checkpoint-seconds", "0", "--resume"]
)
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "could not be written" in done.stderr and "is whole" in done.stderr and "Traceback" not in done.stderr
    assert {f.name: f.read_bytes() for f in latest_checkpoint(out).iterdir()} == before
    assert not list((out / "checkpoints").glob(".*"))
    fresh = AudioVision(rate=0.2).prepare(recipe)
    assert load_checkpoint(latest_checkpoint(out), fresh.method, fresh.recipe)["step"] == 29


def test_two_processes_give_the_losses_of_one(tmp_path):
    # Each process draws its own dropout masks and measures its own spread, so equality is a statement about dropout 0
    # and the published equation (5).
    options = (
        "--recipe.dropout",
        "0",
        "--recipe.no-relative",
        "--recipe.batch-size",
        "32",
        "--recipe.drop",
        "0.3",
        "--recipe.epochs",
        "2",
    )
    finish(tmp_path / "one", *options)
    metakd_in_two_processes(tmp_path, *BASE, "--out", str(tmp_path / "two"), *options)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    for column in ("loss", "task", "distillation", "meta", "w_image"):
        assert (one[column] - two[column]).abs().max() < 1e-5, column
    assert one.step.tolist() == two.step.tolist()


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metakd.cli", "train", "audiovision", "--out", str(tmp_path / "new"), "--rate", "1.5"],
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "rate 1.5 is not between 0 and 1" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "new").exists()


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = f"""
import os, time
from pathlib import Path
from metakd.lab.sweep import sweep

def work(k):
    Path({str(tmp_path)!r}, f"{{k}}.pid").write_text(str(os.getpid()))
    time.sleep(600)

sweep([dict(k=0), dict(k=1)], work, {str(tmp_path / "out")!r}, lambda job, out: False)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], env=ENV, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len([p for p in tmp_path.glob("*.pid") if p.read_text()]) < 2:
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.1)
    workers = [psutil.Process(int(p.read_text())) for p in tmp_path.glob("*.pid")]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not [w for w in alive if w.status() != psutil.STATUS_ZOMBIE]
