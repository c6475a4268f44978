// Linear maps and the trellis: the portable and the SIMD kernel must give the same bits, whatever the sizes.
#include "../../native/mix.cpp"
#include "../../native/trellis.cpp"

#include "input.h"

namespace {

double number(fuzz::Input &input) { return input.u8() & 3 ? static_cast<double>(input.weight()) / 64.0 : 0.0; }

void mix(fuzz::Input &input) {
    const int64_t outer = input.below(6), terms = input.below(70), inner = input.below(5), outputs = input.below(200);
    fuzz::Exact<double> in(static_cast<size_t>(outer * terms * inner)), basis(static_cast<size_t>(terms * outputs));
    fuzz::Exact<double> out(static_cast<size_t>(outer * outputs * inner)), portable(out.size());
    for (size_t i = 0; i < in.size() && input.left(); ++i) in[i] = number(input);
    for (size_t i = 0; i < basis.size(); ++i) basis[i] = input.left() ? number(input) : static_cast<double>(i % 7) - 3.0;
    const int64_t lines = outer * inner, first = input.below(lines + 1), last = input.below(lines + 3);
    const int64_t wrong = input.below(16) == 1 ? 1 : 0;  // sizes that do not fit must be refused
    int64_t status[2];
    for (int32_t simd = 0; simd < 2; ++simd)
        status[simd] = tersor_mix(in.get(), in.count(), basis.get(), basis.count(), (simd ? out : portable).get(), out.count(), outer,
                                  terms + wrong, inner, outputs, first, last, simd);
    fuzz::must(status[0] == status[1] && out.same(portable), "SIMD gives the bits of the portable loop");
    for (size_t i = 0; i < out.size(); ++i) fuzz::observe(static_cast<int64_t>(out[i] * 4096.0));
}

void trellis(fuzz::Input &input) {
    const int64_t rows = input.below(20), columns = input.below(40);
    const int states = input.u8() & 1 ? 4 : 8;
    fuzz::Exact<int32_t> q(static_cast<size_t>(rows * columns));
    fuzz::Exact<float> step(static_cast<size_t>(rows)), out(q.size());
    for (size_t i = 0; i < q.size(); ++i) q[i] = input.weight();
    for (size_t i = 0; i < step.size(); ++i) step[i] = static_cast<float>(input.u8());
    fuzz::must(tersor_trellis_restore(q.get(), rows, columns, states, step.get(), out.get()) == 0, "all integers have a level");
    fuzz::observe_all(out);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fuzz::Input input(bytes, size);
    (input.u8() % 4 ? mix : trellis)(input);
    return 0;
}
