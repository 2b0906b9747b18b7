"""Builds the package from the files of this folder, with `fastpath` if Cython and a C compiler are there."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

ROLES = ("master", "slave", "client")
COMPONENTS = Path(__file__).with_name("components.py").read_text("utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', COMPONENTS, re.MULTILINE)[1]
# -ffp-contract=off: the compiled code gives the same last bit as its twin in pure Python.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]
FASTPATH = Extension("concurrent_swarm.fastpath", ["fastpath.pyx"], extra_compile_args=FLAGS, optional=True)

setup(
    name="concurrent-swarm",
    version=VERSION,
    description="Runs whole applications on a swarm of machines",
    license="MIT",
    script_name="setup.py",  # which is then left out of the package, however the build is started
    packages=["concurrent_swarm"],
    package_dir={"concurrent_swarm": "."},
    package_data={"concurrent_swarm": ["dashboard.html", "py.typed", "fastpath.pyx"]},
    ext_modules=[FASTPATH] if find_spec("Cython") else [],
    entry_points={"console_scripts": [f"concurrent-{role} = concurrent_swarm.{role}:main" for role in ROLES]},
    python_requires=">=3.10",
    install_requires=["pyzmq>=25"],
    extras_require={
        "docs": ["pdoc>=15"],
        "test": ["cython>=3", "hypothesis", "matplotlib", "numpy", "pdoc>=15", "pytest", "setuptools>=68"],
        "samples": ["matplotlib", "numpy"],
    },
)
