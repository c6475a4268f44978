// What the adaptive context coder knows before the first bit and what it learns: docs/format.md, "Adaptive context
// coder". The coder itself is in context.cpp.
#ifndef TERSOR_CONTEXT_TABLES_H
#define TERSOR_CONTEXT_TABLES_H

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "binary.h"
#include "mixing.h"
#include "trellis.h"

namespace tersor::context {

constexpr int kUnary = 18;  // magnitudes above it continue as Exp-Golomb
constexpr int kBins = kUnary + 1;
constexpr int kSigns = kBins;  // the sign decision's place after the bins
constexpr int kOffset[4] = {0, 1024, 1792, 2048};
constexpr int kMagnitudeSlots = 2560;
constexpr int kSignOffset[4] = {0, 64, 1088, 2112};
constexpr int kSignSlots = 2624;
constexpr int kPlaces = 12;
constexpr int kShape = 7;  // rows, columns, taps, width, bypass, trellis, kind

// ---- Constants -------------------------------------------------------------------------------------
struct Coarse {  // 16 levels of a mean, from its value in 1/16: fine near zero, coarse above
    uint8_t of[1024];
    Coarse() {
        constexpr int bounds[15] = {2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200};
        for (int v = 0; v < 1024; ++v) {
            int level = 0;
            while (level < 15 && v >= bounds[level]) ++level;
            of[v] = static_cast<uint8_t>(level);
        }
    }
};

struct Fine {  // 32 levels of a number in 1/128, four to an octave, and what a division by each takes
    uint8_t of[2048];
    int32_t inverse[32];
    static int bound(int level) {
        constexpr int quarter[4] = {512, 609, 724, 861};
        return quarter[level & 3] << (level >> 2);
    }
    Fine() {
        for (int v = 0; v < 2048; ++v) {
            int level = 0;
            while (level < 31 && v * 128 >= bound(level + 1)) ++level;
            of[v] = static_cast<uint8_t>(level);
        }
        for (int level = 0; level < 32; ++level) inverse[level] = 38480000 / bound(level);
    }
};

template <int SIZE>
struct Quotients {  // numerator / (i + added), plus a constant
    int32_t of[SIZE];
    Quotients(int numerator, int added, int constant) {
        for (int i = 0; i < SIZE; ++i) of[i] = constant + numerator / std::max(1, i + added);
    }
};

inline const Coarse kCoarse;
inline const Fine kFine;
inline const Quotients<64> kBlock(65536, 6, 0);       // by the number of taps seen
inline const Quotients<1359> kTaste(87381, 0, 0);     // by the neighbours' energy
inline const Quotients<4096> kSpread(335544, 0, 0);   // by the features' energy
inline const Quotients<1024> kRate(64000, 16, 1000);  // by the number of decisions / 64

inline int level(int32_t mean) { return kCoarse.of[std::min(mean >> 7, 1023)]; }

inline int steps(int half_steps) { return std::min((std::abs(half_steps) + 1) >> 1, 3); }

inline int sign_of(int value) { return value > 0 ? 1 : value < 0 ? 2 : 0; }

inline void adapt(int32_t &mean, int32_t size, int64_t count, int64_t limit) {
    mean += ((size - mean) * kReciprocal.of[std::min(count, limit)]) >> 16;
}

// Where in its kernel a tap lies: first, second, inner or last of its row; first, second or later row.
inline int place_of(int64_t x, int64_t y, int64_t width) {
    return 4 * static_cast<int>(std::min<int64_t>(y, 2)) + (x == 0 ? 0 : x == width - 1 ? 3 : x == 1 ? 1 : 2);
}

// Weights that learn are kept modulo 2^32: what no data of use ever reach needs no bounds, only a meaning.
inline int32_t times(uint32_t weight, int32_t value) { return static_cast<int32_t>(weight * static_cast<uint32_t>(value)); }

// ---- What adapts -----------------------------------------------------------------------------------
struct Set {  // weights of a mixer, 2^28 = 1
    alignas(16) uint32_t weight[4];
    Set() { std::fill(weight, weight + 4, 115u << 18); }
};

struct RatedSet : Set {  // with the rate of learning, which falls with the number of decisions
    int32_t count = 0;
    int32_t rate() {
        count += count < 65535;
        return kRate.of[count >> 6];
    }
};

// The first guess of how a tap follows from those to its left (1, 2 away), above (0, -1, +1), and two above.
constexpr uint32_t kFirstTaste[kPlaces][6] = {
    {0, 0, 0, 0, 0, 0},
    {29819, 0, 0, 0, 0, 0},
    {29819, 0, 0, 0, 0, 0},
    {29819, 0, 0, 0, 0, 0},
    {0, 0, 26214, 0, 3277, 0},
    {24904, 0, 18350, 0u - 8520, 3932, 0},
    {24904, 0u - 1311, 19661, 0u - 6554, 1966, 0},
    {23593, 0u - 1311, 23265, 0u - 4588, 0, 0},
    {0, 0, 28180, 0, 1311, 0u - 6554},
    {28180, 0, 19005, 0u - 3932, 3277, 0u - 5898},
    {27525, 0, 21627, 0u - 5243, 1966, 0u - 4588},
    {26214, 1311, 24248, 0u - 6554, 0, 0u - 3277},
};

struct Tables {
    Slot magnitude[5 * 4 * kMagnitudeSlots];  // [bin / 4][context][bin % 4]: a weight's bins lie side by side
    Slot sign[kSignSlots];
    RatedSet by_bin[kBins + 1];  // the last of each is for signs
    Set by_place[kBins + 1][32];
    Set by_level[kBins + 1][16];
    uint32_t taste[kPlaces][6];  // of the neighbours in the prediction, 65536 = 1
    uint32_t spread[4] = {40632, 13107, 22938, 11141};  // of the features in its expected error
    AdaptiveBit escape_prefix[31];
    Tables() { std::memcpy(taste, kFirstTaste, sizeof taste); }
};

// A matrix's surroundings: three rows of values in half steps, and means in 1/2048 of magnitudes and of errors.
struct Surroundings {
    std::vector<int32_t> column_error, channel_error, channel_size;
    int32_t row_error = 1024, row_size = 1024;
    Surroundings(int64_t columns, int64_t channels)
        : column_error(static_cast<size_t>(columns), 1024),
          channel_error(static_cast<size_t>(channels), 1024),
          channel_size(static_cast<size_t>(channels), 1024),
          stride_(static_cast<size_t>(columns) + 3),
          values_(3 * stride_) {}
    // With room for two columns before the first and one after the last; they stay zero. 16 bits: stores to
    // bytes may alias anything, and make compilers reload what they have in registers.
    int16_t *row(int64_t r) { return values_.data() + static_cast<size_t>(r % 3) * stride_ + 2; }

  private:
    size_t stride_;
    std::vector<int16_t> values_;
};

// The outputs of a layer are often the inputs of the next: how its rows' errors compared to the expected, 1024 =
// as expected.
struct History {
    std::vector<int32_t> factors;
    void begin(Surroundings &s, int64_t channels, int64_t taps) const {
        if (static_cast<int64_t>(factors.size()) != channels) return;
        s.channel_error = factors;
        s.channel_size = factors;
        for (size_t c = 0; c < s.column_error.size(); ++c) s.column_error[c] = factors[c / static_cast<size_t>(taps)];
    }
};

struct Layout {
    int64_t rows, columns, taps, width;
    int bypass, trellis;
    bool basis;
    bool valid;
    explicit Layout(const int64_t *shape)
        : rows(shape[0]),
          columns(shape[1]),
          taps(shape[2]),
          width(shape[3]),
          bypass(static_cast<int>(shape[4])),
          trellis(static_cast<int>(shape[5])),
          basis(shape[6] == 1),
          valid(rows >= 0 && columns >= 0 && taps >= 1 && width >= 1 && columns % taps == 0 && shape[4] >= 0 && shape[4] <= 24 &&
                valid_trellis(shape[5]) && (shape[6] == 0 || shape[6] == 1)) {}
};

}  // namespace tersor::context

#endif
