// The adaptive context coder: bytes as they come, and codes that were encoded, then damaged.
#include "../../native/context.cpp"

#include "input.h"

namespace {

struct Part {
    std::vector<int64_t> shapes;  // of all matrices, 7 numbers each
    size_t count = 0;
};

Part part(fuzz::Input &input) {
    constexpr int64_t taps_of[8] = {1, 1, 4, 9, 9, 25, 3, 70}, trellis_of[4] = {0, 0, 4, 8};
    Part out;
    const int64_t matrices = 1 + input.below(3);
    for (int64_t m = 0; m < matrices; ++m) {
        const uint32_t options = input.u8();
        const int64_t rows = input.below(7), taps = taps_of[options & 7], columns = taps * input.below(taps > 4 ? 3 : 9);
        const int64_t bypass = options & 128 ? input.below(26) : 0;
        if (rows * columns == 0) continue;  // the caller leaves them out
        const int64_t shape[7] = {rows, columns, taps, 1 + input.below(9), bypass, trellis_of[options >> 3 & 3], options >> 5 & 1};
        out.shapes.insert(out.shapes.end(), shape, shape + 7);
        out.count += static_cast<size_t>(rows * columns);
    }
    return out;
}

int64_t decode(const std::vector<uint8_t> &code, Part &part, fuzz::Exact<int32_t> &q) {
    fuzz::Exact<uint8_t> data(code.data(), code.size());
    const int64_t read = tersor_context_decode(data.get(), data.count(), static_cast<int64_t>(part.shapes.size() / 7),
                                               part.shapes.data(), q.get());
    fuzz::observe(read);
    if (read >= 0) fuzz::observe_all(q);
    return read;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    const bool made = input.u8() & 1;
    Part shapes = part(input);
    fuzz::Exact<int32_t> found(shapes.count);
    if (!made) {
        decode(input.rest(), shapes, found);
        return 0;
    }
    bool codable = true;
    for (size_t m = 0; m < shapes.shapes.size(); m += 7) codable &= shapes.shapes[m + 4] <= 24;
    fuzz::Exact<int32_t> q(shapes.count);
    std::vector<uint8_t> code(64 + 32 * shapes.count);
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();  // what `damaged` may read
    for (size_t i = 0; i < q.size(); ++i) q[i] = std::max(input.weight(), -INT32_MAX);
    const int64_t used = tersor_context_encode(q.get(), static_cast<int64_t>(shapes.shapes.size() / 7), shapes.shapes.data(),
                                               code.data(), static_cast<int64_t>(code.size()));
    fuzz::must((used >= 0) == codable, "the encoder refuses bypasses above 24, and nothing else");
    if (used < 0) return 0;
    code.resize(static_cast<size_t>(used));
    fuzz::must(decode(code, shapes, found) >= used && found.same(q), "what was encoded is decoded");
    decode(fuzz::damaged(patches, code), shapes, found);
    return 0;
}
