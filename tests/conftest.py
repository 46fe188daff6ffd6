import json
import os
import signal
import socket
import subprocess
import sys
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


def two_processes(script: Path, text: str) -> str:  # what they printed
    "Run a script in two processes on the CPU (`accelerate launch --cpu` would start one, unless MPI is there)."
    script.write_text(f"{text}\nimport torch\nif torch.distributed.is_initialized(): torch.distributed.destroy_process_group()\n")  # threads of a group that is left open may abort the interpreter's end
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), str(script)]
    done = subprocess.run(launch, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def metakd_in_two_processes(folder: Path, *args: str) -> None:
    "The command `metakd ...`; training makes sure that there are two."
    two_processes(folder / "two.py", METAKD.format(args=list(args)))


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
    from metakd.data.brats import find_cases
    from metakd.data.glioma import write_cohort

    out = tmp_path_factory.mktemp("cohort") / "cases"
    write_cohort(out, patients=10, shape=(24, 24, 24), spacing=7.5, jobs=1)
    for number, gone in ((3, ("t1ce",)), (4, ("t1", "t1ce", "t2"))):
        for name in gone: next(out.glob(f"*/Glioma_{number:04d}/*_{name}.nii.gz")).unlink()
    names = [c.name for c in find_cases(out)]
    (out / "split.json").write_text(json.dumps({"train": names[:5], "meta": names[5:6], "validation": names[6:7], "test": names[7:]}))
    return out
