// The inner loops of rans_lanes.cpp for AVX-512: 16 lanes to a vector, words expanded into the lanes that lack them.
// The same bits as the portable reference.
#include "rans.h"

#if TERSOR_HAS_AVX2
#include <immintrin.h>

namespace tersor::rans {
namespace {

template <int V, bool PACKED>
TERSOR_AVX512 int64_t sweep(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    const uint8_t *at = lanes.at;
    const int p = PACKED ? MIN_PRECISION : t.precision;
    const __m128i shift = _mm_cvtsi32_si128(p);
    const __m512i mask = _mm512_set1_epi32((1 << p) - 1), byte = _mm512_set1_epi32(255);
    const __m512i low12 = _mm512_set1_epi32(0xfff), low16 = _mm512_set1_epi32(0xffff);
    const __m512i start = _mm512_set1_epi32(static_cast<int>(START)), zero = _mm512_setzero_si512();
    __m512i x[V];
    for (int v = 0; v < V; ++v) x[v] = _mm512_loadu_si512(lanes.state + 16 * v);
    int64_t done = 0;
    for (; done < sweeps && at <= stop; ++done, out += 16 * V) {
        for (int v = 0; v < V; ++v) {
            const __m512i slot = _mm512_and_si512(x[v], mask), high = _mm512_maskz_srl_epi32(0xffff, x[v], shift);
            __m512i symbol;
            if (PACKED) {
                const __m512i e = _mm512_mask_i32gather_epi32(zero, 0xffff, slot, t.packed, 4);
                const __m512i f = _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, e, 8), low12);
                symbol = e;
                x[v] = _mm512_add_epi32(_mm512_mullo_epi32(f, high), _mm512_maskz_srli_epi32(0xffff, e, 20));
            } else {
                symbol = _mm512_and_si512(_mm512_mask_i32gather_epi32(zero, 0xffff, slot, t.symbol, 1), byte);
                const __m512i r = _mm512_mask_i32gather_epi32(zero, 0xffff, symbol, t.ranges, 4);
                const __m512i bias = _mm512_sub_epi32(slot, _mm512_maskz_srli_epi32(0xffff, r, 16));
                x[v] = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_and_si512(r, low16), high), bias);
            }
            const __mmask16 need = _mm512_cmplt_epu32_mask(x[v], start);
            const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
            const __m512i refill = _mm512_maskz_expand_epi32(need, words);
            x[v] = _mm512_or_si512(_mm512_mask_slli_epi32(x[v], need, x[v], 16), refill);
            at += 2 * _mm_popcnt_u32(need);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 16 * v), _mm512_maskz_cvtepi32_epi8(0xffff, symbol));
        }
    }
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(lanes.state + 16 * v, x[v]);
    lanes.at = at;
    return done;
}

template <bool PACKED>
int64_t sweep_any(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    switch (lanes.count) {
        case 16: return sweep<1, PACKED>(lanes, t, out, sweeps, stop);
        case 32: return sweep<2, PACKED>(lanes, t, out, sweeps, stop);
        default: return sweep<4, PACKED>(lanes, t, out, sweeps, stop);
    }
}

}  // namespace

int64_t sweep_avx512(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    return t.precision == MIN_PRECISION ? sweep_any<true>(lanes, t, out, sweeps, stop)
                                        : sweep_any<false>(lanes, t, out, sweeps, stop);
}

TERSOR_AVX512 void scale_avx512(const float *levels, int used, const uint8_t *symbols, int64_t n, float scale, float *out) {
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512 a = _mm512_loadu_ps(levels), b = _mm512_loadu_ps(levels + 16);
    const __m512 c = _mm512_loadu_ps(levels + 32), d = _mm512_loadu_ps(levels + 48);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 there = static_cast<__mmask16>(n - i < 16 ? (1 << (n - i)) - 1 : 0xffff);
        const __m512i s = _mm512_maskz_cvtepu8_epi32(there, _mm_maskz_loadu_epi8(there, symbols + i));
        __m512 level;
        if (used <= 64) {  // shuffles beat a gather
            level = _mm512_permutex2var_ps(a, s, b);
            if (used > 32) {
                const __mmask16 above = _mm512_test_epi32_mask(s, _mm512_set1_epi32(32));
                level = _mm512_mask_blend_ps(above, level, _mm512_permutex2var_ps(c, s, d));
            }
        } else {
            level = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, s, levels, 4);
        }
        _mm512_mask_storeu_ps(out + i, there, _mm512_mul_ps(level, factor));
    }
}

}  // namespace tersor::rans

#endif
