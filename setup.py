"Reads everything from settings.ini, the one place where name, version, addresses and requirements are written."

import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
pages = f"{cfg['git_url']}/blob/{cfg['branch']}"
extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}
extras["all"] = [r for kind in ("audio", "scans", "tables", "logs") for r in extras[kind]]
for name in ("course", "dev"):
    extras[name] += extras["all"]
# links and pictures of the README work where it is read without the repository
readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\])\((?!https?:|#)([^)]+)\)", rf"\1({cfg['git_url']}/raw/{cfg['branch']}/\2)", readme)
readme = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({pages}/\1)", readme)


class BuildWithResults(build_py):
    "The tables of the lab go into the wheel, where its notebooks find them."

    def run(self):
        super().run()
        if not self.editable_mode:
            wanted = shutil.ignore_patterns("*.png")
            shutil.copytree(
                here / "results", Path(self.build_lib) / "metakd" / "results", ignore=wanted, dirs_exist_ok=True
            )


setup(
    cmdclass={"build_py": BuildWithResults},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    project_urls={
        "Source": cfg["git_url"],
        "Issues": f"{cfg['git_url']}/issues",
        "Changes": f"{pages}/CHANGELOG.md",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["metakd", "metakd.*"]),
    package_data={"metakd": ["py.typed", "data/*.sha256", "lab/*.csv"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Education",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
