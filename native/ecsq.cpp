// One assignment of entropy-constrained scalar quantization: each weight takes the centre with the least
// h (w - c)^2 + price * length, and the sums that the update of centres and lengths needs are made on the way.
//
// Every centre is tried for every weight: eight weights at a time in SIMD lanes, without a branch, which is
// faster than any search for the few centres (32 to 256) that a codebook has.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "tersor.h"

#if TERSOR_HAS_AVX2
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = 8;

// Index of the cheapest centre of kLanes weights; ties go down.
using Cheapest = void (*)(const double*, const double*, const double*, const double*, int64_t, int32_t*);

void cheapest_portable(const double* x, const double* h, const double* values, const double* rates, int64_t k,
                       int32_t* found) {
    for (int64_t b = 0; b < kLanes; ++b) {
        double best = 0.0;
        for (int64_t j = 0; j < k; ++j) {
            const double d = x[b] - values[j];
            const double cost = h[b] * (d * d) + rates[j];
            if (j == 0 || cost < best) {
                best = cost;
                found[b] = static_cast<int32_t>(j);
            }
        }
    }
}

#if TERSOR_HAS_AVX2
// The same arithmetic (no fused multiply-add), so the same result. Indexes are doubles until the end.
TERSOR_AVX2 void cheapest_avx2(const double* x, const double* h, const double* values, const double* rates,
                               int64_t k, int32_t* found) {
    const __m256d x0 = _mm256_loadu_pd(x), x1 = _mm256_loadu_pd(x + 4);
    const __m256d h0 = _mm256_loadu_pd(h), h1 = _mm256_loadu_pd(h + 4);
    const __m256d one = _mm256_set1_pd(1.0);
    __m256d at0 = _mm256_setzero_pd(), at1 = at0, number = at0;
    __m256d best0 = _mm256_set1_pd(INFINITY), best1 = best0;
    for (int64_t j = 0; j < k; ++j) {
        const __m256d value = _mm256_broadcast_sd(values + j), rate = _mm256_broadcast_sd(rates + j);
        const __m256d d0 = _mm256_sub_pd(x0, value), d1 = _mm256_sub_pd(x1, value);
        const __m256d cost0 = _mm256_add_pd(_mm256_mul_pd(h0, _mm256_mul_pd(d0, d0)), rate);
        const __m256d cost1 = _mm256_add_pd(_mm256_mul_pd(h1, _mm256_mul_pd(d1, d1)), rate);
        at0 = _mm256_blendv_pd(at0, number, _mm256_cmp_pd(cost0, best0, _CMP_LT_OQ));
        at1 = _mm256_blendv_pd(at1, number, _mm256_cmp_pd(cost1, best1, _CMP_LT_OQ));
        best0 = _mm256_min_pd(cost0, best0);
        best1 = _mm256_min_pd(cost1, best1);
        number = _mm256_add_pd(number, one);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(found), _mm256_cvtpd_epi32(at0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(found + 4), _mm256_cvtpd_epi32(at1));
}
#endif

template <typename T>
int64_t assign(const T* w, const T* h, int64_t n, const double* values, const double* rates, int64_t k,
               int32_t simd, int32_t* index, int64_t* counts, double* mass, double* first,
               double* distortion) {
    if (n < 0 || k < 1 || k > INT32_MAX) return TERSOR_BAD_ARGUMENT;
    for (int64_t j = 0; j < k; ++j) {
        if (!std::isfinite(values[j]) || !std::isfinite(rates[j])) return TERSOR_BAD_ARGUMENT;
    }
    Cheapest cheapest = cheapest_portable;
#if TERSOR_HAS_AVX2
    if (simd >= 1 && tersor_simd_level() >= 1) cheapest = cheapest_avx2;
#else
    (void)simd;
#endif
    std::fill(counts, counts + k, int64_t{0});
    std::fill(mass, mass + k, 0.0);
    std::fill(first, first + k, 0.0);
    double sum = 0.0;
    for (int64_t start = 0; start < n; start += kLanes) {
        const int64_t used = std::min(kLanes, n - start);
        double x[kLanes] = {};
        double weight[kLanes] = {};
        int32_t found[kLanes];
        for (int64_t b = 0; b < used; ++b) {
            x[b] = static_cast<double>(w[start + b]);
            weight[b] = h ? static_cast<double>(h[start + b]) : 1.0;
        }
        cheapest(x, weight, values, rates, k, found);
        for (int64_t b = 0; b < used; ++b) {
            const int32_t j = found[b];
            const double d = x[b] - values[j];
            index[start + b] = j;
            counts[j] += 1;
            mass[j] += weight[b];
            first[j] += weight[b] * d;
            sum += weight[b] * (d * d);
        }
    }
    *distortion = sum;
    return 0;
}

}  // namespace

// w [n], h [n] >= 0 or null for 1; values [k]; rates [k] = price * bits; simd: 0 for the portable loop.
// Out: index [n]; counts, mass = sum h, first = sum h (w - value) of the members [k]; distortion =
// sum h (w - value)^2. Returns 0 or an error code.
TERSOR_API int64_t tersor_ecsq_assign_f32(const float* w, const float* h, int64_t n, const double* values,
                                          const double* rates, int64_t k, int32_t simd, int32_t* index,
                                          int64_t* counts, double* mass, double* first, double* distortion) {
    return assign(w, h, n, values, rates, k, simd, index, counts, mass, first, distortion);
}

TERSOR_API int64_t tersor_ecsq_assign_f64(const double* w, const double* h, int64_t n, const double* values,
                                          const double* rates, int64_t k, int32_t simd, int32_t* index,
                                          int64_t* counts, double* mass, double* first, double* distortion) {
    return assign(w, h, n, values, rates, k, simd, index, counts, mass, first, distortion);
}
