// The static coder: bytes as they come; headers, tables and states that are valid around words as they come; and
// payloads that were encoded, then damaged. The portable and the SIMD decoder must agree.
#include "../../native/rans_avx512.cpp"
#include "../../native/rans_decode.cpp"
#include "../../native/rans_encode.cpp"
#include "../../native/rans_lanes.cpp"
#include "../../native/rans_rows.cpp"
#include "../../native/rans_table.cpp"

#include "input.h"

namespace {

using Bytes = std::vector<uint8_t>;

// The matrices of a group, and places to decode them to.
struct Group {
    std::vector<int64_t> rows, columns, reach;
    std::vector<fuzz::Exact<int32_t>> out[3];  // by SIMD level; floats have the same size
    std::vector<fuzz::Exact<float>> scales, levels;
    bool floats = false;

    explicit Group(fuzz::Input &input) {
        const int64_t matrices = 1 + input.below(3);
        floats = input.u8() & 1;
        for (int64_t m = 0; m < matrices; ++m) {
            rows.push_back(input.below(9));
            columns.push_back(input.u8() % 6 ? input.below(40) : input.u16() % 600);
            reach.push_back(static_cast<int64_t>(input.below(4)) * 5 - 1);
            for (auto &place : out) place.emplace_back(static_cast<size_t>(rows.back() * columns.back()));
            scales.emplace_back(static_cast<size_t>(rows.back()));
            for (size_t r = 0; r < scales.back().size(); ++r) scales.back()[r] = static_cast<float>(r) + 0.25f;
            levels.emplace_back(reach.back() < 0 ? 0 : static_cast<size_t>(2 * reach.back() + 1));
            for (size_t i = 0; i < levels.back().size(); ++i) levels.back()[i] = static_cast<float>(i) * 0.5f;
        }
    }

    int64_t total() const {
        int64_t sum = 0;
        for (size_t m = 0; m < rows.size(); ++m) sum += rows[m] * columns[m];
        return sum;
    }

    int64_t decode(const Bytes &code, int32_t simd) {
        fuzz::Exact<uint8_t> data(code.data(), code.size());
        std::vector<void *> to;
        std::vector<const float *> scale, level;
        for (size_t m = 0; m < rows.size(); ++m) {
            to.push_back(out[simd][m].get());
            scale.push_back(scales[m].get());
            level.push_back(levels[m].get());
        }
        return tersor_rans_decode(data.get(), data.count(), static_cast<int64_t>(rows.size()), rows.data(), columns.data(),
                                  to.data(), floats ? scale.data() : nullptr, level.data(), reach.data(), simd);
    }

    int64_t compared(const Bytes &code) {
        const int64_t portable = decode(code, 0);
        fuzz::observe(portable);
        for (size_t m = 0; portable == 0 && m < rows.size(); ++m) fuzz::observe_all(out[0][m]);
        for (int32_t level = 1; level <= tersor_simd_level(); ++level) {
            fuzz::must(portable == decode(code, level), "SIMD and portable refuse the same payloads");
            for (size_t m = 0; portable == 0 && m < rows.size(); ++m)
                fuzz::must(out[0][m].same(out[level][m]), "SIMD gives the bits of the portable loop");
        }
        return portable;
    }
};

void put_varint(Bytes &to, uint32_t value) {
    for (; value > 127; value >>= 7) to.push_back(static_cast<uint8_t>(value | 128));
    to.push_back(static_cast<uint8_t>(value));
}

struct Model {
    int32_t first, size;
    bool escape;
    uint8_t parameters[4];
    uint32_t frequency[MAX_SYMBOLS];
};

// A parametric table that is valid, and its bytes. Half of them have few symbols, as a map of classes needs.
Model model(fuzz::Input &input, int64_t precision, bool for_map, int classes, Bytes &to) {
    Model made{};
    made.size = for_map ? classes + 1 : 1 + static_cast<int32_t>(input.below(255));
    made.first = for_map ? 0 : -static_cast<int32_t>(input.below(made.size));
    made.escape = !for_map && input.u8() & 1;
    for (uint8_t &p : made.parameters) p = static_cast<uint8_t>(input.u8());
    fuzz::must(tersor_rans_parametric(made.first, made.size, made.escape, precision, made.parameters, made.frequency) == 0,
               "all parametric tables around zero are valid");
    to.push_back(static_cast<uint8_t>(4 | (made.escape ? 2 : 0)));
    put_varint(to, made.first < 0 ? static_cast<uint32_t>(-2 * made.first - 1) : 0);
    put_varint(to, static_cast<uint32_t>(made.size - 1));
    to.insert(to.end(), made.parameters, made.parameters + 4);
    return made;
}

// A valid beginning, then words as they come: the inner loops run to the end of the words.
void framed(fuzz::Input &input, Group &group) {
    const int lanes = static_cast<int>(input.below(7)), precision = static_cast<int>(input.below(3)), classes = 1 + static_cast<int>(input.below(8));
    Bytes code = {static_cast<uint8_t>(lanes | precision << 3 | (classes - 1) << 5), static_cast<uint8_t>(input.below(4) ? 0 : input.below(25))};
    const uint8_t bypass = code[1];
    bool escape = false;
    for (int t = 0; t < classes; ++t) escape |= model(input, 12 + precision, false, classes, code).escape;
    if (classes > 1) model(input, 12 + precision, true, classes, code);
    if (escape) {
        const uint32_t bytes = input.u8();
        code.push_back(static_cast<uint8_t>(input.below(33)));
        put_varint(code, bytes);
        for (uint32_t i = 0; i < bytes; ++i) code.push_back(static_cast<uint8_t>(input.u8()));
    }
    for (int64_t i = 0; i < (group.total() * bypass + 7) / 8; ++i) code.push_back(static_cast<uint8_t>(i * 37));
    for (int i = 0; i < 1 << lanes; ++i) {
        const uint32_t state = input.u32() | START;
        for (int shift = 0; shift < 32; shift += 8) code.push_back(static_cast<uint8_t>(state >> shift));
    }
    const Bytes words = input.rest();
    code.insert(code.end(), words.begin(), words.end());
    group.compared(code);
}

// One class, no escapes: encoded, decoded, damaged.
void encoded(fuzz::Input &input, Group &group) {
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();
    const int lanes = static_cast<int>(input.below(7)), precision = static_cast<int>(input.below(3));
    Bytes code = {static_cast<uint8_t>(lanes | precision << 3), 0};
    Model made = model(input, 12 + precision, true, static_cast<int>(input.below(250)), code);
    const int64_t total = group.total();
    Bytes symbols(static_cast<size_t>(total));
    for (uint8_t &symbol : symbols) symbol = static_cast<uint8_t>(input.u8() % static_cast<uint32_t>(made.size));
    std::vector<uint32_t> states(MAX_LANES);
    std::vector<uint16_t> words(symbols.size());
    const int64_t table = 0;
    const int64_t used = tersor_rans_encode(symbols.data(), total, 1, &total, &table, made.frequency, 12 + precision, 1 << lanes,
                                            states.data(), words.data(), static_cast<int64_t>(words.size()));
    fuzz::must(used >= 0, "a symbol takes a word at most");
    if (total == 0) code.clear();
    for (int i = 0; total && i < 1 << lanes; ++i)
        for (int shift = 0; shift < 32; shift += 8) code.push_back(static_cast<uint8_t>(states[static_cast<size_t>(i)] >> shift));
    for (size_t i = words.size() - static_cast<size_t>(used); i < words.size(); ++i) {
        code.push_back(static_cast<uint8_t>(words[i]));
        code.push_back(static_cast<uint8_t>(words[i] >> 8));
    }
    fuzz::must(group.compared(code) == 0, "what was encoded is decoded");
    size_t next = 0;
    for (size_t m = 0; !group.floats && m < group.rows.size(); ++m)
        for (size_t i = 0; i < group.out[0][m].size(); ++i) fuzz::must(group.out[0][m][i] == symbols[next++], "the same integers");
    group.compared(fuzz::damaged(patches, code));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    const uint32_t options = input.u8() % 3;
    Group group(input);
    if (options == 0) group.compared(input.rest());
    if (options == 1) framed(input, group);
    if (options == 2) encoded(input, group);
    return 0;
}
