// The inner loops: words and states to symbols, and symbols to floats. Each has a portable reference, and
// twins for AVX2 and (rans_avx512.cpp) AVX-512 that give the same bits.
#include <cstring>

#include "rans.h"

#if TERSOR_HAS_AVX2
#include <immintrin.h>
#endif

namespace tersor::rans {

void Lanes::start(const uint8_t *words, int64_t size) {
    at = words;
    end = words + size;
    next = 0;
    in_tail = false;
}

bool Lanes::finished() const {
    for (int i = 0; i < count; ++i)
        if (state[i] != START) return false;
    return at == end;
}

template <bool PACKED>
static inline uint32_t step(const Slots &t, uint32_t &x) {
    const int p = PACKED ? MIN_PRECISION : t.precision;
    const uint32_t slot = x & ((1u << p) - 1);
    if (PACKED) {
        const uint32_t e = t.packed[slot];
        x = (e >> 8 & 0xfff) * (x >> p) + (e >> 20);
        return e & 255;
    }
    const uint32_t s = t.symbol[slot], r = t.ranges[s];
    x = (r & 0xffff) * (x >> p) + slot - (r >> 16);
    return s;
}

// Whole sweeps over all lanes while at most `stop` is read from; every sweep reads at most 2 * count bytes
// after its start. Returns how many of `sweeps` were done.
template <bool PACKED>
static int64_t sweep_portable(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    const uint8_t *at = lanes.at;
    const int n = lanes.count;
    int64_t done = 0;
    for (; done < sweeps && at <= stop; ++done, out += n) {
        for (int i = 0; i < n; ++i) {
            uint32_t x = lanes.state[i];
            out[i] = static_cast<uint8_t>(step<PACKED>(t, x));
            const uint32_t low = x < START;  // arithmetic, because a branch would be a coin toss
            lanes.state[i] = x << (16 * low) | (load16(at) & (0u - low));
            at += 2 * low;
        }
    }
    lanes.at = at;
    return done;
}

#if TERSOR_HAS_AVX2

struct Spread {  // for each mask of lanes: which of the next words goes where
    alignas(8) uint8_t lane[256][8];
};

static constexpr Spread make_spread() {
    Spread spread{};
    for (int mask = 0; mask < 256; ++mask)
        for (int i = 0, word = 0; i < 8; ++i) {
            spread.lane[mask][i] = static_cast<uint8_t>(word);
            word += mask >> i & 1;
        }
    return spread;
}

static constexpr Spread SPREAD = make_spread();

template <int V, bool PACKED>
TERSOR_AVX2 static int64_t sweep_avx2(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps,
                                      const uint8_t *stop) {
    const uint8_t *at = lanes.at;
    const int p = PACKED ? MIN_PRECISION : t.precision;
    const __m128i shift = _mm_cvtsi32_si128(p);
    const __m256i mask = _mm256_set1_epi32((1 << p) - 1), byte = _mm256_set1_epi32(255);
    const __m256i low12 = _mm256_set1_epi32(0xfff), low16 = _mm256_set1_epi32(0xffff);
    __m256i x[V], symbol[V];
    for (int v = 0; v < V; ++v) x[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(lanes.state) + v);
    int64_t done = 0;
    for (; done < sweeps && at <= stop; ++done, out += 8 * V) {
        for (int v = 0; v < V; ++v) {
            const __m256i slot = _mm256_and_si256(x[v], mask), high = _mm256_srl_epi32(x[v], shift);
            if (PACKED) {
                const __m256i e = _mm256_i32gather_epi32(reinterpret_cast<const int *>(t.packed), slot, 4);
                symbol[v] = _mm256_and_si256(e, byte);
                const __m256i f = _mm256_and_si256(_mm256_srli_epi32(e, 8), low12);
                x[v] = _mm256_add_epi32(_mm256_mullo_epi32(f, high), _mm256_srli_epi32(e, 20));
            } else {
                symbol[v] = _mm256_and_si256(
                    _mm256_i32gather_epi32(reinterpret_cast<const int *>(t.symbol), slot, 1), byte);
                const __m256i r =
                    _mm256_i32gather_epi32(reinterpret_cast<const int *>(t.ranges), symbol[v], 4);
                const __m256i bias = _mm256_sub_epi32(slot, _mm256_srli_epi32(r, 16));
                x[v] = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_and_si256(r, low16), high), bias);
            }
            const __m256i need = _mm256_cmpeq_epi32(_mm256_srli_epi32(x[v], 16), _mm256_setzero_si256());
            const int which = _mm256_movemask_ps(_mm256_castsi256_ps(need));
            const __m256i order =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(SPREAD.lane[which])));
            const __m256i words = _mm256_permutevar8x32_epi32(
                _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at))), order);
            const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(x[v], 16), words);
            x[v] = _mm256_blendv_epi8(x[v], refilled, need);
            at += 2 * _mm_popcnt_u32(static_cast<unsigned>(which));
        }
        for (int v = 0; v < V; v += 4) {
            // Four vectors of 32-bit symbols become 32 bytes; with fewer, the rest of the bytes is not stored.
            const __m256i a = _mm256_packus_epi32(symbol[v], symbol[v + 1 < V ? v + 1 : v]);
            const __m256i b = V >= 4 ? _mm256_packus_epi32(symbol[v + 2 < V ? v + 2 : v],
                                                           symbol[v + 3 < V ? v + 3 : v])
                                     : a;
            const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b),
                                                               _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            if (V >= 4) _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + 8 * v), packed);
            else if (V == 2) _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm256_castsi256_si128(packed));
            else _mm_storel_epi64(reinterpret_cast<__m128i *>(out), _mm256_castsi256_si128(packed));
        }
    }
    for (int v = 0; v < V; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i *>(lanes.state) + v, x[v]);
    lanes.at = at;
    return done;
}

TERSOR_AVX2 static void scale_avx2(const float *levels, int used, const uint8_t *symbols, int64_t n, float scale,
                                   float *out) {
    const __m256 factor = _mm256_set1_ps(scale);
    const __m256 part[4] = {_mm256_loadu_ps(levels), _mm256_loadu_ps(levels + 8), _mm256_loadu_ps(levels + 16),
                            _mm256_loadu_ps(levels + 24)};
    for (int64_t i = 0; i + 8 <= n; i += 8) {
        const __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(symbols + i)));
        __m256 level;
        if (used <= 32) {  // shuffles beat a gather
            const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(s, 28));
            level = _mm256_blendv_ps(_mm256_permutevar8x32_ps(part[0], s), _mm256_permutevar8x32_ps(part[1], s), bit3);
            if (used > 16) {
                const __m256 above = _mm256_blendv_ps(_mm256_permutevar8x32_ps(part[2], s),
                                                      _mm256_permutevar8x32_ps(part[3], s), bit3);
                level = _mm256_blendv_ps(level, above, _mm256_castsi256_ps(_mm256_slli_epi32(s, 27)));
            }
        } else {
            level = _mm256_i32gather_ps(levels, s, 4);
        }
        _mm256_storeu_ps(out + i, _mm256_mul_ps(level, factor));
    }
    for (int64_t i = n & ~int64_t{7}; i < n; ++i) out[i] = levels[symbols[i]] * scale;
}

template <bool PACKED>
static int64_t sweep_simd(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    switch (lanes.count) {
        case 8: return sweep_avx2<1, PACKED>(lanes, t, out, sweeps, stop);
        case 16: return sweep_avx2<2, PACKED>(lanes, t, out, sweeps, stop);
        case 32: return sweep_avx2<4, PACKED>(lanes, t, out, sweeps, stop);
        case 64: return sweep_avx2<8, PACKED>(lanes, t, out, sweeps, stop);
        default: return sweep_portable<PACKED>(lanes, t, out, sweeps, stop);
    }
}

#endif

static int64_t sweep(Lanes &lanes, const Slots &t, uint8_t *out, int64_t sweeps, const uint8_t *stop) {
    const bool packed = t.precision == MIN_PRECISION;
#if TERSOR_HAS_AVX2
    if (lanes.simd >= 2 && lanes.count >= 16) return sweep_avx512(lanes, t, out, sweeps, stop);
    if (lanes.simd)
        return packed ? sweep_simd<true>(lanes, t, out, sweeps, stop)
                      : sweep_simd<false>(lanes, t, out, sweeps, stop);
#endif
    return packed ? sweep_portable<true>(lanes, t, out, sweeps, stop)
                  : sweep_portable<false>(lanes, t, out, sweeps, stop);
}

// Symbol by symbol, for the incomplete sweeps at both ends of a segment.
int64_t Lanes::decode_some(const Slots &slots, uint8_t *symbols, int64_t n) {
    const bool packed = slots.precision == MIN_PRECISION;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t &x = state[next];
        symbols[i] = static_cast<uint8_t>(packed ? step<true>(slots, x) : step<false>(slots, x));
        if (x < START) {
            if (end - at < 2) return TERSOR_TRUNCATED;
            x = x << 16 | load16(at);
            at += 2;
        }
        next = (next + 1) & (count - 1);
    }
    return 0;
}

int64_t Lanes::decode(const Slots &slots, uint8_t *symbols, int64_t n) {
    if (slots.single >= 0) {  // such a symbol carries no information and leaves the states as they are
        std::memset(symbols, slots.single, static_cast<size_t>(n));
        next = static_cast<int>((next + n) & (count - 1));
        return 0;
    }
    const int64_t to_align = (count - next) & (count - 1), head = to_align < n ? to_align : n;
    if (int64_t error = decode_some(slots, symbols, head)) return error;
    symbols += head;
    n -= head;
    int64_t sweeps = n / count;
    n -= sweeps * count;
    while (sweeps > 0) {
        if (!in_tail && end - at < 2 * count) {
            // The last words move to a buffer with room to read on, so that the loops need no check per word.
            const size_t left = static_cast<size_t>(end - at);
            std::memcpy(tail, at, left);
            std::memset(tail + left, 0, sizeof tail - left);
            at = tail;
            end = tail + left;
            in_tail = true;
        }
        const int64_t done = sweep(*this, slots, symbols, sweeps, in_tail ? end : end - 2 * count);
        symbols += done * count;
        sweeps -= done;
        if (at > end) return TERSOR_TRUNCATED;
    }
    return decode_some(slots, symbols, n);
}

void scale_symbols(const float *levels, int used, const uint8_t *symbols, int64_t n, float scale, float *out,
                   int simd) {
#if TERSOR_HAS_AVX2
    if (simd >= 2) return scale_avx512(levels, used, symbols, n, scale, out);
    if (simd) return scale_avx2(levels, used, symbols, n, scale, out);
#endif
    (void)used;
    (void)simd;
    for (int64_t i = 0; i < n; ++i) out[i] = levels[symbols[i]] * scale;
}

}  // namespace tersor::rans
