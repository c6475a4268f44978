// Binary arithmetic coder with carry propagation, and the adaptive bit of the side information.
//
// The interval is [low, low + range) in 64-bit integers; a bit of probability p/65536 (of being 1)
// takes the lower part of size (range >> 16) * p. Whenever range falls below 2^32 four bytes leave
// (encoder) or enter (decoder), most significant byte first. Bytes past the end read as zero, so
// the encoder drops trailing zero bytes. Integers only: the same bits on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tersor {

constexpr uint32_t kProbabilityFloor = 32;  // of 65536: no bit ever costs more than 11 bits

class BitEncoder {
 public:
  void encode(bool bit, uint32_t p) {
    const uint64_t bound = (range_ >> 16) * p;
    if (bit) {
      range_ = bound;
    } else {
      low_ += bound;
      if (low_ < bound) carry();
      range_ -= bound;
    }
    if (range_ < (uint64_t{1} << 32)) {
      emit(4);
      range_ <<= 32;
    }
  }

  // Ends the stream with the value inside the interval that has the most trailing zero bytes.
  const std::vector<uint8_t>& finish() {
    for (int bits = 56; bits >= 0; bits -= 8) {
      const uint64_t mask = (uint64_t{1} << bits) - 1;
      const uint64_t value = (low_ + mask) & ~mask;
      if (value - low_ < range_) {
        if (value < low_) carry();
        low_ = value;
        break;
      }
    }
    emit(8);
    while (!out_.empty() && out_.back() == 0) out_.pop_back();
    return out_;
  }

 private:
  void carry() {
    for (size_t i = out_.size(); i-- > 0;) {
      if (++out_[i] != 0) return;
    }
  }
  void emit(int bytes) {
    for (int i = 0; i < bytes; ++i) {
      out_.push_back(static_cast<uint8_t>(low_ >> 56));
      low_ <<= 8;
    }
  }

  std::vector<uint8_t> out_;
  uint64_t low_ = 0;
  uint64_t range_ = ~uint64_t{0};
};

// Plain data: it also lives in a buffer owned by Python between calls (see integers.cpp).
struct BitDecoder {
  uint64_t range;
  uint64_t code;
  uint64_t position;  // next byte to read

  void start(const uint8_t* data, size_t size) {
    range = ~uint64_t{0};
    code = 0;
    position = 0;
    pull(data, size);
    pull(data, size);
  }

  inline bool decode(uint32_t p, const uint8_t* data, size_t size) {
    const uint64_t bound = (range >> 16) * p;
    const bool bit = code < bound;
    if (bit) {
      range = bound;
    } else {
      code -= bound;
      range -= bound;
    }
    if (range < (uint64_t{1} << 32)) {
      range <<= 32;
      pull(data, size);
    }
    return bit;
  }

 private:
  inline void pull(const uint8_t* data, size_t size) {
    uint32_t word = 0;
    if (position + 4 <= size) {
      word = (uint32_t{data[position]} << 24) | (uint32_t{data[position + 1]} << 16) |
             (uint32_t{data[position + 2]} << 8) | data[position + 3];
    } else {
      for (size_t i = 0; i < 4; ++i) {
        word = (word << 8) | (position + i < size ? data[position + i] : 0u);
      }
    }
    position += 4;
    code = (code << 32) | word;
  }
};

// The two directions of one adaptive coder: a template takes either, so that encoder and decoder cannot drift apart.
struct BitWriter {
  static constexpr bool kDecodes = false;
  BitEncoder coder;
  int bit(int value, uint32_t p) {
    coder.encode(value != 0, p);
    return value;
  }
};

struct BitReader {  // `value` is not looked at
  static constexpr bool kDecodes = true;
  BitDecoder coder;
  const uint8_t* data;
  size_t size;
  BitReader(const uint8_t* bytes, size_t count) : coder(), data(bytes), size(count) { coder.start(bytes, count); }
  int bit(int, uint32_t p) { return coder.decode(p, data, size) ? 1 : 0; }
};

// A probability that starts at one half and moves by 1/(n+2) at its n-th bit (Krichevsky-Trofimov),
// never slower than 1/kLimit: quick on the first symbols, steady afterwards.
struct AdaptiveBit {
  static constexpr int kLimit = 160;
  uint16_t p = 32768;
  uint16_t n = 0;

  uint32_t probability() const {
    if (p < kProbabilityFloor) return kProbabilityFloor;
    if (p > 65536 - kProbabilityFloor) return 65536 - kProbabilityFloor;
    return p;
  }
  void update(bool bit) {
    const int32_t target = bit ? 65535 : 0;
    p = static_cast<uint16_t>(p + (target - static_cast<int32_t>(p)) / (static_cast<int32_t>(n) + 2));
    if (n < kLimit - 2) ++n;
  }
};

}  // namespace tersor
