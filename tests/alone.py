"""`make alone`: every notebook where there is nothing but what its first cell installs, as on Colab. Notebooks that
name the same extras share an environment.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def extras(path: Path) -> frozenset[str]:
    "What the first cell installs."
    found = re.search(r'source = \\"metakd\[([\w,]+)\]', path.read_text())
    return frozenset(found[1].split(",") if found else ["course"])


def main(folder: Path, *pip_args: str) -> int:
    "How many groups failed."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "build", "-q", "--wheel", "-o", str(folder), str(root)], check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.copy(root / "settings.ini", folder)
    groups, failed = {}, 0
    for path in notebooks:
        groups.setdefault(extras(path), []).append(path)
    for k, (names, paths) in enumerate(sorted(groups.items(), key=lambda group: (len(group[0]), sorted(group[0])))):
        here = folder / f"env{k}"
        subprocess.run([sys.executable, "-m", "venv", str(here)], check=True)
        what = f"{wheel}[{','.join(sorted(names))}]"
        pip = [str(here / "bin/python"), "-m", "pip", "install", "-q", *pip_args, "-c", str(root / "constraints.txt")]
        subprocess.run([*pip, what], check=True)
        (folder / f"nbs{k}").mkdir()
        for path in paths:
            shutil.copy(path, folder / f"nbs{k}")
        print(f"{', '.join(sorted(names))}: {len(paths)} notebooks", flush=True)
        env = {**os.environ, "IN_TEST": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}
        test = [str(here / "bin/nbdev_test"), "--path", f"nbs{k}", "--n_workers", "2"]
        failed += subprocess.run(test, cwd=folder, env=env).returncode != 0
        shutil.rmtree(here)
    return failed


if __name__ == "__main__":
    sys.exit(main(root / "_alone", *sys.argv[1:]))
