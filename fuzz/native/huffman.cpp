// Huffman and fixed-length codes: bytes and lengths as they come, and codes that were encoded, then damaged.
#include "../../native/huffman.cpp"

#include "input.h"

namespace {

using Bytes = std::vector<uint8_t>;

int64_t decode(const Bytes &code, fuzz::Exact<uint8_t> &lengths, fuzz::Exact<int32_t> &out) {
    fuzz::Exact<uint8_t> data(code.data(), code.size());
    const int64_t result =
        tersor_huffman_decode(data.get(), data.count(), lengths.get(), lengths.count(), out.get(), out.count());
    for (size_t i = 0; result == 0 && i < out.size(); ++i)
        fuzz::must(out[i] >= 0 && out[i] < lengths.count(), "symbols are in the alphabet");
    fuzz::observe(result);
    if (result == 0) fuzz::observe_all(out);
    return result;
}

int64_t decode_fixed(const Bytes &code, int32_t bits, fuzz::Exact<int32_t> &out) {
    fuzz::Exact<uint8_t> data(code.data(), code.size());
    const int64_t result = tersor_fixed_decode(data.get(), data.count(), bits, out.get(), out.count());
    for (size_t i = 0; result == 0 && i < out.size(); ++i) fuzz::must(out[i] >= 0 && out[i] >> bits == 0, "values have so many bits");
    fuzz::observe(result);
    if (result == 0) fuzz::observe_all(out);
    return result;
}

void fixed(fuzz::Input &input, bool made) {
    const int32_t bits = static_cast<int32_t>(input.below(made ? 17 : 19));
    fuzz::Exact<int32_t> out(input.u16() % 300);
    if (!made) {
        decode_fixed(input.rest(), bits, out);
        return;
    }
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();
    fuzz::Exact<int32_t> values(out.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(input.u16()) & ((1 << bits) - 1);
    Bytes code((values.size() * static_cast<size_t>(bits) + 7) / 8);
    const int64_t used = tersor_fixed_encode(values.get(), values.count(), bits, code.data(), static_cast<int64_t>(code.size()));
    fuzz::must(used == static_cast<int64_t>(code.size()), "a fixed-length code has a known length");
    fuzz::must(decode_fixed(code, bits, out) == 0 && out.same(values), "what was encoded is decoded");
    decode_fixed(fuzz::damaged(patches, code), bits, out);
}

void huffman(fuzz::Input &input, bool made) {
    const size_t symbols = input.u16() % 700, count = input.u16() % (symbols || !made ? 400 : 1);
    fuzz::Exact<uint8_t> lengths(symbols);
    fuzz::Exact<int32_t> out(count), values(count);
    if (!made) {
        for (size_t s = 0; s < symbols && input.left(); ++s) lengths[s] = static_cast<uint8_t>(input.below(22));
        decode(input.rest(), lengths, out);
        return;
    }
    fuzz::Input patches = input;
    for (int i = 0; i < 14; ++i) input.u8();
    // Lengths that are a code, of counts that may be far from those of the symbols.
    const int32_t limit = 1 + static_cast<int32_t>(input.below(20));
    fuzz::Exact<int64_t> counts(symbols);
    for (size_t i = 0; i < count && symbols; ++i) ++counts[static_cast<size_t>(values[i] = static_cast<int32_t>(input.u16() % symbols))];
    for (size_t i = 0; symbols && i < 8; ++i) counts[input.u16() % symbols] += int64_t{1} << input.below(30);
    const int64_t status = tersor_huffman_lengths(counts.get(), counts.count(), limit, lengths.get());
    if (status < 0) return;
    Bytes code(count * 20 / 8 + 1);
    const int64_t used = tersor_huffman_encode(values.get(), values.count(), lengths.get(), lengths.count(), code.data(),
                                               static_cast<int64_t>(code.size()));
    fuzz::must(used >= 0, "every symbol that occurs has a word");
    code.resize(static_cast<size_t>(used));
    fuzz::must(decode(code, lengths, out) == 0 && out.same(values), "what was encoded is decoded");
    decode(fuzz::damaged(patches, code), lengths, out);
    if (symbols) ++lengths[input.u16() % symbols];
    decode(code, lengths, out);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    const uint32_t options = input.u8();
    (options & 2 ? fixed : huffman)(input, options & 1);
    return 0;
}
