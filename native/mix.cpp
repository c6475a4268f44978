// Linear maps along one axis, with every sum in one fixed order: the same bits on every machine.
//
//     out[a, j, b] = (...((0 + in[a, 0, b] * basis[0, j]) + in[a, 1, b] * basis[1, j]) + ...)
//
// A product is rounded before it is added (the build forbids contraction). Terms whose `in` is zero may be left
// out: for finite numbers that changes nothing, since a sum that starts with +0 never becomes -0.
#include <algorithm>
#include <cstdint>

#include "tersor.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define TERSOR_INLINE __forceinline
#else
#define TERSOR_INLINE inline __attribute__((always_inline))
#endif

namespace {

constexpr int64_t LINES = 16;     // (a, b) pairs that share what they read of the basis
constexpr int64_t OUTPUTS = 128;  // columns of the basis at a time
constexpr int64_t TERMS = 32;     // rows of the basis at a time: with OUTPUTS, 32 KiB
constexpr int64_t SMALL = 256;    // bases of so many numbers, such as those of kernel axes, go without blocks

struct Mix {
  const double* in;
  const double* basis;
  double* out;
  int64_t terms, inner, outputs;
};

// sum[0 .. width) += values[t] * rows[t][0 .. width), t = 0, 1, ..., count - 1 in this order
TERSOR_INLINE void add_terms(double* sum, const double* const* rows, const double* values, int64_t count, int64_t width) {
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    const double *r0 = rows[t], *r1 = rows[t + 1], *r2 = rows[t + 2], *r3 = rows[t + 3];
    const double x0 = values[t], x1 = values[t + 1], x2 = values[t + 2], x3 = values[t + 3];
    for (int64_t j = 0; j < width; ++j) sum[j] = (((sum[j] + x0 * r0[j]) + x1 * r1[j]) + x2 * r2[j]) + x3 * r3[j];
  }
  for (; t < count; ++t) {
    const double* row = rows[t];
    const double x = values[t];
    for (int64_t j = 0; j < width; ++j) sum[j] += x * row[j];
  }
}

TERSOR_INLINE void mix_lines(const Mix& m, int64_t first, int64_t last) {
  alignas(32) double sums[LINES][OUTPUTS];
  const double* rows[TERMS];
  double values[TERMS];
  for (int64_t begin = first; begin < last; begin += LINES) {
    const int64_t lines = std::min(LINES, last - begin);
    for (int64_t j = 0; j < m.outputs; j += OUTPUTS) {
      const int64_t width = std::min(OUTPUTS, m.outputs - j);
      for (int64_t p = 0; p < lines; ++p) std::fill(sums[p], sums[p] + width, 0.0);
      for (int64_t i = 0; i < m.terms; i += TERMS) {
        const int64_t end = std::min(i + TERMS, m.terms);
        for (int64_t p = 0; p < lines; ++p) {
          const int64_t a = (begin + p) / m.inner, b = (begin + p) % m.inner;
          const double* x = m.in + a * m.terms * m.inner + b;
          int64_t count = 0;
          for (int64_t t = i; t < end; ++t) {
            const double value = x[t * m.inner];
            if (value == 0.0) continue;
            values[count] = value;
            rows[count++] = m.basis + t * m.outputs + j;
          }
          add_terms(sums[p], rows, values, count, width);
        }
      }
      for (int64_t p = 0; p < lines; ++p) {
        const int64_t a = (begin + p) / m.inner, b = (begin + p) % m.inner;
        double* to = m.out + (a * m.outputs + j) * m.inner + b;
        for (int64_t k = 0; k < width; ++k) to[k * m.inner] = sums[p][k];
      }
    }
  }
}

void mix_small(const Mix& m, int64_t first, int64_t last) {
  for (int64_t line = first; line < last; ++line) {
    const int64_t a = line / m.inner, b = line % m.inner;
    const double* x = m.in + a * m.terms * m.inner + b;
    double* to = m.out + a * m.outputs * m.inner + b;
    for (int64_t j = 0; j < m.outputs; ++j) {
      double sum = 0.0;
      for (int64_t i = 0; i < m.terms; ++i) sum += x[i * m.inner] * m.basis[i * m.outputs + j];
      to[j * m.inner] = sum;
    }
  }
}

void mix_portable(const Mix& m, int64_t first, int64_t last) { mix_lines(m, first, last); }

#if TERSOR_HAS_AVX2
TERSOR_AVX2 void mix_avx2(const Mix& m, int64_t first, int64_t last) { mix_lines(m, first, last); }
#endif

// Whether a * b * c is exactly `size`, all of them not negative.
bool is_product(int64_t a, int64_t b, int64_t c, int64_t size) {
  if (a < 0 || b < 0 || c < 0) return false;
  if (a == 0 || b == 0 || c == 0) return size == 0;
  return size % a == 0 && size / a % b == 0 && size / a / b == c;
}

}  // namespace

// in [outer, terms, inner] and basis [terms, outputs] -> out [outer, outputs, inner], doubles in C order, of
// which the lines first .. last - 1 are written: line l is out[l / inner, :, l % inner]. Sizes are numbers of
// elements. simd: 0 for the portable loop. Returns 0 or an error code.
TERSOR_API int64_t tersor_mix(const double* in, int64_t in_size, const double* basis, int64_t basis_size, double* out,
                              int64_t out_size, int64_t outer, int64_t terms, int64_t inner, int64_t outputs,
                              int64_t first, int64_t last, int32_t simd) {
  if (!is_product(outer, terms, inner, in_size) || !is_product(terms, outputs, 1, basis_size) ||
      !is_product(outer, outputs, inner, out_size) || first < 0 || first > last) {
    return TERSOR_BAD_ARGUMENT;
  }
  if (first == last || out_size == 0) return 0;
  if (last > out_size / outputs) return TERSOR_BAD_ARGUMENT;
  const Mix m{in, basis, out, terms, inner, outputs};
  if (basis_size <= SMALL) {
    mix_small(m, first, last);
    return 0;
  }
#if TERSOR_HAS_AVX2
  if (simd >= 1 && tersor_simd_level() >= 1) {
    mix_avx2(m, first, last);
    return 0;
  }
#else
  (void)simd;
#endif
  mix_portable(m, first, last);
  return 0;
}
