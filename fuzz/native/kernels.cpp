// The adaptive coder of kernel indexes: bytes as they come, and codes that were encoded, then damaged.
#include "../../native/kernels_index.cpp"

#include "input.h"

namespace {

struct Part {
    std::vector<int64_t> shapes;  // of all matrices, 6 numbers each
    std::vector<int64_t> sizes;   // of the codebook of each index
};

Part part(fuzz::Input &input) {
    constexpr int64_t size_of[8] = {1, 2, 3, 4, 7, 16, 17, 70};
    Part out;
    const int64_t matrices = 1 + input.below(4);
    int64_t size = 0;
    for (int64_t m = 0; m < matrices; ++m) {
        const uint32_t options = input.u8();
        const bool fresh = m == 0 || options & 8;
        if (fresh) size = size_of[options & 7];
        const int64_t rows = input.below(12), columns = rows ? input.below(12) : 0, decay = input.below(257);
        const int64_t shape[6] = {rows, columns, size, decay, fresh, options >> 4 & 1};
        out.shapes.insert(out.shapes.end(), shape, shape + 6);
        out.sizes.insert(out.sizes.end(), static_cast<size_t>(rows * columns), size);
    }
    return out;
}

int64_t decode(const std::vector<uint8_t> &code, Part &part, fuzz::Exact<int32_t> &gain, fuzz::Exact<int32_t> &index) {
    fuzz::Exact<uint8_t> data(code.data(), code.size());
    const int64_t read = tersor_kernels_decode(data.get(), data.count(), gain.get(),
                                               static_cast<int64_t>(part.shapes.size() / 6), part.shapes.data(), index.get());
    for (size_t i = 0; read >= 0 && i < index.size(); ++i)
        fuzz::must(index[i] >= 0 && index[i] < part.sizes[i], "indexes are in their codebook");
    fuzz::observe(read);
    if (read >= 0) fuzz::observe_all(index);
    return read;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    const uint32_t options = input.u8();
    Part shapes = part(input);
    fuzz::Exact<int32_t> gain(shapes.sizes.size()), index(gain.size()), found(gain.size());
    for (size_t i = 0; i < gain.size(); ++i) gain[i] = options & 2 ? input.weight() : static_cast<int32_t>(i % 3) - 1;
    if (!(options & 1)) {
        decode(input.rest(), shapes, gain, found);
        return 0;
    }
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();
    size_t next = 0;
    for (size_t m = 0; m < shapes.shapes.size(); m += 6)
        for (int64_t i = 0; i < shapes.shapes[m] * shapes.shapes[m + 1]; ++i, ++next)
            if (!shapes.shapes[m + 5] || gain[next] != 0) index[next] = static_cast<int32_t>(input.u8() % shapes.sizes[next]);
    std::vector<uint8_t> code(64 + 32 * index.size());
    const int64_t used = tersor_kernels_encode(index.get(), gain.get(), static_cast<int64_t>(shapes.shapes.size() / 6),
                                               shapes.shapes.data(), code.data(), static_cast<int64_t>(code.size()));
    fuzz::must(used >= 0, "all indexes have a code");
    code.resize(static_cast<size_t>(used));
    fuzz::must(decode(code, shapes, gain, found) >= used && found.same(index), "what was encoded is decoded");
    decode(fuzz::damaged(patches, code), shapes, gain, found);
    return 0;
}
