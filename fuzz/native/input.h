// What every target shares: structure read from the fuzzer's bytes, and buffers of exactly the size that a function
// is told, so that the sanitizers see every access beyond it.
//
// A target includes the kernel's sources that it calls, and not a copy of their declarations: when a signature
// changes, the target no longer compiles.
#ifndef TERSOR_FUZZ_INPUT_H
#define TERSOR_FUZZ_INPUT_H

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

namespace fuzz {

// Bytes that end are zeros from there on: every input means something.
class Input {
  public:
    Input(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}
    size_t left() const { return static_cast<size_t>(end_ - at_); }
    uint32_t u8() { return at_ < end_ ? *at_++ : 0u; }
    uint32_t u16() {
        const uint32_t low = u8();
        return low | u8() << 8;
    }
    uint32_t u32() {
        const uint32_t low = u16();
        return low | u16() << 16;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(n <= 256 ? u8() : u16()) % n; }
    std::vector<uint8_t> take(size_t n) {
        std::vector<uint8_t> out(at_, at_ + std::min(n, left()));
        at_ += out.size();
        return out;
    }
    std::vector<uint8_t> rest() { return take(left()); }
    // Small integers mostly, sometimes huge ones: what weights look like, and what a decoder must survive.
    int32_t weight() {
        const uint32_t b = u8();
        if (b < 250) return static_cast<int32_t>(b % 25) - 12;
        return static_cast<int32_t>(u32()) >> (b - 250) * 4;
    }

  private:
    const uint8_t *at_, *end_;
};

// An array on the heap of exactly n elements, zero at first. Never null, since empty ones have an address too.
template <class T>
class Exact {
  public:
    explicit Exact(size_t n) : size_(n), data_(new T[n]()) {}
    Exact(const uint8_t *bytes, size_t n) : Exact(n) {
        if (n) std::memcpy(data_.get(), bytes, n * sizeof(T));
    }
    T *get() { return data_.get(); }
    T &operator[](size_t i) { return data_[i]; }
    size_t size() const { return size_; }
    int64_t count() const { return static_cast<int64_t>(size_); }
    bool same(const Exact &other) const {
        return size_ == other.size_ && (size_ == 0 || std::memcmp(data_.get(), other.data_.get(), size_ * sizeof(T)) == 0);
    }

  private:
    size_t size_;
    std::unique_ptr<T[]> data_;
};

// A hash of all results (FNV-1a over 64-bit values): the same on every machine, whatever its byte order.
inline uint64_t observed = 1469598103934665603u;

inline void observe(int64_t value) { observed = (observed ^ static_cast<uint64_t>(value)) * 1099511628211u; }

template <class T>
void observe_all(Exact<T> &values) {
    for (size_t i = 0; i < values.size(); ++i) {
        if constexpr (sizeof(T) == 4 && !std::is_integral<T>::value) {
            int32_t bits;
            std::memcpy(&bits, &values[i], sizeof bits);
            observe(bits);
        } else {
            observe(static_cast<int64_t>(values[i]));
        }
    }
}

inline void must(bool good, const char *what) {
    if (good) return;
    std::fprintf(stderr, "property violated: %s\n", what);
    std::abort();
}

// A copy of `code` with a few bytes changed and perhaps its end cut off: what a damaged or made-up stream is like.
inline std::vector<uint8_t> damaged(Input &input, std::vector<uint8_t> code) {
    const uint32_t patches = input.u8() % 4, cut = input.u8();
    for (uint32_t i = 0; i < patches && !code.empty(); ++i) {
        const size_t place = input.u16() % code.size();
        code[place] = static_cast<uint8_t>(code[place] ^ (input.u8() | 1u));
    }
    if (cut >= 192) code.resize(code.size() - std::min<size_t>(code.size(), cut - 191));
    return code;
}

}  // namespace fuzz

// The kernel's own is in module.cpp, which needs Python.
#include "../../native/tersor.h"
TERSOR_API int32_t tersor_simd_level(void) {
#if TERSOR_HAS_AVX2
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? 2
               : 1;
#else
    return 0;
#endif
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
