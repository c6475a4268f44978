// Adaptive context coding of quantised weight matrices ("small" mode): docs/format.md, "Adaptive context coder".
//
// Every weight becomes binary decisions: zero?, sign, then a unary magnitude. For each decision,
// adaptive probabilities of six contexts (mean magnitudes of the row, the column, the input channel
// and the kernel so far; the nearest decoded neighbours and their signs) are mixed in the logistic
// domain by weights that learn as they go. Integers only, so encoder and decoder agree on every
// machine; one template serves both, so that they cannot drift apart.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "binary.h"
#include "mixing.h"
#include "tersor.h"

namespace tersor {
namespace {

// ---- Contexts --------------------------------------------------------------------------------------
constexpr int kUnary = 18;    // magnitudes above it continue as Exp-Golomb
constexpr int kMagnitudes = 6;
constexpr int kSigns = 6;
constexpr int kTapClasses = 25;
constexpr int kMagnitudeOffset[kMagnitudes] = {0, 256, 512, 768, 832, 1856};
constexpr int kMagnitudeSlots = 2112;
constexpr int kSignOffset[kSigns] = {0, 27, 252, 477, 552, 1227};
constexpr int kSignSlots = 1308;
constexpr int kEscapes = 40;

// Means are kept in 1/128 of a step; levels are at 1/16: fine near zero, coarse above.
struct Levels {
  uint8_t of[1024];
  Levels() {
    constexpr int bounds[15] = {2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 48, 64, 90, 128, 200};
    for (int v = 0; v < 1024; ++v) {
      int level = 0;
      while (level < 15 && v >= bounds[level]) ++level;
      of[v] = static_cast<uint8_t>(level);
    }
  }
};

const Levels kLevels;

inline int level(int32_t mean) { return kLevels.of[std::min(mean >> 3, 1023)]; }

inline void adapt(int32_t& mean, int32_t magnitude, int64_t count, int64_t limit) {
  mean += ((magnitude - mean) * kReciprocal.of[std::min(count, limit)]) >> 16;
}

struct Tables {
  Slot magnitude[(kUnary + 1) * kMagnitudeSlots];
  Slot sign[kSignSlots];
  Mixer<kMagnitudes> by_bin[kUnary + 1];
  Mixer<kMagnitudes> by_tap[(kUnary + 1) * kTapClasses];
  Mixer<kSigns> sign_mixer;
  AdaptiveBit escape_prefix[kEscapes];
};

struct Writer {
  static constexpr bool kDecodes = false;
  BitEncoder coder;
  int bit(int value, uint32_t p) {
    coder.encode(value != 0, p);
    return value;
  }
};

struct Reader {
  static constexpr bool kDecodes = true;
  BitDecoder coder;
  const uint8_t* data;
  size_t size;
  int bit(int, uint32_t p) { return coder.decode(p, data, size) ? 1 : 0; }
};

// One weight's surroundings. Rows are stored with two zeros in front, as clipped magnitude (0..15)
// and sign class (0 zero, 1 positive, 2 negative).
struct Row {
  std::vector<uint8_t> magnitude, sign;
  explicit Row(size_t columns) : magnitude(columns + 2), sign(columns + 2) {}
};

template <class Coder>
class Codec {
 public:
  Codec(Coder& coder, Tables& tables) : coder_(coder), t_(tables) {}

  // Codes one matrix [rows, columns]; `taps` columns form a kernel with rows of `width` taps.
  // False where a magnitude is beyond what an encoder writes.
  bool matrix(int32_t* q, int64_t rows, int64_t columns, int64_t taps, int64_t width, int bypass) {
    const int64_t channels = columns / taps;
    std::vector<int32_t> column_mean(static_cast<size_t>(columns), 64);
    std::vector<int32_t> channel_mean(static_cast<size_t>(channels), 64);
    Row here(static_cast<size_t>(columns)), above(static_cast<size_t>(columns)), above2(static_cast<size_t>(columns));
    int32_t start = 64;
    for (int64_t r = 0; r < rows; ++r) {
      int32_t row_mean = start;
      int64_t c = 0;
      for (int64_t channel = 0; channel < channels; ++channel) {
        int32_t kernel_mean = row_mean;
        int64_t across = 0;  // position within the kernel's row
        for (int64_t tap = 0; tap < taps; ++tap, ++c) {
          const size_t i = static_cast<size_t>(c) + 2;
          const size_t up = tap >= width ? i - static_cast<size_t>(width) : 0;
          const size_t back = channel > 0 ? i - static_cast<size_t>(taps) : 0;
          const int tap_class = static_cast<int>(std::min<int64_t>(tap, kTapClasses - 1));
          const int left = here.magnitude[i - 1], left2 = here.magnitude[i - 2], over = here.magnitude[up];
          const int previous = above.magnitude[i], previous2 = above2.magnitude[i];
          set_magnitude_contexts(row_mean, column_mean[static_cast<size_t>(c)],
                                 channel_mean[static_cast<size_t>(channel)], kernel_mean, left, left2, over,
                                 previous, previous2);
          int32_t value = 0, low = 0;
          if (!Coder::kDecodes) {
            value = q[r * columns + c];
            if (bypass) {
              const int64_t shifted = int64_t{value} + (int64_t{1} << (bypass - 1));
              value = static_cast<int32_t>(shifted >> bypass);
              low = static_cast<int32_t>(shifted & ((int64_t{1} << bypass) - 1));
            }
          }
          int32_t magnitude = value < 0 ? -value : value;
          int negative = value < 0;
          if (decide(0, tap_class, magnitude > 0)) {
            set_sign_contexts(tap_class, here.sign[i - 1], here.sign[up], above.sign[i], here.sign[back], above2.sign[i],
                              here.sign[i - 2]);
            negative = decide_sign(negative);
            if (!decode_magnitude(tap_class, magnitude)) return false;
          } else {
            magnitude = 0;
          }
          if (Coder::kDecodes) value = negative ? -magnitude : magnitude;
          if (bypass) {
            int32_t bits = 0;
            for (int b = bypass - 1; b >= 0; --b) bits |= coder_.bit((low >> b) & 1, 32768) << b;
            if (Coder::kDecodes) {
              const int64_t full = int64_t{value} * (int64_t{1} << bypass) + bits - (int64_t{1} << (bypass - 1));
              if (full > INT32_MAX || full < INT32_MIN) return false;
              q[r * columns + c] = static_cast<int32_t>(full);
            }
          } else if (Coder::kDecodes) {
            q[r * columns + c] = value;
          }
          here.magnitude[i] = static_cast<uint8_t>(std::min(magnitude, 15));
          here.sign[i] = static_cast<uint8_t>(magnitude == 0 ? 0 : (negative ? 2 : 1));
          const int32_t weight = std::min(magnitude, 60) << 7;
          adapt(row_mean, weight, c, 60);
          adapt(kernel_mean, weight, tap, 60);
          adapt(column_mean[static_cast<size_t>(c)], weight, r, 30);
          adapt(channel_mean[static_cast<size_t>(channel)], weight, r * taps + tap, 200);
          if (++across == width) across = 0;
        }
      }
      start = row_mean;
      std::swap(above2, above);
      std::swap(above, here);
      // `here` is now the row before the last; every entry is overwritten before it is read, except
      // the zeros in front, which are never written.
    }
    return true;
  }

 private:
  void set_magnitude_contexts(int32_t row, int32_t column, int32_t channel, int32_t kernel, int left, int left2,
                              int over, int previous, int previous2) {
    const int rl = level(row), cl = level(column), il = level(channel), kl = level(kernel);
    const int near = left + over + previous + left2;
    const int blend = std::min((3 * row + 3 * column + 2 * channel + 64 * near) / 60, 63);
    const int l3 = std::min(left, 3);
    context_[0] = rl * 16 + cl;
    context_[1] = il * 16 + kl;
    context_[2] = ((l3 * 4 + std::min(over, 3)) * 4 + std::min(previous, 3)) * 4 + std::min(previous2, 3);
    context_[3] = blend;
    context_[4] = (rl * 16 + kl) * 4 + l3;
    context_[5] = rl * 16 + il;
    for (int i = 0; i < kMagnitudes; ++i) context_[i] += kMagnitudeOffset[i];
  }

  void set_sign_contexts(int tap, int left, int over, int previous, int back, int previous2, int left2) {
    sign_context_[0] = (left * 3 + over) * 3 + previous;
    sign_context_[1] = tap * 9 + left * 3 + over;
    sign_context_[2] = tap * 9 + previous * 3 + previous2;
    sign_context_[3] = (back * 3 + previous) * 3 + left;
    sign_context_[4] = tap * 27 + (left * 3 + left2) * 3 + over;
    sign_context_[5] = ((previous * 3 + previous2) * 3 + back) * 3 + left;
    for (int i = 0; i < kSigns; ++i) sign_context_[i] += kSignOffset[i];
  }

  int decide(int bin, int tap, int value) {
    Slot* slots = t_.magnitude + bin * kMagnitudeSlots;
    int inputs[kMagnitudes];
    for (int i = 0; i < kMagnitudes; ++i) inputs[i] = slots[context_[i]].stretched();
    Mixer<kMagnitudes>& a = t_.by_bin[bin];
    Mixer<kMagnitudes>& b = t_.by_tap[bin * kTapClasses + tap];
    const int xa = a.logit(inputs), xb = b.logit(inputs);
    const int bit = coder_.bit(value, probability((xa + xb) >> 1));
    a.update(inputs, xa, bit);
    b.update(inputs, xb, bit);
    for (int i = 0; i < kMagnitudes; ++i) slots[context_[i]].update(bit);
    return bit;
  }

  int decide_sign(int value) {
    int inputs[kSigns];
    for (int i = 0; i < kSigns; ++i) inputs[i] = t_.sign[sign_context_[i]].stretched();
    const int x = t_.sign_mixer.logit(inputs);
    const int bit = coder_.bit(value, probability(x));
    t_.sign_mixer.update(inputs, x, bit);
    for (int i = 0; i < kSigns; ++i) t_.sign[sign_context_[i]].update(bit);
    return bit;
  }

  // The magnitude, known to be at least 1: unary up to kUnary, then Exp-Golomb.
  bool decode_magnitude(int tap, int32_t& magnitude) {
    int32_t m = 1;
    while (m <= kUnary && !decide(m, tap, magnitude == m)) ++m;
    if (m <= kUnary) {
      magnitude = m;
      return true;
    }
    const uint32_t rest = static_cast<uint32_t>(magnitude - kUnary);  // at least 1
    int e = 0;
    for (;; ++e) {
      if (e >= 31) return false;
      AdaptiveBit& model = t_.escape_prefix[e];
      const int more = coder_.bit(e < 31 && (rest >> e) > 1, model.probability());
      model.update(more != 0);
      if (!more) break;
    }
    uint32_t u = 1;
    for (int i = e - 1; i >= 0; --i) u = (u << 1) | static_cast<uint32_t>(coder_.bit((rest >> i) & 1, 32768));
    if (u > static_cast<uint32_t>(INT32_MAX - kUnary)) return false;
    magnitude = static_cast<int32_t>(u) + kUnary;
    return true;
  }

  Coder& coder_;
  Tables& t_;
  int context_[kMagnitudes];
  int sign_context_[kSigns];
};

template <class Coder>
int64_t run(Coder& coder, int32_t* q, int64_t matrices, const int64_t* shape) {
  std::unique_ptr<Tables> tables(new Tables());
  Codec<Coder> codec(coder, *tables);
  for (int64_t m = 0; m < matrices; ++m, shape += 5) {
    const int64_t rows = shape[0], columns = shape[1], taps = shape[2], width = shape[3], bypass = shape[4];
    if (rows < 0 || columns < 0 || taps < 1 || width < 1 || bypass < 0 || bypass > 24 || columns % taps != 0) {
      return TERSOR_BAD_ARGUMENT;
    }
    if (!codec.matrix(q, rows, columns, taps, width, static_cast<int>(bypass))) return TERSOR_CORRUPT;
    q += rows * columns;
  }
  return 0;
}

}  // namespace
}  // namespace tersor

// q: the matrices one after the other; shape [matrices, 5]: rows, columns, taps, width, bypass.
// Returns the number of bytes written or an error code.
TERSOR_API int64_t tersor_context_encode(const int32_t* q, int64_t matrices, const int64_t* shape, uint8_t* out,
                                         int64_t capacity) try {
  using namespace tersor;
  Writer writer;
  const int64_t status = run(writer, const_cast<int32_t*>(q), matrices, shape);  // a Writer only reads q
  if (status != 0) return status == TERSOR_CORRUPT ? TERSOR_BAD_ARGUMENT : status;
  const std::vector<uint8_t>& bytes = writer.coder.finish();
  if (static_cast<int64_t>(bytes.size()) > capacity) return TERSOR_NO_ROOM;
  if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
  return static_cast<int64_t>(bytes.size());
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

// Returns the number of bytes consumed (at most 8 more than `size`) or an error code.
TERSOR_API int64_t tersor_context_decode(const uint8_t* data, int64_t size, int64_t matrices, const int64_t* shape,
                                         int32_t* q) try {
  using namespace tersor;
  Reader reader{{}, data, static_cast<size_t>(size)};
  reader.coder.start(data, static_cast<size_t>(size));
  const int64_t status = run(reader, q, matrices, shape);
  return status != 0 ? status : static_cast<int64_t>(reader.coder.position);
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}
