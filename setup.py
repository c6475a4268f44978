"""Builds every native/*.cpp into the one library `tersor._kernel`; all else is in pyproject.toml.

The library has a plain C ABI and is loaded with ctypes (see `tersor.bitstream.native`). Its only tie to
CPython is an empty module of the limited API, so that one wheel (cp311-abi3) serves 3.11 and later.
"""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No -march=native: a wheel must run everywhere. AVX2 code is per function, chosen at run time.
# Contraction off: a fused multiply-add would make floats differ from one machine to the next.
FLAGS = {
    "msvc": ["/O2", "/std:c++17", "/fp:precise", "/EHsc"],
    "unix": ["-O3", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra"],
}


class BuildKernel(build_ext):
    """`build_ext` with the flags of the compiler at hand."""

    def build_extensions(self) -> None:
        flags = FLAGS["msvc" if self.compiler.compiler_type == "msvc" else "unix"]
        for extension in self.extensions:
            extension.extra_compile_args = flags
        super().build_extensions()


kernel = Extension(
    "tersor._kernel",
    sources=sorted(glob("native/*.cpp")),
    depends=sorted(glob("native/*.h")),
    language="c++",
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
)

setup(
    ext_modules=[kernel],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
