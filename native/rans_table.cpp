// Integer probability models: parsing them, and unfolding them for the decoder.
#include <cstring>

#include "rans.h"

namespace tersor::rans {

bool Bytes::byte(uint32_t &value) {
    if (at == end) return false;
    value = *at++;
    return true;
}

bool Bytes::varint(uint32_t &value) {
    uint64_t sum = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (at == end) return false;
        const uint8_t b = *at++;
        sum |= uint64_t{b & 127u} << shift;
        if (b < 128) {
            value = static_cast<uint32_t>(sum);
            return sum >> 32 == 0 && (b != 0 || shift == 0);  // shortest form only
        }
    }
    return false;
}

bool Bits::exhausted() const {
    const int64_t left = 8 * size - position;
    return left < 8 && (left == 0 || data[size - 1] >> (8 - left) == 0);
}

bool parametric(const Shape &shape, int precision, Table &table) {
    const int64_t last = int64_t{table.first} + table.size - 1;
    if (table.first > 0 || last < 0) return false;  // zero must be inside
    const int zero = -table.first;
    uint64_t weight[MAX_SYMBOLS] = {};
    uint64_t sum = 0;
    uint64_t w = uint64_t{1} << 24;
    for (int i = zero + 1; i < table.size; ++i, w = w * shape.decay >> 8) sum += weight[i] = w;
    w = uint64_t{shape.weight_negative} << 17;
    for (int i = zero - 1; i >= 0; --i, w = w * shape.decay_negative >> 8) sum += weight[i] = w;

    const uint64_t free_mass = (uint64_t{1} << precision) - static_cast<uint64_t>(table.symbols());  // each symbol keeps 1
    const uint64_t for_zero = sum == 0 ? free_mass : free_mass * shape.zero >> 8;
    const uint64_t rest = free_mass - for_zero;
    uint64_t below = 0;
    for (int i = 0; i < table.size; ++i) {
        if (i == zero) {
            table.frequency[i] = static_cast<uint32_t>(1 + for_zero);
            continue;
        }
        const uint64_t above = below + weight[i];
        // Differences of rounded cumulative sums add up to `rest` exactly.
        table.frequency[i] =
            static_cast<uint32_t>(1 + (sum == 0 ? 0 : rest * above / sum - rest * below / sum));
        below = above;
    }
    if (table.escape) table.frequency[table.size] = 1;
    return true;
}

static int64_t parse_histogram(Bytes &bytes, int mantissa, int precision, Table &table) {
    uint32_t filler;
    if (!bytes.byte(filler)) return TERSOR_TRUNCATED;
    const int n = table.symbols();
    if (static_cast<int>(filler) >= n) return TERSOR_CORRUPT;
    Bits bits{bytes.at, bytes.left(), 0};
    int64_t rest = int64_t{1} << precision;
    for (int i = 0; i < n; ++i) {
        if (i == static_cast<int>(filler)) continue;
        uint64_t length, top = 0;
        if (!bits.take(4, length)) return TERSOR_TRUNCATED;
        if (length > MAX_PRECISION) return TERSOR_CORRUPT;
        table.frequency[i] = 0;
        if (length == 0) continue;
        const int below = static_cast<int>(length) - 1;
        const int kept = below < mantissa ? below : mantissa;
        if (!bits.take(kept, top)) return TERSOR_TRUNCATED;
        table.frequency[i] = static_cast<uint32_t>(1u << below | top << (below - kept));
        rest -= table.frequency[i];
    }
    if (rest < 1) return TERSOR_CORRUPT;
    table.frequency[filler] = static_cast<uint32_t>(rest);
    bits.size = (bits.position + 7) >> 3;
    if (!bits.exhausted()) return TERSOR_CORRUPT;
    bytes.at += bits.size;
    return 0;
}

int64_t parse_table(Bytes &bytes, int precision, Table &table) {
    uint32_t head, folded, span;
    if (!bytes.byte(head) || !bytes.varint(folded) || !bytes.varint(span)) return TERSOR_TRUNCATED;
    const bool histogram = head & 1, asymmetric = head & 4;
    const uint32_t mantissa = head >> 4;
    table.escape = head & 2;
    if (head & 8 || span > 254 || (histogram ? asymmetric || mantissa >= MAX_PRECISION : mantissa != 0))
        return TERSOR_CORRUPT;
    const int64_t first = folded & 1 ? -int64_t{folded >> 1} - 1 : int64_t{folded >> 1};
    if (first + span > INT32_MAX) return TERSOR_CORRUPT;
    table.first = static_cast<int32_t>(first);
    table.size = static_cast<int32_t>(span) + 1;
    if (histogram) return parse_histogram(bytes, static_cast<int>(mantissa), precision, table);
    Shape shape{};
    if (!bytes.byte(shape.zero) || !bytes.byte(shape.decay)) return TERSOR_TRUNCATED;
    shape.decay_negative = shape.decay;
    shape.weight_negative = 128;
    if (asymmetric && (!bytes.byte(shape.decay_negative) || !bytes.byte(shape.weight_negative)))
        return TERSOR_TRUNCATED;
    return parametric(shape, precision, table) ? 0 : int64_t{TERSOR_CORRUPT};
}

void Slots::build(const Table &table, int precision_) {
    precision = precision_;
    single = -1;
    uint32_t start = 0;
    for (int s = 0; s < table.symbols(); ++s) {
        const uint32_t f = table.frequency[s];
        if (f >> precision) single = s;
        ranges[s] = f | start << 16;
        if (single < 0) {
            if (precision == MIN_PRECISION) {
                for (uint32_t j = 0; j < f; ++j) packed[start + j] = static_cast<uint32_t>(s) | f << 8 | j << 20;
            } else {
                std::memset(symbol + start, s, f);
            }
        }
        start += f;
    }
}

}  // namespace tersor::rans

using namespace tersor::rans;

// Frequencies [size + escape] of a parametric model, for the encoder. parameters: the four of Shape.
TERSOR_API int64_t tersor_rans_parametric(int64_t first, int64_t size, int64_t escape, int64_t precision,
                                          const uint8_t *parameters, uint32_t *frequency) {
    if (size < 1 || size > 255 || first < -254 || first > 0 || precision < MIN_PRECISION ||
        precision > MAX_PRECISION)
        return TERSOR_BAD_ARGUMENT;
    Table table{};
    table.first = static_cast<int32_t>(first);
    table.size = static_cast<int32_t>(size);
    table.escape = escape != 0;
    const Shape shape{parameters[0], parameters[1], parameters[2], parameters[3]};
    if (!parametric(shape, static_cast<int>(precision), table)) return TERSOR_BAD_ARGUMENT;
    std::memcpy(frequency, table.frequency, sizeof(uint32_t) * static_cast<size_t>(table.symbols()));
    return 0;
}
