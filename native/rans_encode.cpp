// The encoder's two loops over symbols: counting them, and writing them as words. Decisions are in Python.
#include <cstring>

#include "rans.h"

using namespace tersor::rans;

// counts[row, v - first] += 1 for every value v of the row, values outside first .. first + size - 1 at the ends.
TERSOR_API int64_t tersor_rans_count(const int32_t *values, int64_t rows, int64_t columns, int64_t first,
                                     int64_t size, int64_t *counts) {
    if (rows < 0 || columns < 0 || size < 1) return TERSOR_BAD_ARGUMENT;
    for (int64_t r = 0; r < rows; ++r, counts += size)
        for (int64_t j = 0; j < columns; ++j) {
            const int64_t i = *values++ - first;
            ++counts[i < 0 ? 0 : i >= size ? size - 1 : i];
        }
    return 0;
}

// Appends the low `bits` bits of each value to a zeroed bit string at bit `position`; returns the new position.
TERSOR_API int64_t tersor_rans_pack(const int32_t *values, int64_t n, int64_t bits, uint8_t *out, int64_t size,
                                    int64_t position) {
    if (n < 0 || bits < 0 || bits > 32 || position < 0 || position > 8 * size) return TERSOR_BAD_ARGUMENT;
    if (bits > 0 && n > (8 * size - position) / bits) return TERSOR_NO_ROOM;
    uint64_t window = (position & 7) ? out[position >> 3] : 0;  // the byte begun and what follows it
    int held = static_cast<int>(position & 7);
    uint8_t *at = out + (position >> 3);
    for (int64_t i = 0; i < n; ++i) {
        window |= (static_cast<uint32_t>(values[i]) & ((uint64_t{1} << bits) - 1)) << held;
        for (held += static_cast<int>(bits); held >= 8; held -= 8, window >>= 8)
            *at++ = static_cast<uint8_t>(window);
    }
    if (held > 0) *at = static_cast<uint8_t>(window);
    return position + n * bits;
}

// Encodes segments of symbols: segment i has counts[i] symbols, coded with frequencies[tables[i]] (256 each,
// summing to 2^precision). Writes the final states and the words, in the order in which the decoder reads them,
// to the END of `words`; returns their number, or an error code.
TERSOR_API int64_t tersor_rans_encode(const uint8_t *symbols, int64_t n, int64_t segments, const int64_t *counts,
                                      const int64_t *tables, const uint32_t *frequencies, int64_t precision,
                                      int64_t lanes, uint32_t *states, uint16_t *words, int64_t capacity) {
    if (lanes < 1 || lanes > MAX_LANES || (lanes & (lanes - 1)) || precision < MIN_PRECISION ||
        precision > MAX_PRECISION)
        return TERSOR_BAD_ARGUMENT;
    for (int64_t i = 0; i < lanes; ++i) states[i] = START;
    int64_t t = n, used = 0;
    for (int64_t segment = segments - 1; segment >= 0; --segment) {
        const uint32_t *frequency = frequencies + MAX_SYMBOLS * tables[segment];
        uint32_t start[MAX_SYMBOLS], sum = 0;
        for (int s = 0; s < MAX_SYMBOLS; sum += frequency[s++]) start[s] = sum;
        if (sum != 1u << precision || counts[segment] > t) return TERSOR_BAD_ARGUMENT;
        for (const int64_t first = t - counts[segment]; t > first;) {
            const int s = symbols[--t];
            const uint32_t f = frequency[s];
            uint32_t &state = states[t & (lanes - 1)];
            uint32_t x = state;
            if (f == 0) return TERSOR_BAD_ARGUMENT;
            if (x >= uint64_t{f} << (32 - precision)) {
                if (used == capacity) return TERSOR_NO_ROOM;
                words[capacity - ++used] = static_cast<uint16_t>(x);
                x >>= 16;
            }
            state = (x / f << precision) + x % f + start[s];
        }
    }
    return t == 0 ? used : int64_t{TERSOR_BAD_ARGUMENT};
}
