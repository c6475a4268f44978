"""Builds every native/*.cpp into the one library `tersor._kernel`; all else is in pyproject.toml.

The library has a plain C ABI and is loaded with ctypes (see `tersor.bitstream.native`). Its only tie to
CPython is an empty module of the limited API, so that one wheel (cp311-abi3) serves 3.11 and later.

Without a C++17 compiler tersor is installed all the same: it then reads files, slowly, and says what is missing
when it is asked to write one. TERSOR_REQUIRE_KERNEL=1 makes a failed build an error, as for wheels.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No -march=native: a wheel must run everywhere. AVX2 code is per function, chosen at run time.
# Contraction off: a fused multiply-add would make floats differ from one machine to the next.
FLAGS = {
    "msvc": ["/O2", "/std:c++17", "/fp:precise", "/EHsc", "/utf-8", "/W3"],
    "unix": ["-O3", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra"],
}


class BuildKernel(build_ext):
    """`build_ext` with the flags of the compiler at hand, and a notice where there is none."""

    def build_extensions(self) -> None:
        flags = FLAGS["msvc" if self.compiler.compiler_type == "msvc" else "unix"]
        for extension in self.extensions:
            extension.extra_compile_args = flags
        super().build_extensions()
        if not all(os.path.exists(self.get_ext_fullpath(extension.name)) for extension in self.extensions):
            print("tersor: the native kernel was not built (it needs a C++17 compiler). Files can be read, slowly; "
                  "to write them, install a compiler and then tersor again.", file=sys.stderr)


kernel = Extension(
    "tersor._kernel",
    sources=sorted(glob("native/*.cpp")),
    depends=sorted(glob("native/*.h")),
    language="c++",
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
    optional=os.environ.get("TERSOR_REQUIRE_KERNEL") != "1",
)

setup(
    ext_modules=[kernel],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
