// Mixing of adaptive probabilities in the logistic domain (after Mahoney's PAQ): what the adaptive coders of
// weights (context.cpp) and of kernels (kernels_index.cpp) share. Integers only: the same bits on every machine.
// docs/format.md, "Adaptive context coder".
#ifndef TERSOR_MIXING_H
#define TERSOR_MIXING_H

#include <algorithm>
#include <cstdint>

#include "binary.h"

namespace tersor {

// ---- The logistic function in integers -----------------------------------------------------------
// Logits x are in 1/256, clipped to +-2047; probabilities of a 1 in 1/65536.
constexpr int kAnchors[33] = {22,    36,    60,    98,    162,   267,   439,   720,   1179,  1921,  3108,
                              4971,  7812,  11955, 17625, 24743, 32768, 40793, 47911, 53581, 57724, 60565,
                              62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500, 65514};

struct Logistic {
  int32_t squash[4096];   // at x + 2048
  int16_t stretch[4096];  // at probability >> 4

  Logistic() {
    for (int i = 0; i < 4096; ++i) {
      const int w = i & 127;
      squash[i] = (kAnchors[i >> 7] * (128 - w) + kAnchors[(i >> 7) + 1] * w + 64) >> 7;
    }
    int x = -2047;
    for (int p = 0; p < 4096; ++p) {
      while (x < 2047 && squash[x + 2048] < p * 16 + 8) ++x;
      stretch[p] = static_cast<int16_t>(x);
    }
  }
};

inline const Logistic kLogistic;

// 65536 / (n + 2), the step of the n-th update of a probability or a mean.
struct Reciprocals {
  int32_t of[1024];
  Reciprocals() {
    for (int n = 0; n < 1024; ++n) of[n] = 65536 / (n + 2);
  }
};

inline const Reciprocals kReciprocal;

inline int clip_logit(int64_t x) { return static_cast<int>(std::min<int64_t>(2047, std::max<int64_t>(-2047, x))); }

// ---- Mixing --------------------------------------------------------------------------------------
struct Slot {  // probability of a 1 in 22 bits, count in 10
  uint32_t state = (uint32_t{1} << 31);
  int32_t p22() const { return static_cast<int32_t>(state >> 10); }
  int stretched() const { return kLogistic.stretch[state >> 20]; }
  void update(int bit) {
    const uint32_t n = state & 1023;
    const int64_t target = bit ? (1 << 22) - 1 : 0;
    const int64_t p = p22() + (((target - p22()) * kReciprocal.of[n]) >> 16);
    state = (static_cast<uint32_t>(p) << 10) | (n < 255 ? n + 1 : n);
  }
};

constexpr int kWeightLimit = 1 << 20;  // 16.0

template <int N>
struct Mixer {
  int32_t weight[N];
  Mixer() { std::fill(weight, weight + N, static_cast<int32_t>(131072 / N)); }  // 2 / N
  int logit(const int* inputs) const {
    int64_t sum = 0;
    for (int i = 0; i < N; ++i) sum += int64_t{weight[i]} * inputs[i];
    return clip_logit(sum >> 16);
  }
  void update(const int* inputs, int x, int bit) {
    const int error = (bit ? 65535 : 0) - kLogistic.squash[x + 2048];
    for (int i = 0; i < N; ++i) {
      const int32_t w = weight[i] + ((inputs[i] * error + (1 << 13)) >> 15);
      weight[i] = std::min(kWeightLimit, std::max(-kWeightLimit, w));
    }
  }
};

inline uint32_t probability(int x) {
  const int p = kLogistic.squash[x + 2048];
  return static_cast<uint32_t>(std::min(65536 - static_cast<int>(kProbabilityFloor), std::max(static_cast<int>(kProbabilityFloor), p)));
}

}  // namespace tersor

#endif
