// Choosing kernels from a codebook, one input channel after the other, with feedback from row to row.
//
// The caller (tools/kernel_choice.py) whitens: in its coordinates the error of a kernel costs
// weight_i |error|^2, weight_i the cost of row i. A kernel is gain * codeword, the gain an integer. With
// G^-1 = V^T V the error of row i is passed on to the rows r > i by V_ir / V_ii, as in feedback.cpp.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "tersor.h"

namespace {

// out[j] += factor * row[j], each element for itself: the same bits with any width of vectors.
inline void add(double* out, const double* row, double factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) out[j] += factor * row[j];
}

#if TERSOR_HAS_AVX2
TERSOR_AVX2 void add_avx2(double* out, const double* row, double factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) out[j] += factor * row[j];
}
#endif

using Add = void (*)(double*, const double*, double, int64_t);

Add fastest() {
#if TERSOR_HAS_AVX2
  if (tersor_simd_level() >= 1) return add_avx2;
#endif
  return add;
}

struct Codebook {
  int64_t size, taps;
  const double* transposed;  // [taps, size]
  std::vector<double> energy, inverse;

  Codebook(const double* codewords, int64_t k, int64_t t)
      : size(k), taps(t), transposed(codewords), energy(static_cast<size_t>(k), 0.0), inverse(static_cast<size_t>(k)) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const double* row = transposed + tap * size;
      for (int64_t j = 0; j < size; ++j) energy[static_cast<size_t>(j)] += row[j] * row[j];
    }
    for (size_t j = 0; j < static_cast<size_t>(k); ++j) inverse[j] = energy[j] > 0.0 ? 1.0 / energy[j] : 0.0;
  }
};

struct Choice {
  double cost;
  int64_t index;
  int64_t gain;
};

Choice choose_plain(const Codebook& book, const double* dot, double price, const double* bits) {
  Choice best{std::numeric_limits<double>::infinity(), 0, 1};
  for (int64_t j = 0; j < book.size; ++j) {
    const double cost = book.energy[static_cast<size_t>(j)] - 2.0 * dot[j] + price * bits[j];
    if (cost < best.cost) best = {cost, j, 1};
  }
  return best;
}

// argmin over codewords j and gains q of q^2 |c_j|^2 - 2 q <x, c_j> + price * (bits of j and q)
Choice choose(const Codebook& book, const double* dot, double price, const double* bits, const double* gain_bits,
              int64_t low, int64_t high, double least_gain_bits) {
  Choice best{std::numeric_limits<double>::infinity(), 0, low};
  if (low <= 0 && high >= 0 && std::isfinite(gain_bits[-low])) best = {price * gain_bits[-low], 0, 0};  // no index is coded
  for (int64_t j = 0; j < book.size; ++j) {
    const double energy = book.energy[static_cast<size_t>(j)], product = dot[j];
    const double inverse = book.inverse[static_cast<size_t>(j)];
    // No gain, be it a fraction, does better than this.
    if (!(price * (bits[j] + least_gain_bits) - product * product * inverse < best.cost) || !(energy > 0.0)) continue;
    const double wanted = std::min(std::max(std::nearbyint(product * inverse), static_cast<double>(low)),
                                   static_cast<double>(high));
    int64_t nearest = static_cast<int64_t>(wanted);
    if (nearest == 0) nearest = product < 0.0 ? std::max<int64_t>(low, -1) : std::min<int64_t>(high, 1);  // 0 is done
    const int64_t other = nearest > 1 ? nearest - 1 : (nearest < -1 ? nearest + 1 : nearest);
    for (int64_t q = nearest;; q = other) {
      const double gain = static_cast<double>(q);
      const double cost = gain * gain * energy - 2.0 * gain * product + price * (bits[j] + gain_bits[q - low]);
      if (q != 0 && cost < best.cost) best = {cost, j, q};
      if (q == other) break;
    }
  }
  return best;
}

}  // namespace

// targets     [rows, taps] whitened kernels of one input channel, with what earlier channels passed on. Becomes
//             the rows' errors, target - gain * codeword, without what rows pass to each other
// row_weight  [rows, rows] V_ir / V_ii at [i, r] for i < r, in units of the rows, or null
// codewords   [taps, size] whitened; bits [size], gain_bits [high - low + 1]: code lengths
// price       [rows]: what a bit costs
// low, high   range of gains: 1, 1 without gains; -1, 1 with infinite gain_bits of 0 for signs
// index, gain [rows], out. With gain 0 the index is 0.
// Returns 0 or an error code.
TERSOR_API int64_t tersor_kernels_choose(double* targets, int64_t rows, int64_t taps, const double* row_weight,
                                         const double* codewords, int64_t size, const double* price,
                                         const double* bits, const double* gain_bits, int64_t low, int64_t high, int32_t* index,
                                         int32_t* gain) try {
  if (rows < 0 || taps < 1 || size < 1 || low > high) return TERSOR_BAD_ARGUMENT;
  const Codebook book(codewords, size, taps);
  const Add add_to = fastest();
  const double least = low > high ? 0.0 : *std::min_element(gain_bits, gain_bits + (high - low + 1));
  const size_t height = static_cast<size_t>(rows);
  std::vector<double> dot(static_cast<size_t>(size)), x(static_cast<size_t>(taps));
  // What the rows so far pass on to each row, [taps, rows].
  std::vector<double> passed(row_weight ? static_cast<size_t>(taps) * height : 0, 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    double* target = targets + r * taps;
    std::fill(dot.begin(), dot.end(), 0.0);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const size_t t = static_cast<size_t>(tap);
      x[t] = target[tap] + (row_weight ? passed[t * height + static_cast<size_t>(r)] : 0.0);
      add_to(dot.data(), codewords + tap * size, x[t], size);
    }
    const Choice best = low == 1 && high == 1 ? choose_plain(book, dot.data(), price[r], bits)
                                              : choose(book, dot.data(), price[r], bits, gain_bits, low, high, least);
    index[r] = static_cast<int32_t>(best.index);
    gain[r] = static_cast<int32_t>(best.gain);
    const double factor = static_cast<double>(best.gain);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const double level = factor * codewords[tap * size + best.index];
      const size_t t = static_cast<size_t>(tap);
      if (row_weight && r + 1 < rows) {
        add_to(passed.data() + t * height + static_cast<size_t>(r + 1), row_weight + r * rows + r + 1, level - x[t],
               rows - r - 1);
      }
      target[tap] -= level;
    }
  }
  return 0;
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}
