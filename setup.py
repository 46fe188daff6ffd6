"Reads everything from settings.ini, the one place where name, version and requirements are written."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["metakd", "metakd.*"]),
    package_data={"metakd": ["data/*.sha256", "lab/*.csv"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "speech": cfg["speech_requirements"].split(),
        "cohort": cfg["cohort_requirements"].split(),
        "formats": cfg["formats_requirements"].split(),
        "h5ad": cfg["h5ad_requirements"].split(),
        "parquet": cfg["parquet_requirements"].split(),
        "ray": cfg["ray_requirements"].split(),
        "peers": cfg["peers_requirements"].split(),
        "export": cfg["export_requirements"].split(),
        "dev": cfg["dev_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
    zip_safe=False,
)
