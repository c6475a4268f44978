// Adaptive context coding of quantised weight matrices ("small" mode): docs/format.md, "Adaptive context coder".
//
// Every weight becomes binary decisions: zero?, sign, then a unary magnitude. What precedes it in its kernel
// predicts its value; what precedes it in its row, column, channel and kernel predicts how far off that will be.
// Contexts made of both select adaptive probabilities, which are mixed in the logistic domain by weights that learn
// as they go. Integers only, so encoder and decoder agree on every machine; one template serves both, so that they
// cannot drift apart.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "context_tables.h"
#include "tersor.h"

namespace tersor::context {
namespace {

// What predicts a value: nothing, the taps before it in its kernel, or (bases without kernels) this row and the two
// above.
enum class Neighbours { kNone, kKernel, kPlane };

template <class Coder>
class Codec {
  public:
    explicit Codec(Coder &coder) : coder_(coder) {}

    // Codes one matrix; false where a magnitude is beyond what an encoder writes.
    bool matrix(Tables &tables, History &history, const Layout &layout, int32_t *q) {
        t_ = &tables;
        if (layout.taps > 1) return rows<Neighbours::kKernel>(history, layout, q);
        return layout.basis ? rows<Neighbours::kPlane>(history, layout, q) : rows<Neighbours::kNone>(history, layout, q);
    }

  private:
    template <Neighbours kNear>
    bool rows(History &history, const Layout &layout, int32_t *q) {
        const int64_t columns = layout.columns, taps = layout.taps, width = layout.width;
        const int64_t channels = columns / taps;
        Surroundings s(columns, channels);
        if (!layout.basis) history.begin(s, channels, taps);
        std::vector<int32_t> factors(layout.basis ? 0 : static_cast<size_t>(layout.rows));
        const Trellis trellis = trellis_of(layout.trellis);
        for (int64_t r = 0; r < layout.rows; ++r, q += columns) {
            int16_t *here = s.row(r);
            const int16_t *above = s.row(r + 2), *above2 = s.row(r + 1);
            int32_t found = 0, expected = 0, factor = 4096, left_error = 0;
            int state = 0;
            int64_t c = 0;
            for (int64_t channel = 0; channel < channels; ++channel) {
                int32_t kernel_found = 0, kernel_expected = 0, kernel_error = s.row_error;
                int32_t &channel_error = s.channel_error[static_cast<size_t>(channel)];
                int32_t &channel_size = s.channel_size[static_cast<size_t>(channel)];
                int64_t x = 0, y = 0;  // position in the kernel
                for (int64_t tap = 0; tap < taps; ++tap, ++c) {
                    // The value to expect, in 1/256.
                    int32_t near[6] = {0, 0, 0, 0, 0, 0};
                    int place = 0, mu = 0, norm = 8;
                    uint32_t *taste = t_->taste[0];
                    if (kNear == Neighbours::kKernel) {
                        place = place_of(x, y, width);
                        taste = t_->taste[place];
                        if (x > 0) near[0] = here[c - 1];
                        if (x > 1) near[1] = here[c - 2];
                        if (y > 0) {
                            near[2] = here[c - width];
                            if (x > 0) near[3] = here[c - width - 1];
                            if (x < width - 1) near[4] = here[c - width + 1];
                            if (y > 1) near[5] = here[c - 2 * width];
                        }
                    } else if (kNear == Neighbours::kPlane) {
                        near[0] = here[c - 1], near[1] = here[c - 2], near[2] = above[c];
                        near[3] = above[c - 1], near[4] = above[c + 1], near[5] = above2[c];
                    }
                    if (kNear != Neighbours::kNone) {
                        uint32_t sum = 0;
                        for (int i = 0; i < 6; ++i) sum += taste[i] * static_cast<uint32_t>(near[i]), norm += near[i] * near[i];
                        mu = std::min(4095, std::max(-4095, static_cast<int32_t>(sum) >> 9));
                    }

                    // The error to expect, in 1/128.
                    int32_t &column_error = s.column_error[static_cast<size_t>(c)];
                    if ((c & 7) == 0) factor = std::min(1 << 18, ((found + 256) * 4096) / (expected + 256));
                    const int block = static_cast<int>(tap & 63);
                    if (block == 0) kernel_found = kernel_expected = 0;
                    const int32_t usual = (column_error + channel_error) >> 1;
                    const int32_t scaled = static_cast<int32_t>(std::min<int64_t>(4095, std::max<int64_t>(1, (int64_t{usual} * factor) >> 16)));
                    const int32_t excess = ((kernel_found - kernel_expected) * kBlock.of[block]) >> 16;
                    const int32_t features[4] = {scaled, excess, std::abs(mu) >> 1, left_error};
                    uint32_t total = 0;
                    int32_t energy = 8192;
                    for (int i = 0; i < 4; ++i) {
                        total += t_->spread[i] * static_cast<uint32_t>(features[i]);
                        energy += features[i] * features[i];
                    }
                    const int32_t guess = static_cast<int32_t>(total) >> 16;
                    const int sigma = std::min(2047, std::max(4, guess));

                    // The contexts of the magnitude.
                    const int sigma_level = kFine.of[sigma], scaled_level = kFine.of[std::min(scaled, 2047)];
                    const int row_level = level(s.row_size);
                    const int quantizer = layout.trellis ? trellis.quantizer[state] : 0;
                    const int pull = std::min(15, std::max(-15, (mu + 16) >> 5));
                    const int scaled_base = kOffset[0] + scaled_level + 512 * quantizer;
                    const int kernel_base = kOffset[1] + level(kernel_error);
                    context_[0] = scaled_base + 32 * (std::abs(pull) >> 1);
                    context_[1] = kNear != Neighbours::kNone
                                      ? kernel_base + 16 * std::abs(pull)
                                      : kOffset[1] + 512 +
                                            ((steps(here[c - 1]) * 4 + steps(here[c - 2])) * 4 + steps(above[c])) * 4 + steps(above2[c]);
                    context_[2] = kOffset[2] + 16 * row_level + level(channel_size);
                    context_[3] = kOffset[3] + 16 * sigma_level + row_level;
                    place_ = place + 16 * quantizer;
                    half_level_ = sigma_level >> 1;

                    int32_t magnitude = 0, low = 0;
                    int negative = 0;
                    if (!Coder::kDecodes) split(q[c], layout.bypass, magnitude, negative, low);
                    if (decide(0, magnitude > 0)) {
                        const int ratio = std::min(31, std::max(-31, (mu * kFine.inverse[sigma_level]) >> 15)) + 32;
                        sign_context_[0] = kSignOffset[0] + ratio;
                        sign_context_[2] = kSignOffset[2] + 32 * (pull + 16) + sigma_level;
                        if (kNear == Neighbours::kNone) {
                            const int pair = 9 * sign_of(here[c - 1]) + 3 * sign_of(above[c]);
                            sign_context_[1] = kSignOffset[1] + pair + sign_of(above2[c]);
                            sign_context_[3] = kSignOffset[3] + pair + sign_of(here[c - 2]);
                        } else {
                            sign_context_[1] = kSignOffset[1] + 16 * ratio + place;
                            sign_context_[3] = kSignOffset[3] + 16 * (pull + 16) + place;
                        }
                        negative = decide_sign(negative);
                        // From here on the prediction counts in the direction of the sign.
                        const int along = (negative ? -pull : pull) + 16;
                        context_[0] = scaled_base + 32 * (along >> 1);
                        if (kNear != Neighbours::kNone) context_[1] = kernel_base + 16 * along;
                        if (!code_magnitude(magnitude)) return false;
                    } else {
                        magnitude = 0;
                    }
                    if (!join(layout.bypass, magnitude, negative, low, q[c])) return false;

                    // Everything takes up the value.
                    const int half_steps = std::min(magnitude, 16) * 2 - (magnitude > 0 ? quantizer : 0);
                    const int kept = std::min(half_steps, 15);
                    here[c] = static_cast<int16_t>(negative ? -kept : kept);
                    const int32_t error = (negative ? -half_steps : half_steps) * 128 - mu;
                    const int32_t off = std::min(std::abs(error) >> 1, 1920);
                    if (kNear != Neighbours::kNone) {
                        const int32_t gain = (std::min(2047, std::max(-2047, error)) * kTaste.of[norm]) >> 6;
                        for (int i = 0; i < 6; ++i) taste[i] += static_cast<uint32_t>((gain * near[i]) >> 7);
                    }
                    const int32_t surprise = std::min(512, std::max(-512, off - guess));
                    const int32_t gain = (surprise * kSpread.of[std::min(energy >> 11, 4095)]) >> 8;
                    for (int i = 0; i < 4; ++i) t_->spread[i] += static_cast<uint32_t>((gain * features[i]) >> 12);
                    left_error = std::min(off, 896);
                    found += off, expected += usual >> 4;
                    if (std::max(found, expected) > 128000) found >>= 1, expected >>= 1;
                    kernel_found += off, kernel_expected += scaled;
                    const int32_t size = std::min(magnitude, 16) << 11, miss = off << 4;
                    adapt(s.row_size, size, c, 120);
                    if (kNear != Neighbours::kNone) {
                        adapt(s.row_error, miss, c, 120);
                        adapt(kernel_error, miss, block, 60);
                    }
                    adapt(channel_size, size, r * taps + tap, 250);
                    adapt(channel_error, miss, r * taps + tap, 250);
                    adapt(column_error, miss, r, 100);
                    if (layout.trellis) state = trellis.next[state][q[c] & 1];
                    if (++x == width) x = 0, ++y;
                }
            }
            if (!layout.basis) factors[static_cast<size_t>(r)] = std::min(64000, found * 1024 / std::max(1, expected));
        }
        if (!layout.basis) history.factors.swap(factors);
        return true;
    }

    // An integer as magnitude and sign of what is coded, and the low bits that are not (encoder).
    static void split(int32_t q, int bypass, int32_t &magnitude, int &negative, int32_t &low) {
        int32_t value = q;
        if (bypass) {
            const int64_t shifted = int64_t{q} + (int64_t{1} << (bypass - 1));
            value = static_cast<int32_t>(shifted >> bypass);
            low = static_cast<int32_t>(shifted & ((int64_t{1} << bypass) - 1));
        }
        negative = value < 0;
        magnitude = negative ? -value : value;
    }

    // Codes the low bits; the decoder's integer. False beyond int32.
    bool join(int bypass, int32_t magnitude, int negative, int32_t low, int32_t &q) {
        int64_t value = negative ? -magnitude : magnitude;
        if (bypass) {
            int32_t bits = 0;
            for (int b = bypass - 1; b >= 0; --b) bits |= coder_.bit((low >> b) & 1, 32768) << b;
            value = value * (int64_t{1} << bypass) + bits - (int64_t{1} << (bypass - 1));
            if (value > INT32_MAX || value < INT32_MIN) return false;
        }
        if (Coder::kDecodes) q = static_cast<int32_t>(value);
        return true;
    }

    // One binary decision: the inputs weighted by the sum of three sets, which all learn from the error.
    int code(Slot *const *slots, RatedSet &a, Set &b, Set &c, int value) {
        int32_t input[4], sum = 0;
        for (int i = 0; i < 4; ++i) input[i] = slots[i]->stretched();
        for (int i = 0; i < 4; ++i) sum += (static_cast<int32_t>(a.weight[i] + b.weight[i] + c.weight[i]) >> 16) * input[i];
        const int x = std::min(2047, std::max(-2047, sum >> 12));
        const int bit = coder_.bit(value, probability(x));
        const int32_t error = (((bit ? 65535 : 0) - kLogistic.squash[x + 2048]) * a.rate() + 32768) >> 16;
        for (Set *set : {static_cast<Set *>(&a), &b, &c})
            for (int i = 0; i < 4; ++i) set->weight[i] += static_cast<uint32_t>(input[i] * error);
        for (int i = 0; i < 4; ++i) slots[i]->update(bit);
        return bit;
    }

    int decide(int bin, int value) {
        Slot *base = t_->magnitude + (bin >> 2) * (4 * kMagnitudeSlots) + (bin & 3);
        Slot *slots[4];
        for (int i = 0; i < 4; ++i) slots[i] = base + 4 * context_[i];
        return code(slots, t_->by_bin[bin], t_->by_place[bin][place_], t_->by_level[bin][half_level_], value);
    }

    int decide_sign(int value) {
        Slot *slots[4];
        for (int i = 0; i < 4; ++i) slots[i] = t_->sign + sign_context_[i];
        return code(slots, t_->by_bin[kSigns], t_->by_place[kSigns][place_], t_->by_level[kSigns][half_level_], value);
    }

    // The magnitude, known to be at least 1: unary up to kUnary, then Exp-Golomb.
    bool code_magnitude(int32_t &magnitude) {
        int32_t m = 1;
        while (m <= kUnary && !decide(m, magnitude == m)) ++m;
        if (m <= kUnary) {
            magnitude = m;
            return true;
        }
        const uint32_t rest = static_cast<uint32_t>(magnitude - kUnary);  // at least 1
        int e = 0;
        for (;; ++e) {
            if (e >= 31) return false;
            AdaptiveBit &model = t_->escape_prefix[e];
            const int more = coder_.bit(e < 31 && (rest >> e) > 1, model.probability());
            model.update(more != 0);
            if (!more) break;
        }
        uint32_t u = 1;
        for (int i = e - 1; i >= 0; --i) u = (u << 1) | static_cast<uint32_t>(coder_.bit((rest >> i) & 1, 32768));
        if (u > static_cast<uint32_t>(INT32_MAX - kUnary)) return false;
        magnitude = static_cast<int32_t>(u) + kUnary;
        return true;
    }

    Coder &coder_;
    Tables *t_ = nullptr;
    int context_[4], sign_context_[4];
    int place_ = 0, half_level_ = 0;
};

template <class Coder>
int64_t run(Coder &coder, int32_t *q, int64_t matrices, const int64_t *shape) {
    std::unique_ptr<Tables> tables[2];  // of weights, of bases
    History history;
    Codec<Coder> codec(coder);
    for (int64_t m = 0; m < matrices; ++m, shape += kShape) {
        const Layout layout(shape);
        if (!layout.valid) return TERSOR_BAD_ARGUMENT;
        std::unique_ptr<Tables> &own = tables[layout.basis];
        if (!own) own.reset(new Tables());
        if (!codec.matrix(*own, history, layout, q)) return TERSOR_CORRUPT;
        q += layout.rows * layout.columns;
    }
    return 0;
}

}  // namespace
}  // namespace tersor::context

// q: the matrices one after the other; shape [matrices, 7]: rows, columns, taps, width, bypass, states of the
// trellis, 1 for a basis. Returns the number of bytes written or an error code.
TERSOR_API int64_t tersor_context_encode(const int32_t *q, int64_t matrices, const int64_t *shape, uint8_t *out,
                                         int64_t capacity) try {
    using namespace tersor::context;
    tersor::BitWriter writer;
    const int64_t status = run(writer, const_cast<int32_t *>(q), matrices, shape);  // a BitWriter only reads q
    if (status != 0) return status == TERSOR_CORRUPT ? TERSOR_BAD_ARGUMENT : status;
    const std::vector<uint8_t> &bytes = writer.coder.finish();
    if (static_cast<int64_t>(bytes.size()) > capacity) return TERSOR_NO_ROOM;
    if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
    return static_cast<int64_t>(bytes.size());
} catch (const std::bad_alloc &) {
    return TERSOR_NO_MEMORY;
}

// Returns the number of bytes consumed (at most 8 more than `size`) or an error code.
TERSOR_API int64_t tersor_context_decode(const uint8_t *data, int64_t size, int64_t matrices, const int64_t *shape,
                                         int32_t *q) try {
    using namespace tersor::context;
    tersor::BitReader reader(data, static_cast<size_t>(size));
    const int64_t status = run(reader, q, matrices, shape);
    return status != 0 ? status : static_cast<int64_t>(reader.coder.position);
} catch (const std::bad_alloc &) {
    return TERSOR_NO_MEMORY;
}
