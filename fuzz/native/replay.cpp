// Runs a target on files, for compilers without libFuzzer: one file an input, or an archive of inputs.
//
//     ./context-replay inputs.bin ...      an archive: for each input its length (4 bytes, little-endian), then its bytes
#include <fstream>
#include <iterator>

#include "input.h"

int main(int count, char **names) {
    int64_t inputs = 0;
    for (int i = 1; i < count; ++i) {
        std::ifstream file(names[i], std::ios::binary);
        const std::vector<char> all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        fuzz::must(file.good() || file.eof(), "the archive can be read");
        const uint8_t *data = reinterpret_cast<const uint8_t *>(all.data());
        fuzz::Input archive(data, all.size());
        while (archive.left() > 0) {
            const size_t size = archive.u32();
            fuzz::must(size <= archive.left(), "the archive is whole");
            const std::vector<uint8_t> input = archive.take(size);
            fuzz::Exact<uint8_t> exact(input.data(), input.size());
            LLVMFuzzerTestOneInput(exact.get(), exact.size());
            ++inputs;
        }
    }
    std::printf("%lld inputs, hash of what was decoded %016llx\n", static_cast<long long>(inputs),
                static_cast<unsigned long long>(fuzz::observed));
    return 0;
}
