// Dependent quantization inside the error feedback: a Viterbi search whose survivors carry their own
// fed-back row. Feedback as in feedback.cpp; the states are in trellis.h.
//
// A path through the columns of a row costs, in squared sub-steps over g_i step_i^2,
//     sum_j d_j (y_j - level_j)^2 + price * bits(q_j | quantizer, class of the row)
// where y_j is what the path's own errors have made of the target. Two paths meet in every state; the
// cheaper one survives with its row. At the end of a block the search has looked `look` columns
// further, so that its last decisions know what they lead to.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "tersor.h"
#include "trellis.h"

namespace {

using tersor::Trellis;

struct Choice {  // of an integer with a given parity
  double cost;
  double error;
  int32_t q;
};

struct Decision {  // that led to a state
  double error;
  int32_t q;
  uint8_t from;
};

struct Lengths {  // bits of |q| = 0 .. reach in both quantizers
  const double* of[2];
  int64_t reach;

  double operator()(int quantizer, int64_t magnitude) const {
    if (magnitude <= reach) return of[quantizer][magnitude];
    // Beyond the table: its last entry and two bits per doubling, as an Exp-Golomb escape costs.
    return of[quantizer][reach] + 2.0 * std::log2(static_cast<double>(magnitude - reach) + 1.0);
  }
};

// The best even and the best odd integer for y, of the levels on both sides, the next one towards zero,
// and zero.
inline void choose(double y, int quantizer, double d, double price, const Lengths& bits, int64_t limit, Choice* best) {
  const double a = std::fabs(y);
  const int64_t below = std::min<int64_t>(static_cast<int64_t>(quantizer ? (a + 1.0) * 0.5 : a * 0.5), limit - 1);
  best[0].cost = best[1].cost = HUGE_VAL;
  best[0].q = best[1].q = -1;
  auto consider = [&](int64_t magnitude) {
    const double level = static_cast<double>(2 * magnitude - (quantizer && magnitude > 0 ? 1 : 0));
    const double error = a - level;
    const double cost = d * error * error + price * bits(quantizer, magnitude);
    Choice& slot = best[magnitude & 1];
    if (slot.q < 0 || cost < slot.cost) slot = Choice{cost, error, static_cast<int32_t>(magnitude)};
  };
  consider(below);
  consider(below + 1);
  if (below >= 1) consider(below - 1);
  if (below >= 2) consider(0);
  if (y < 0) {
    for (Choice* choice : {best, best + 1}) {
      choice->q = -choice->q;
      choice->error = -choice->error;
    }
  }
}

struct Survivors {
  std::vector<double> rest;  // [states, width]: what is left of the row, in sub-steps
  double cost[8];
  bool alive[8];
  explicit Survivors(size_t size) : rest(size) {}
};

}  // namespace

// target     [rows, stride] columns first .. first + width + look are read; row feedback is added in place
//            to those before first + width
// carried    [rows, stride] corrections from earlier blocks of columns
// upper      [width + look, width + look] the diagonal block of U, or null: no column feedback
// run        columns that see each other come in runs of so many, the first at `first`: the rest of U is zero
// row_weight [rows, rows]   V_ir / V_ii at [r, i] for i < r, or null: no row feedback
// step       [rows] sub-steps; price [rows]: lambda * mu / (g_i step_i^2), column [width + look]: d_j
// bits       [classes, 2, reach + 1] code lengths of |q| by class of the row and quantizer
// state      [rows] in: the state in which each row continues; out: after the block
// codes      [rows, stride] int32, out; scaled [rows, width] out: e_j = (x_j - step * level) / U_jj
// quantised  [rows, stride] out: step * level
// Returns 0 or an error code.
TERSOR_API int64_t tersor_trellis_block(double* target, const double* carried, int64_t rows, int64_t stride, int64_t first,
                                        int64_t width, int64_t look, const double* upper, int64_t run, const double* row_weight,
                                        const double* step, const double* price, const double* column,
                                        const double* bits, const int32_t* row_class, int64_t classes, int64_t reach,
                                        int64_t limit, int64_t states, uint8_t* state, int32_t* codes, double* scaled,
                                        double* quantised) try {
  if (rows < 0 || width <= 0 || look < 0 || first < 0 || first + width + look > stride || reach < 1 || limit < 1 ||
      run < 1 || limit > (int64_t{1} << 30) || classes < 1 || states == 0 || !tersor::valid_trellis(states)) {
    return TERSOR_BAD_ARGUMENT;
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (row_class[r] < 0 || row_class[r] >= classes || state[r] >= states) return TERSOR_BAD_ARGUMENT;
  }
  const Trellis trellis = tersor::trellis_of(states);
  const int count = trellis.states;
  const int64_t span = width + look;
  const double largest = 2.0 * static_cast<double>(limit);
  Survivors now(static_cast<size_t>(count * span)), then(static_cast<size_t>(count * span));
  std::vector<Decision> decisions(static_cast<size_t>(count * span));
  std::vector<double> t(static_cast<size_t>(span)), whole(static_cast<size_t>(span));  // whole: in sub-steps
  // Errors of the rows so far, [rows, span], for the feedback from row to row; those of the last
  // `look` columns are provisional.
  std::vector<double> errors(row_weight ? static_cast<size_t>(rows * span) : 0);
  for (int64_t r = 0; r < rows; ++r) {
    double* own = target + r * stride + first;
    std::copy(own, own + span, t.begin());
    if (row_weight) {
      const double* weights = row_weight + r * rows;
      for (int64_t i = 0; i < r; ++i) {
        const double w = weights[i];
        if (w == 0.0) continue;
        const double* e = errors.data() + i * span;
        double* x = t.data();
        for (int64_t j = 0; j < span; ++j) x[j] -= w * e[j];
      }
      std::copy(t.begin(), t.begin() + width, own);
    }
    const double s = step[r];
    const double inverse = s > 0.0 ? 1.0 / s : 0.0;
    const double* table = bits + int64_t{row_class[r]} * 2 * (reach + 1);
    const Lengths lengths{{table, table + reach + 1}, reach};
    std::fill(now.alive, now.alive + count, false);
    now.alive[state[r]] = true;
    now.cost[state[r]] = 0.0;
    for (int64_t j = 0; j < span; ++j) {
      whole[static_cast<size_t>(j)] = (t[static_cast<size_t>(j)] + carried[r * stride + first + j]) * inverse;
    }

    for (int64_t j = 0; j < span; ++j) {
      Decision* reached = decisions.data() + j * count;
      std::fill(then.alive, then.alive + count, false);
      // Where no earlier error has come in, all survivors have the same value: one choice for each quantizer.
      const bool fresh = !upper || j % run == 0;
      Choice choices[2][2];
      bool chosen[2] = {false, false};
      for (int a = 0; a < count; ++a) {
        if (!now.alive[a]) continue;
        const int quantizer = trellis.quantizer[a];
        Choice* best = choices[quantizer];
        if (!fresh || !chosen[quantizer]) {
          double y = fresh ? whole[static_cast<size_t>(j)] : now.rest[static_cast<size_t>(a * span + j)];
          y = y < largest ? y : largest;  // and not a number
          y = y > -largest ? y : -largest;
          choose(y, quantizer, column[j], price[r], lengths, limit, best);
          chosen[quantizer] = true;
        }
        for (int parity = 0; parity < 2; ++parity) {
          const int b = trellis.next[a][parity];
          const double cost = now.cost[a] + best[parity].cost;
          if (then.alive[b] && !(cost < then.cost[b])) continue;
          then.alive[b] = true;
          then.cost[b] = cost;
          reached[b] = Decision{best[parity].error, best[parity].q, static_cast<uint8_t>(a)};
        }
      }
      if (upper) {
        const double* u = upper + j * span;
        const double scale = 1.0 / u[j];
        const int64_t end = std::min(span, (j / run + 1) * run);
        for (int b = 0; b < count; ++b) {
          if (!then.alive[b]) continue;
          const double e = reached[b].error * scale;
          const double* in = fresh ? whole.data() : now.rest.data() + reached[b].from * span;
          double* out = then.rest.data() + b * span;
          for (int64_t k = j + 1; k < end; ++k) out[k] = in[k] - e * u[k];
        }
        std::swap(now, then);
      } else {
        std::swap(now.cost, then.cost);
        std::swap(now.alive, then.alive);
      }
    }

    int at = -1;
    for (int a = 0; a < count; ++a) {
      if (now.alive[a] && (at < 0 || now.cost[a] < now.cost[at])) at = a;
    }
    double* rest = errors.data() + r * span;
    for (int64_t j = span - 1; j >= 0; --j) {
      if (j == width - 1) state[r] = static_cast<uint8_t>(at);
      const Decision& decision = decisions[static_cast<size_t>(j * count + at)];
      at = decision.from;
      const double level = s * static_cast<double>(tersor::trellis_level(trellis.quantizer[at], decision.q));
      if (row_weight) rest[j] = t[static_cast<size_t>(j)] - level;
      if (j >= width) continue;
      codes[r * stride + first + j] = decision.q;
      quantised[r * stride + first + j] = level;
      if (upper) scaled[r * width + j] = s * decision.error / upper[j * span + j];
    }
  }
  return 0;
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}
