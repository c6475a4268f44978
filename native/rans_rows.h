// Where decoded symbols go: the rows of one class after another, as integers or as scaled floats.
#ifndef TERSOR_RANS_ROWS_H
#define TERSOR_RANS_ROWS_H

#include "rans.h"

namespace tersor::rans {

// The matrices of a group and their destinations; every array has one entry per matrix.
struct Matrices {
    int64_t count;
    const int64_t *rows, *columns;
    void *const *out;             // int32 or float32 [rows, columns], C order
    const float *const *scales;   // per row; null: the output is int32
    const float *const *levels;   // float32 [2 * reach + 1], the level of each q in -reach .. reach
    const int64_t *reach;         // -1: level(q) = q
    int64_t symbols(int64_t m) const { return rows[m] * columns[m]; }
};

// The side streams that symbols draw from, in the order of the symbols.
struct Side {
    Bits low;      // raw low bits
    Bits escapes;  // Exp-Golomb codes of order `order`
    int order;
    int64_t escape(const Table &table, int64_t &value);  // 0 or an error code
};

// Writes the symbols of one class. classes: class of each row of all matrices, or null when there is one class.
class Rows {
public:
    Rows(const Matrices &matrices, const uint8_t *bypass, const uint8_t *classes, Side &side, int simd)
        : matrices_(matrices), bypass_(bypass), classes_(classes), side_(side), simd_(simd) {}
    void start(int wanted, const Table &table);
    int64_t take(const uint8_t *symbols, int64_t n);  // 0 or an error code

private:
    const Matrices &matrices_;
    const uint8_t *bypass_, *classes_;
    Side &side_;
    int simd_;
    const Table *table_ = nullptr;
    int wanted_ = 0;
    int64_t matrix_ = 0, row_ = 0, column_ = 0;
    int64_t first_row_ = 0;     // number of rows in the matrices before matrix_
    int64_t prepared_ = -1;     // the matrix that levels_ belongs to
    float levels_[MAX_SYMBOLS] = {};

    void seek();
    void prepare();
    float level(int64_t q) const;
    int64_t write_low(const uint8_t *symbols, int64_t n);
    int64_t write(const uint8_t *symbols, int64_t n);
    void put(int64_t index, int64_t q);
    void put_many(int64_t index, const int32_t *q, int64_t n);
};

}  // namespace tersor::rans

#endif
