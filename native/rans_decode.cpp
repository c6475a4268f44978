// A rANS payload to its matrices: header, tables, class map, side streams, symbols. See docs/format-rans.md.
#include <memory>
#include <new>

#include "rans_rows.h"

namespace tersor::rans {
namespace {

constexpr int64_t BLOCK = 8192;  // symbols between the lanes and the rows: stays in the first-level cache
constexpr int64_t MAX_COUNT = int64_t{1} << 40;

class Payload {
public:
    Payload(const uint8_t *data, int64_t size, const Matrices &matrices, int simd)
        : bytes_{data, data + size}, matrices_(matrices), simd_(simd) {}

    int64_t decode() {
        if (int64_t error = count()) return error;
        if (total_ == 0) return bytes_.left() == 0 ? 0 : int64_t{TERSOR_CORRUPT};
        if (int64_t error = header()) return error;
        if (int64_t error = streams()) return error;
        slots_.reset(new (std::nothrow) Slots);
        if (!slots_) return TERSOR_NO_MEMORY;
        if (classes_ > 1)
            if (int64_t error = class_map()) return error;
        Rows rows(matrices_, bypass_.get(), row_class_.get(), side_, simd_);
        for (int c = 0; c < classes_; ++c)
            if (int64_t error = one_class(rows, c)) return error;
        return lanes_.finished() && side_.low.exhausted() && side_.escapes.exhausted() ? 0
                                                                                      : int64_t{TERSOR_CORRUPT};
    }

private:
    Bytes bytes_;
    const Matrices &matrices_;
    int simd_;
    int64_t total_ = 0, all_rows_ = 0;
    int precision_ = 0, classes_ = 0;
    Table tables_[MAX_CLASSES + 1];  // the last one in use models the class map
    int64_t class_size_[MAX_CLASSES] = {};
    Lanes lanes_;
    Side side_{};
    std::unique_ptr<Slots> slots_;
    std::unique_ptr<uint8_t[]> bypass_;     // per matrix
    std::unique_ptr<uint8_t[]> row_class_;  // per row of all matrices

    int64_t count() {
        for (int64_t m = 0; m < matrices_.count; ++m) {
            const int64_t rows = matrices_.rows[m], columns = matrices_.columns[m];
            if (rows < 0 || columns < 0 || rows > MAX_COUNT || columns > MAX_COUNT) return TERSOR_BAD_ARGUMENT;
            if (columns > 0 && rows > MAX_COUNT / columns) return TERSOR_BAD_ARGUMENT;
            total_ += rows * columns;
            all_rows_ += rows;
            if (total_ > MAX_COUNT || all_rows_ > MAX_COUNT) return TERSOR_BAD_ARGUMENT;
        }
        return 0;
    }

    int64_t header() {
        uint32_t shape, low;
        if (!bytes_.byte(shape) || !bytes_.byte(low)) return TERSOR_TRUNCATED;
        if ((shape & 7) == 7 || (shape >> 3 & 3) == 3) return TERSOR_CORRUPT;
        lanes_.count = 1 << (shape & 7);
        precision_ = MIN_PRECISION + static_cast<int>(shape >> 3 & 3);
        classes_ = static_cast<int>(shape >> 5) + 1;
        bypass_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(matrices_.count)]);
        if (!bypass_) return TERSOR_NO_MEMORY;
        const bool each = low == 255;  // one byte per matrix follows
        for (int64_t m = 0; m < matrices_.count; ++m) {
            if (each && !bytes_.byte(low)) return TERSOR_TRUNCATED;
            if (low > MAX_BYPASS) return TERSOR_CORRUPT;
            bypass_[static_cast<size_t>(m)] = static_cast<uint8_t>(low);
        }
        for (int t = 0; t < classes_ + (classes_ > 1); ++t)
            if (int64_t error = parse_table(bytes_, precision_, tables_[t])) return error;
        return 0;
    }

    // Sets up everything behind the tables: escapes, low bits, states, words.
    int64_t streams() {
        uint32_t escape_bytes = 0, order = 0;
        bool escape = false;
        for (int t = 0; t < classes_; ++t) escape |= tables_[t].escape;
        if (escape && (!bytes_.byte(order) || !bytes_.varint(escape_bytes))) return TERSOR_TRUNCATED;
        if (order > 31) return TERSOR_CORRUPT;
        int64_t low_bits = 0;
        for (int64_t m = 0; m < matrices_.count; ++m)
            low_bits += matrices_.symbols(m) * bypass_[static_cast<size_t>(m)];
        const int64_t low_bytes = (low_bits + 7) >> 3;
        const int64_t words = bytes_.left() - escape_bytes - low_bytes - 4 * lanes_.count;
        if (words < 0) return TERSOR_TRUNCATED;
        if (words & 1) return TERSOR_CORRUPT;
        side_.order = static_cast<int>(order);
        side_.escapes = Bits{bytes_.at, escape_bytes, 0};
        side_.low = Bits{bytes_.at + escape_bytes, low_bytes, 0};
        bytes_.at += escape_bytes + low_bytes;
        for (int i = 0; i < lanes_.count; ++i, bytes_.at += 4)
            if ((lanes_.state[i] = load32(bytes_.at)) < START) return TERSOR_CORRUPT;
        lanes_.simd = simd_;
        lanes_.start(bytes_.at, words);
        return 0;
    }

    // One symbol of the map: a class, or `classes_` for a matrix whose rows say it one by one.
    int64_t map_symbols(uint8_t *out, int64_t n, int largest) {
        const Table &table = tables_[classes_];
        if (int64_t error = lanes_.decode(*slots_, out, n)) return error;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t value = int64_t{table.first} + out[i];
            if (value < 0 || value > largest) return TERSOR_CORRUPT;
            out[i] = static_cast<uint8_t>(value);
        }
        return 0;
    }

    int64_t class_map() {
        if (tables_[classes_].escape) return TERSOR_CORRUPT;
        row_class_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(all_rows_)]);
        std::unique_ptr<uint8_t[]> kind(new (std::nothrow) uint8_t[static_cast<size_t>(matrices_.count)]);
        if (!row_class_ || !kind) return TERSOR_NO_MEMORY;
        slots_->build(tables_[classes_], precision_);
        int64_t used = 0;  // matrices without elements have no symbol
        for (int64_t m = 0; m < matrices_.count; ++m) used += matrices_.symbols(m) > 0;
        if (int64_t error = map_symbols(kind.get(), used, classes_)) return error;
        int64_t row = 0, next = 0;
        for (int64_t m = 0; m < matrices_.count; row += matrices_.rows[m++]) {
            if (matrices_.symbols(m) == 0) continue;
            uint8_t *of_rows = row_class_.get() + row;
            const uint8_t k = kind[static_cast<size_t>(next++)];
            if (k == classes_) {
                if (int64_t error = map_symbols(of_rows, matrices_.rows[m], classes_ - 1)) return error;
            } else {
                for (int64_t r = 0; r < matrices_.rows[m]; ++r) of_rows[r] = k;
            }
            for (int64_t r = 0; r < matrices_.rows[m]; ++r) class_size_[of_rows[r]] += matrices_.columns[m];
        }
        return 0;
    }

    int64_t one_class(Rows &rows, int c) {
        int64_t left = classes_ > 1 ? class_size_[c] : total_;
        if (left == 0) return 0;
        slots_->build(tables_[c], precision_);
        rows.start(c, tables_[c]);
        alignas(32) uint8_t block[BLOCK];
        while (left > 0) {
            const int64_t n = left < BLOCK ? left : BLOCK;
            if (int64_t error = lanes_.decode(*slots_, block, n)) return error;
            if (int64_t error = rows.take(block, n)) return error;
            left -= n;
        }
        return 0;
    }
};

}  // namespace
}  // namespace tersor::rans

using namespace tersor::rans;

// Decodes a payload of `count` matrices [rows[m], columns[m]]. out[m], scales[m] and levels[m] are addresses.
// scales null: out is int32 and levels, reach are not used. simd: 0 for the portable reference.
// Returns 0 or an error code; after an error the content of `out` means nothing.
TERSOR_API int64_t tersor_rans_decode(const uint8_t *payload, int64_t size, int64_t count, const int64_t *rows,
                                      const int64_t *columns, void *const *out, const float *const *scales,
                                      const float *const *levels, const int64_t *reach, int32_t simd) {
    if (size < 0 || count < 0) return TERSOR_BAD_ARGUMENT;
    const Matrices matrices{count, rows, columns, out, scales, levels, reach};
    const int level = tersor_simd_level();
    return Payload(payload, size, matrices, simd < level ? simd : level).decode();
}
