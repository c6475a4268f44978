// Interleaved rANS: what the table, lane, payload and encoder files share. Normative text: docs/format-rans.md.
#ifndef TERSOR_RANS_H
#define TERSOR_RANS_H

#include <cstddef>
#include <cstdint>

#include "tersor.h"

namespace tersor::rans {

constexpr int MAX_LANES = 64;
constexpr int MAX_CLASSES = 8;
constexpr int MAX_SYMBOLS = 256;  // at most 255 values and the escape
constexpr int MIN_PRECISION = 12, MAX_PRECISION = 14;
constexpr uint32_t START = 1u << 16;  // a lane's state before the first symbol is encoded, and its lower bound
constexpr int MAX_BYPASS = 24;

// A read position that never leaves its bytes.
struct Bytes {
    const uint8_t *at, *end;
    int64_t left() const { return end - at; }
    bool byte(uint32_t &value);
    bool varint(uint32_t &value);  // unsigned LEB128 below 2^32
};

inline uint32_t load16(const uint8_t *p) { return p[0] | uint32_t{p[1]} << 8; }
inline uint32_t load32(const uint8_t *p) { return load16(p) | load16(p + 2) << 16; }
inline uint64_t load64(const uint8_t *p) { return load32(p) | uint64_t{load32(p + 4)} << 32; }

// Bits, least significant first, of a buffer of known length.
struct Bits {
    const uint8_t *data;
    int64_t size;      // bytes
    int64_t position;  // bits
    int64_t left() const { return 8 * size - position; }
    bool exhausted() const;  // less than a byte left, and that is zero

    bool take(int count, uint64_t &value) {  // count <= 40, so that shift + count fit the window
        if (count > left()) return false;
        const int64_t first = position >> 3;
        const int shift = static_cast<int>(position & 7);
        uint64_t window = 0;
        if (size - first >= 8)
            window = load64(data + first);
        else
            for (int64_t i = first; i < size; ++i) window |= uint64_t{data[i]} << (8 * (i - first));
        value = window >> shift & ((uint64_t{1} << count) - 1);
        position += count;
        return true;
    }
};

// One integer model: symbol i < size means the value first + i; symbol `size`, if escape, is the escape.
struct Table {
    int32_t first;
    int32_t size;
    bool escape;
    uint32_t frequency[MAX_SYMBOLS];  // sum = 2^precision
    int symbols() const { return size + (escape ? 1 : 0); }
};

struct Shape {  // the parameters of a parametric table
    uint32_t zero, decay, decay_negative, weight_negative;
};

// Frequencies of a parametric model; false if the alphabet does not fit. Integer arithmetic only.
bool parametric(const Shape &shape, int precision, Table &table);
// One serialised table; 0 or an error code.
int64_t parse_table(Bytes &bytes, int precision, Table &table);

// A table unfolded for decoding: by slot for 12 bits, by slot and by symbol for more.
struct Slots {
    int precision;
    int single;                               // the only symbol there is, or -1
    uint32_t packed[1 << MIN_PRECISION];      // symbol | frequency << 8 | (slot - start) << 20
    uint32_t ranges[MAX_SYMBOLS];             // frequency | start << 16
    uint8_t symbol[(1 << MAX_PRECISION) + 4]; // 4 more, for a 32-bit gather at the last slot
    void build(const Table &table, int precision);
};

// The interleaved decoders over one run of words.
struct Lanes {
    uint32_t state[MAX_LANES];
    int count;           // lanes, a power of two
    int next;            // lane of the next symbol
    int simd;            // tersor_simd_level() or less
    const uint8_t *at, *end;  // words not yet read; `end` moves to the tail buffer with `at`
    bool in_tail;
    uint8_t tail[4 * MAX_LANES];
    void start(const uint8_t *words, int64_t size);
    int64_t decode(const Slots &slots, uint8_t *symbols, int64_t n);  // 0 or an error code
    bool finished() const;
private:
    int64_t decode_some(const Slots &slots, uint8_t *symbols, int64_t n);
};

// out[i] = levels[symbols[i]] * scale, in float32; `used` entries of levels (of 256) can occur.
void scale_symbols(const float *levels, int used, const uint8_t *symbols, int64_t n, float scale, float *out,
                   int simd);

#if TERSOR_HAS_AVX2
// rans_avx512.cpp: for 16 lanes or more; and the same as scale_symbols.
int64_t sweep_avx512(Lanes &lanes, const Slots &slots, uint8_t *out, int64_t sweeps, const uint8_t *stop);
void scale_avx512(const float *levels, int used, const uint8_t *symbols, int64_t n, float scale, float *out);
#endif

}  // namespace tersor::rans

#endif
