"""Builds the C++ libraries, and names a wheel by what it needs: a platform, and no certain Python.

The libraries are loaded with ctypes and use nothing of Python, so one wheel serves every Python. With ISOTRAIN_PURE=1
in the environment none is built, and the wheel serves every platform.
"""

import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class WithLibraries(Distribution):
    def has_ext_modules(self) -> bool:
        return super().has_ext_modules() and os.environ.get("ISOTRAIN_PURE", "0") in ("", "0")


class Libraries(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# Named, because the root is the package: a build tool has a name of its own, and this file would be a module.
setup(
    script_name="setup.py",
    distclass=WithLibraries,
    cmdclass={"build_ext": Libraries, "bdist_wheel": Wheel},
)
