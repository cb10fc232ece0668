"""Builds the C++ libraries, and names a wheel by what it needs: a platform, and no certain Python.

The libraries are loaded with ctypes and use nothing of Python, so one wheel serves every Python. With ISOTRAIN_PURE=1
in the environment none is built, and the wheel serves every platform.
"""

import os
import re
import tomllib
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


def description() -> str:
    """README.md with links that also lead somewhere from a package index's page."""
    root = Path(__file__).parent
    repository = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    text = (root / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{repository}/raw/main/", text)
    return re.sub(r"\]\((?!https?:|#)", f"]({repository}/blob/main/", text)


# Named, because the root is the package: a build tool has a name of its own, and this file would be a module.
setup(
    script_name="setup.py",
    long_description=description(),
    long_description_content_type="text/markdown",
    distclass=WithLibraries,
    cmdclass={"build_ext": Libraries, "bdist_wheel": Wheel},
)
