"""Builds the package from the files of this folder, with `fastpath` if Cython and a C compiler are there."""

import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROLES = ("master", "slave", "client")
COMPONENTS = Path(__file__).with_name("components.py").read_text("utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', COMPONENTS, re.MULTILINE)[1]
FASTPATH = Extension("concurrent_swarm.fastpath", ["fastpath.pyx"], optional=True)
OPENMP_PROBE = "#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n"


class BuildKernels(build_ext):
    """Compiles for speed, and for several cores if compiler and linker know OpenMP."""

    def build_extensions(self):
        # -ffp-contract=off: the compiled code gives the same last bit as its twin in pure Python.
        msvc = self.compiler.compiler_type == "msvc"
        openmp = [] if msvc or not self.links("-fopenmp", OPENMP_PROBE) else ["-fopenmp"]
        for extension in self.extensions:
            extension.extra_compile_args += ["/O2", "/openmp"] if msvc else ["-O3", "-ffp-contract=off", *openmp]
            extension.extra_link_args += openmp
        super().build_extensions()

    def links(self, flag: str, code: str) -> bool:
        """Whether the compiler makes a library of this code with this flag."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
                self.compiler.link_shared_object(objects, str(Path(folder, "probe.so")), extra_postargs=[flag])
            except (CompileError, LinkError):
                return False
        return True


if __name__ == "__main__":  # the tests build with the same command
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
        cmdclass={"build_ext": BuildKernels},
        entry_points={"console_scripts": [f"concurrent-{role} = concurrent_swarm.{role}:main" for role in ROLES]},
        python_requires=">=3.10",
        install_requires=["pyzmq>=25"],
        extras_require={
            "browser": ["axe-playwright-python", "playwright"],
            "docs": ["pdoc>=15"],
            "test": ["cython>=3", "hypothesis", "matplotlib", "numpy", "pdoc>=15", "prometheus_client", "pytest",
                     "setuptools>=68"],
            "samples": ["matplotlib", "numpy"],
        },
    )
