// Symbols to rows: alphabet, escapes, low bits, levels and row scales.
#include "rans_rows.h"

#include <cstring>

namespace tersor::rans {

int64_t Side::escape(const Table &table, int64_t &value) {
    int length = order;
    uint64_t bit, low;
    for (;; ++length) {
        if (!escapes.take(1, bit)) return TERSOR_TRUNCATED;
        if (!bit) break;
        if (length == 33) return TERSOR_CORRUPT;
    }
    if (!escapes.take(length, low)) return TERSOR_TRUNCATED;
    const int64_t beyond = static_cast<int64_t>((uint64_t{1} << length | low) - (uint64_t{1} << order));
    value = beyond & 1 ? table.first - 1 - (beyond >> 1) : int64_t{table.first} + table.size + (beyond >> 1);
    return 0;
}

void Rows::start(int wanted, const Table &table) {
    wanted_ = wanted;
    table_ = &table;
    matrix_ = row_ = column_ = first_row_ = 0;
    prepared_ = -1;
    seek();
}

// Moves on to the next row of the class that has elements, this one included.
void Rows::seek() {
    for (; matrix_ < matrices_.count; first_row_ += matrices_.rows[matrix_++], row_ = 0) {
        if (matrices_.columns[matrix_] == 0) continue;
        if (classes_ == nullptr) {
            if (row_ < matrices_.rows[matrix_]) return;
            continue;
        }
        const int64_t left = matrices_.rows[matrix_] - row_;
        if (left <= 0) continue;
        const uint8_t *here = classes_ + first_row_ + row_;
        const void *found = std::memchr(here, wanted_, static_cast<size_t>(left));
        if (found == nullptr) continue;
        row_ += static_cast<const uint8_t *>(found) - here;
        return;
    }
}

float Rows::level(int64_t q) const {
    const int64_t reach = matrices_.reach[matrix_];
    return q >= -reach && q <= reach ? matrices_.levels[matrix_][q + reach] : static_cast<float>(q);
}

// The levels of the alphabet, once per matrix and class.
void Rows::prepare() {
    if (matrices_.scales != nullptr && bypass_[matrix_] == 0)
        for (int i = 0; i < table_->size; ++i) levels_[i] = level(int64_t{table_->first} + i);
    prepared_ = matrix_;
}

void Rows::put(int64_t index, int64_t q) {
    if (matrices_.scales == nullptr)
        static_cast<int32_t *>(matrices_.out[matrix_])[index] = static_cast<int32_t>(q);
    else
        static_cast<float *>(matrices_.out[matrix_])[index] = level(q) * matrices_.scales[matrix_][row_];
}

void Rows::put_many(int64_t index, const int32_t *q, int64_t n) {
    if (matrices_.scales == nullptr) {
        std::memcpy(static_cast<int32_t *>(matrices_.out[matrix_]) + index, q, static_cast<size_t>(4 * n));
        return;
    }
    float *out = static_cast<float *>(matrices_.out[matrix_]) + index;
    const float scale = matrices_.scales[matrix_][row_];
    if (matrices_.reach[matrix_] < 0)
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(q[i]) * scale;
    else
        for (int64_t i = 0; i < n; ++i) out[i] = level(q[i]) * scale;
}

// A piece of one row of a matrix with low bits.
int64_t Rows::write_low(const uint8_t *symbols, int64_t n) {
    const int64_t at = row_ * matrices_.columns[matrix_] + column_;
    const int b = bypass_[matrix_];
    const int64_t half = int64_t{1} << (b - 1), first = table_->first;
    const int escape = table_->size;  // no other symbol reaches this number
    for (int64_t done = 0; done < n;) {
        int32_t some[256];
        const int64_t count = n - done < 256 ? n - done : 256;
        bool fits = true;
        for (int64_t i = 0; i < count; ++i) {
            int64_t h = first + symbols[done + i];
            uint64_t low;
            if (symbols[done + i] == escape)
                if (int64_t error = side_.escape(*table_, h)) return error;
            if (!side_.low.take(b, low)) return TERSOR_TRUNCATED;
            const int64_t q = h * (int64_t{1} << b) + static_cast<int64_t>(low) - half;
            some[i] = static_cast<int32_t>(q);
            fits &= some[i] == q;
        }
        if (!fits) return TERSOR_CORRUPT;
        put_many(at + done, some, count);
        done += count;
    }
    return 0;
}

// A piece of one row: all symbols at once, then the few escapes over it.
int64_t Rows::write(const uint8_t *symbols, int64_t n) {
    if (bypass_[matrix_]) return write_low(symbols, n);
    const int64_t at = row_ * matrices_.columns[matrix_] + column_;
    if (matrices_.scales == nullptr) {
        int32_t *out = static_cast<int32_t *>(matrices_.out[matrix_]) + at;
        const uint32_t first = static_cast<uint32_t>(table_->first);  // an escape, replaced below, may wrap
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>(first + symbols[i]);
    } else {
        float *out = static_cast<float *>(matrices_.out[matrix_]) + at;
        scale_symbols(levels_, table_->symbols(), symbols, n, matrices_.scales[matrix_][row_], out, simd_);
    }
    if (!table_->escape) return 0;
    for (int64_t i = 0; i < n; ++i) {
        const void *found = std::memchr(symbols + i, table_->size, static_cast<size_t>(n - i));
        if (found == nullptr) break;
        i = static_cast<const uint8_t *>(found) - symbols;
        int64_t q;
        if (int64_t error = side_.escape(*table_, q)) return error;
        if (q < INT32_MIN || q > INT32_MAX) return TERSOR_CORRUPT;
        put(at + i, q);
    }
    return 0;
}

int64_t Rows::take(const uint8_t *symbols, int64_t n) {
    while (n > 0) {
        if (matrix_ != prepared_) prepare();
        const int64_t left = matrices_.columns[matrix_] - column_, piece = left < n ? left : n;
        if (int64_t error = write(symbols, piece)) return error;
        symbols += piece;
        n -= piece;
        column_ += piece;
        if (column_ == matrices_.columns[matrix_]) {
            column_ = 0;
            ++row_;
            seek();
        }
    }
    return 0;
}

}  // namespace tersor::rans
