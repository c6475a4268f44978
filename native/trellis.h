// Dependent quantization's states: docs/format.md, "Trellis". One place for the encoder, the
// reconstruction and the context coder; src/tersor/synthesis/trellis.py has the same for Python.
//
// A state uses one of two quantizers. In sub-steps, quantizer 0 has the levels 2 q, quantizer 1 the
// levels sign(q) (2 |q| - 1). The parity of q leads to the next state. A row starts in state 0.
#pragma once
#include <cstdint>

namespace tersor {

// The tables of VVC (4 states) and of its successor's and NNC's 8 states.
constexpr uint8_t kTrellisNext4[4][2] = {{0, 2}, {2, 0}, {1, 3}, {3, 1}};
constexpr uint8_t kTrellisNext8[8][2] = {{0, 2}, {5, 7}, {1, 3}, {6, 4}, {2, 0}, {4, 6}, {3, 1}, {7, 5}};
constexpr uint8_t kTrellisQuantizer4[4] = {0, 0, 1, 1};
constexpr uint8_t kTrellisQuantizer8[8] = {0, 1, 0, 1, 0, 1, 0, 1};

struct Trellis {
  int states;  // 4 or 8
  const uint8_t (*next)[2];
  const uint8_t* quantizer;
};

inline bool valid_trellis(int64_t states) { return states == 0 || states == 4 || states == 8; }

inline Trellis trellis_of(int64_t states) {
  return states == 4 ? Trellis{4, kTrellisNext4, kTrellisQuantizer4} : Trellis{8, kTrellisNext8, kTrellisQuantizer8};
}

// The level in sub-steps; exact for every int32.
inline int64_t trellis_level(int quantizer, int64_t q) {
  const int64_t sign = (q > 0) - (q < 0);
  return 2 * q - (quantizer ? sign : 0);
}

}  // namespace tersor
