// Scalar quantization of one block of columns with error feedback in both directions, and
// rate-distortion-optimised rounding. The caller (tools/feedback.py) does the tails with BLAS.
//
// Distortion of a layer: tr(G E A E^T), E = target - quantised. With A^-1 = U^T U (U upper
// triangular) the error of column j is passed on to the columns k > j of the same row by
// U_jk / U_jj (OBS / GPTQ); with G^-1 = V^T V the error of row i to the rows r > i of the same
// column by V_ir / V_ii. Entry (i, j) then costs g_i d_j error^2, d_j = 1/U_jj^2, g_i = 1/V_ii^2.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "tersor.h"

namespace {

struct Quantizer {
  const double* bits;  // code length of -reach .. reach
  int64_t reach;
  double shift_one;    // reconstruction: step * (|q| - shift), shift for |q| = 1 and for |q| > 1
  double shift_more;

  double level(int64_t q) const {
    if (q == 0) return 0.0;
    const double magnitude = static_cast<double>(q < 0 ? -q : q);
    const double value = magnitude - (magnitude > 1.5 ? shift_more : shift_one);
    return q < 0 ? -value : value;
  }
  double length(int64_t q) const {
    const int64_t magnitude = q < 0 ? -q : q;
    if (magnitude <= reach) return bits[q + reach];
    // Beyond the table: its last entry and two bits per doubling, as an Exp-Golomb escape costs.
    return bits[(q < 0 ? 0 : 2 * reach)] + 2.0 * std::log2(static_cast<double>(magnitude - reach) + 1.0);
  }
  // argmin over the nearest level, its neighbour towards zero, and zero, of (x - level)^2 + price * bits
  int64_t choose(double x, double price, int64_t limit) const {
    double nearest = std::nearbyint(x + (x > 0 ? shift_more : -shift_more));
    if (!(std::fabs(nearest) < static_cast<double>(limit))) nearest = nearest > 0 ? static_cast<double>(limit) : -static_cast<double>(limit);
    const int64_t q0 = static_cast<int64_t>(nearest);
    if (q0 == 0 || price <= 0.0) return q0;
    const int64_t towards = q0 > 0 ? -1 : 1;
    int64_t best = q0;
    double best_cost = (x - level(q0)) * (x - level(q0)) + price * length(q0);
    for (int64_t candidate : {q0 + towards, int64_t{0}}) {
      const double error = x - level(candidate);
      const double cost = error * error + price * length(candidate);
      if (cost < best_cost) {
        best_cost = cost;
        best = candidate;
      }
    }
    return best;
  }
};

}  // namespace

// target     [rows, stride] columns first..first+width are read; row feedback is added in place
// carried    [rows, stride] corrections from earlier blocks of columns (may be null)
// upper      [width, width] the diagonal block of U, or null: no column feedback
// run        columns that see each other come in runs of so many, the first at `first`: the rest of U is zero
// row_weight [rows, rows]   V_ir / V_ii at [r, i] for i < r, or null: no row feedback
// step       [rows]; price [rows]: lambda * mu / (g_i step_i^2), column [width]: d_j
// codes      [rows, stride] int32, out; scaled [rows, width] out: e_j = (x_j - level) / U_jj
// quantised  [rows, stride] out: step * level
// Returns 0 or an error code.
TERSOR_API int64_t tersor_feedback_block(double* target, const double* carried, int64_t rows, int64_t stride,
                              int64_t first, int64_t width, const double* upper, int64_t run,
                              const double* row_weight, const double* step, const double* price,
                              const double* column, const double* bits, const int32_t* row_class,
                              int64_t classes, int64_t reach,
                              double shift_one, double shift_more, int64_t limit, int32_t* codes,
                              double* scaled, double* quantised) try {
  if (rows < 0 || width <= 0 || first < 0 || first + width > stride || reach < 1 || limit < 1 || classes < 1 || run < 1) return TERSOR_BAD_ARGUMENT;
  for (int64_t r = 0; r < rows; ++r) {
    if (row_class[r] < 0 || row_class[r] >= classes) return TERSOR_BAD_ARGUMENT;
  }
  std::vector<double> x(static_cast<size_t>(width));
  // Errors of the rows so far, [rows, width], for the feedback from row to row.
  std::vector<double> errors(row_weight ? static_cast<size_t>(rows * width) : 0);
  for (int64_t r = 0; r < rows; ++r) {
    double* t = target + r * stride + first;
    if (row_weight) {
      const double* weights = row_weight + r * rows;
      for (int64_t i = 0; i < r; ++i) {
        const double w = weights[i];
        if (w == 0.0) continue;
        const double* e = errors.data() + i * width;
        for (int64_t j = 0; j < width; ++j) t[j] -= w * e[j];
      }
    }
    for (int64_t j = 0; j < width; ++j) x[static_cast<size_t>(j)] = t[j] + (carried ? carried[r * stride + first + j] : 0.0);
    Quantizer quantizer{bits + row_class[r] * (2 * reach + 1), reach, shift_one, shift_more};
    const double s = step[r];
    const double inverse = s > 0.0 ? 1.0 / s : 0.0;
    for (int64_t j = 0; j < width; ++j) {
      const double value = x[static_cast<size_t>(j)];
      const int64_t q = quantizer.choose(value * inverse, price[r] / column[j], limit);
      const double level = s * quantizer.level(q);
      codes[r * stride + first + j] = static_cast<int32_t>(q);
      quantised[r * stride + first + j] = level;
      if (upper) {
        const double* u = upper + j * width;
        const double e = (value - level) / u[j];
        scaled[r * width + j] = e;
        double* rest = x.data();
        const int64_t end = std::min(width, (j / run + 1) * run);
        for (int64_t k = j + 1; k < end; ++k) rest[k] -= e * u[k];
      }
    }
    if (row_weight) {
      double* e = errors.data() + r * width;
      for (int64_t j = 0; j < width; ++j) e[j] = t[j] - quantised[r * stride + first + j];
    }
  }
  return 0;
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}
