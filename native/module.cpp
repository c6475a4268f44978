// The library's entry points that belong to no algorithm: version, CPU, and the module CPython wants to see.
#include <Python.h>

#include "tersor.h"

#if TERSOR_HAS_AVX2 && defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>
#endif

// Raised whenever a signature changes: a stale library is then refused instead of called wrongly.
TERSOR_API int32_t tersor_abi_version(void) { return 2; }

TERSOR_API int32_t tersor_simd_level(void) {
#if !TERSOR_HAS_AVX2
    return 0;
#elif defined(_MSC_VER) && !defined(__clang__)
    int r[4];
    __cpuid(r, 0);
    if (r[0] < 7) return 0;
    __cpuid(r, 1);
    const bool os_saves = (r[2] & (1 << 27)) != 0 && (_xgetbv(0) & 6) == 6;
    const bool wide = os_saves && (_xgetbv(0) & 0xe6) == 0xe6;
    __cpuidex(r, 7, 0);
    if (!os_saves || (r[1] & (1 << 5)) == 0) return 0;
    const uint32_t wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    return wide && (static_cast<uint32_t>(r[1]) & wanted) == wanted ? 2 : 1;
#else
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? 2
               : 1;
#endif
}

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Native kernel of tersor; used through ctypes.", -1,
    nullptr, nullptr, nullptr, nullptr, nullptr,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
