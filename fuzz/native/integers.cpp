// The integer code of side information: bytes as they come, and codes that were encoded, then damaged.
#include "../../native/integers.cpp"

#include "input.h"

namespace {

struct List {
    int64_t context, count;
};

// All lists in a row, as a reader takes them; the first error ends it. `values`: what must be found, or null.
void decode(const std::vector<uint8_t> &code, const std::vector<List> &lists, const int64_t *values) {
    fuzz::Exact<uint8_t> data(code.data(), code.size()), state(static_cast<size_t>(tersor_integers_state_size()));
    tersor_integers_start(data.get(), data.count(), state.get());
    for (const List &list : lists) {
        fuzz::Exact<int64_t> out(static_cast<size_t>(list.count));
        const int64_t read = tersor_integers_decode(data.get(), data.count(), state.get(), list.context, list.count, out.get());
        fuzz::must(read >= 0 || values == nullptr, "what was encoded can be decoded");
        fuzz::observe(read);
        if (read < 0) return;
        fuzz::observe_all(out);
        for (int64_t i = 0; i < list.count; ++i) {
            if (values) fuzz::must(out[static_cast<size_t>(i)] == *values++, "what was encoded is decoded");
            fuzz::must(std::llabs(out[static_cast<size_t>(i)]) < int64_t{1} << 41, "integers have 41 bits");
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    const uint32_t options = input.u8();
    std::vector<List> lists(1 + input.below(8));
    for (List &list : lists) list = {input.below((options & 3) == 2 ? 40 : 32), input.below(60)};
    if (!(options & 1)) {
        decode(input.rest(), lists, nullptr);
        return 0;
    }
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();
    std::vector<int64_t> values;
    std::vector<uint8_t> contexts;
    for (const List &list : lists)
        for (int64_t i = 0; i < list.count; ++i) {
            values.push_back(int64_t{input.weight()} * (int64_t{1} << (input.left() % 11)));
            contexts.push_back(static_cast<uint8_t>(list.context));
        }
    std::vector<uint8_t> code(64 + 116 * values.size());
    const int64_t used = tersor_integers_encode(values.data(), contexts.data(), static_cast<int64_t>(values.size()), code.data(),
                                                static_cast<int64_t>(code.size()));
    if (used < 0) return 0;
    code.resize(static_cast<size_t>(used));
    decode(code, lists, values.data());
    decode(fuzz::damaged(patches, code), lists, nullptr);
    return 0;
}
