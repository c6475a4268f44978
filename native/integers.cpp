// Adaptive code for the integers of side information: zero flag, sign, Exp-Golomb magnitude, each
// bit with an adaptive probability of its context. docs/format.md, "Integer code".
#include <cstring>
#include <memory>
#include <new>

#include "binary.h"
#include "tersor.h"

namespace tersor {

constexpr int kContexts = 32;
constexpr int kPrefixes = 42;  // |value| <= 2^41

struct IntegerModel {
  AdaptiveBit zero;
  AdaptiveBit sign;
  AdaptiveBit prefix[kPrefixes];
  AdaptiveBit first[kPrefixes];      // first bit below the leading one
  AdaptiveBit second[kPrefixes][2];  // second bit, given the first
};

struct IntegerDecoderState {
  BitDecoder coder;
  IntegerModel models[kContexts];
};

namespace {

void encode_bit(BitEncoder& coder, AdaptiveBit& model, bool bit) {
  coder.encode(bit, model.probability());
  model.update(bit);
}

bool decode_bit(BitDecoder& coder, AdaptiveBit& model, const uint8_t* data, size_t size) {
  const bool bit = coder.decode(model.probability(), data, size);
  model.update(bit);
  return bit;
}

bool encode_integer(BitEncoder& coder, IntegerModel& m, int64_t value) {
  encode_bit(coder, m.zero, value == 0);
  if (value == 0) return true;
  encode_bit(coder, m.sign, value < 0);
  const uint64_t u = static_cast<uint64_t>(value < 0 ? -value : value);
  int e = 0;
  while ((u >> e) > 1) ++e;
  if (e >= kPrefixes - 1) return false;
  for (int i = 0; i < e; ++i) encode_bit(coder, m.prefix[i], true);
  encode_bit(coder, m.prefix[e], false);
  for (int i = e - 1; i >= 0; --i) {
    const bool bit = (u >> i) & 1;
    if (i == e - 1) {
      encode_bit(coder, m.first[e], bit);
    } else if (i == e - 2) {
      encode_bit(coder, m.second[e][(u >> (e - 1)) & 1], bit);
    } else {
      coder.encode(bit, 32768);
    }
  }
  return true;
}

// False where the prefix is longer than any encoder writes.
bool decode_integer(IntegerDecoderState& s, IntegerModel& m, const uint8_t* data, size_t size,
                    int64_t* value) {
  *value = 0;
  if (decode_bit(s.coder, m.zero, data, size)) return true;
  const bool negative = decode_bit(s.coder, m.sign, data, size);
  int e = 0;
  while (decode_bit(s.coder, m.prefix[e], data, size)) {
    if (++e >= kPrefixes - 1) return false;
  }
  uint64_t u = 1;
  for (int i = e - 1; i >= 0; --i) {
    bool bit;
    if (i == e - 1) {
      bit = decode_bit(s.coder, m.first[e], data, size);
    } else if (i == e - 2) {
      bit = decode_bit(s.coder, m.second[e][u & 1], data, size);
    } else {
      bit = s.coder.decode(32768, data, size);
    }
    u = (u << 1) | (bit ? 1 : 0);
  }
  *value = negative ? -static_cast<int64_t>(u) : static_cast<int64_t>(u);
  return true;
}

}  // namespace
}  // namespace tersor

// Returns the number of bytes written or an error code.
TERSOR_API int64_t tersor_integers_encode(const int64_t* values, const uint8_t* contexts, int64_t count,
                               uint8_t* out, int64_t capacity) try {
  using namespace tersor;
  std::unique_ptr<IntegerModel[]> models(new IntegerModel[kContexts]);
  BitEncoder coder;
  for (int64_t i = 0; i < count; ++i) {
    if (contexts[i] >= kContexts) return TERSOR_BAD_ARGUMENT;
    if (values[i] > (int64_t{1} << 40) || values[i] < -(int64_t{1} << 40)) return TERSOR_BAD_ARGUMENT;
    if (!encode_integer(coder, models[contexts[i]], values[i])) return TERSOR_BAD_ARGUMENT;
  }
  const std::vector<uint8_t>& bytes = coder.finish();
  if (static_cast<int64_t>(bytes.size()) > capacity) return TERSOR_NO_ROOM;
  if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
  return static_cast<int64_t>(bytes.size());
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

TERSOR_API int64_t tersor_integers_state_size() { return sizeof(tersor::IntegerDecoderState); }

TERSOR_API void tersor_integers_start(const uint8_t* data, int64_t size, void* state) {
  using namespace tersor;
  auto* s = new (state) IntegerDecoderState();
  s->coder.start(data, static_cast<size_t>(size));
}

// Returns the bytes consumed so far (at most 8 more than `size`, see BitDecoder), or an error code
// for a code that no encoder writes.
TERSOR_API int64_t tersor_integers_decode(const uint8_t* data, int64_t size, void* state, int64_t context,
                               int64_t count, int64_t* out) {
  using namespace tersor;
  auto* s = static_cast<IntegerDecoderState*>(state);
  if (context < 0 || context >= kContexts) return TERSOR_BAD_ARGUMENT;
  IntegerModel& m = s->models[context];
  for (int64_t i = 0; i < count; ++i) {
    if (!decode_integer(*s, m, data, static_cast<size_t>(size), out + i)) return TERSOR_CORRUPT;
  }
  return static_cast<int64_t>(s->coder.position);
}
