// Dependent quantization: weights from integers. The encoder's search: trellis_search.cpp.
#include "trellis.h"

#include <cstddef>
#include <cstdint>

#include "tersor.h"

// q [rows, columns] -> out [rows, columns]: level, rounded to binary32, times step [rows], rounded.
// Rows do not depend on each other. Returns 0 or an error code.
TERSOR_API int64_t tersor_trellis_restore(const int32_t* q, int64_t rows, int64_t columns, int64_t states,
                                          const float* step, float* out) {
  using namespace tersor;
  if (rows < 0 || columns < 0 || states == 0 || !valid_trellis(states)) return TERSOR_BAD_ARGUMENT;
  const Trellis trellis = trellis_of(states);
  constexpr int kLanes = 8;  // rows at a time: one row alone is a chain of dependent loads
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes) {
    int state[kLanes] = {0};
    for (int64_t c = 0; c < columns; ++c) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t at = (r + lane) * columns + c;
        const int32_t value = q[at];
        out[at] = static_cast<float>(trellis_level(trellis.quantizer[state[lane]], value)) * step[r + lane];
        state[lane] = trellis.next[state[lane]][value & 1];
      }
    }
  }
  for (; r < rows; ++r) {
    int state = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const int32_t value = q[r * columns + c];
      out[r * columns + c] = static_cast<float>(trellis_level(trellis.quantizer[state], value)) * step[r];
      state = trellis.next[state][value & 1];
    }
  }
  return 0;
}
