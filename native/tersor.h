// What every file of the kernel shares: exports, error codes, and the SIMD switch.
#ifndef TERSOR_H
#define TERSOR_H

#include <cstdint>

#if defined(_WIN32)
#define TERSOR_API extern "C" __declspec(dllexport)
#else
#define TERSOR_API extern "C" __attribute__((visibility("default")))
#endif

// Functions marked TERSOR_AVX2 may only run where tersor_simd_level() >= 1, TERSOR_AVX512 where it is 2; their twins without the mark are
// the reference. Only GCC and Clang can compile single functions for AVX2; MSVC accepts the intrinsics as is.
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__) || defined(_MSC_VER))
#define TERSOR_HAS_AVX2 1
#if defined(__GNUC__) || defined(__clang__)
#define TERSOR_AVX2 __attribute__((target("avx2,popcnt")))
#define TERSOR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,popcnt")))
#else
#define TERSOR_AVX2
#define TERSOR_AVX512
#endif
#else
#define TERSOR_HAS_AVX2 0
#endif

// Error codes, the same numbers as in tersor/bitstream/native.py.
enum : int64_t {
    TERSOR_BAD_ARGUMENT = -1,  // the caller broke the contract: a bug in tersor
    TERSOR_TRUNCATED = -2,     // the stream ends before its content does
    TERSOR_CORRUPT = -3,       // the stream contradicts itself
    TERSOR_NO_ROOM = -4,       // the output buffer is too small
    TERSOR_NO_MEMORY = -5,     // an allocation failed
};

// 2 where this CPU and operating system can run AVX-512 (F, BW, VL, DQ), 1 where AVX2, otherwise 0.
TERSOR_API int32_t tersor_simd_level(void);

#endif
