// Adaptive coding of kernel indexes: docs/format-kernels.md, "Adaptive index coder".
//
// An index is a path through a binary tree, most significant bit first. The probability of each branch is mixed
// in the logistic domain (mixing.h) from adaptive ones in six contexts: none, the kernel's gain, and what indexes
// the row and the input channel had before. All begin with a geometric law, since encoders put the likeliest
// kernels first: a few thousand indexes are too few to learn a table from nothing.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "binary.h"
#include "mixing.h"
#include "tersor.h"

namespace tersor {
namespace {

constexpr int kInputs = 6;
constexpr int kClasses = 16;     // of every context but the first
constexpr int kDepths = 16;      // at most 65,536 kernels
constexpr uint32_t kTrust = 12;  // how many bits the law counts as
constexpr int64_t kMeanLimit = 30;

struct Mixers {
  Mixer<kInputs> of[kDepths];
  Mixers() {
    for (Mixer<kInputs>& mixer : of) std::fill(mixer.weight, mixer.weight + kInputs, 65536 / kInputs);
  }
};

// What adapts to one codebook: a slot for every node (path with a 1 in front), and 16 in each further context.
struct Book {
  int64_t size = 0;
  int depth = 0;
  std::vector<Slot> slots[kInputs];

  void reset(int64_t k, int64_t decay) {
    size = k;
    depth = 0;
    while ((int64_t{1} << depth) < k) ++depth;
    const size_t nodes = size_t{1} << depth;
    for (int i = 0; i < kInputs; ++i) slots[i].assign(i ? nodes * kClasses : nodes, Slot());
    std::vector<uint64_t> below(static_cast<size_t>(k) + 1, 0);
    uint64_t weight = uint64_t{1} << 24;
    for (size_t j = 0; j < static_cast<size_t>(k); ++j) {
      below[j + 1] = below[j] + weight;
      weight = std::max<uint64_t>(weight * static_cast<uint64_t>(decay) >> 8, 256);
    }
    for (int level = 0; level < depth; ++level) {
      const int64_t span = int64_t{1} << (depth - level);
      for (int64_t i = 0; i < (int64_t{1} << level); ++i) {
        const int64_t low = i * span, middle = low + span / 2, high = std::min(low + span, k);
        if (middle >= k) break;
        const uint64_t ones = below[static_cast<size_t>(high)] - below[static_cast<size_t>(middle)];
        const uint64_t all = below[static_cast<size_t>(high)] - below[static_cast<size_t>(low)];
        const uint32_t state = static_cast<uint32_t>((ones << 22) / all) << 10 | kTrust;
        const size_t node = static_cast<size_t>((int64_t{1} << level) + i);
        slots[0][node].state = state;
        for (int input = 1; input < kInputs; ++input) {
          for (size_t c = 0; c < kClasses; ++c) slots[input][node * kClasses + c].state = state;
        }
      }
    }
  }
};

template <class Coder>
class Codec {
 public:
  Codec(Coder& coder) : coder_(coder) {}

  // One matrix [rows, columns] of indexes. With gains (not null) those of gain 0 are left out, and are 0.
  void matrix(Book& book, int32_t* index, const int32_t* gain, int64_t rows, int64_t columns) {
    std::vector<int32_t> column_mean(static_cast<size_t>(columns), 1024), above(static_cast<size_t>(columns), 0);
    const int coarse = std::max(0, book.depth - 4);
    for (int64_t r = 0; r < rows; ++r) {
      int32_t row_mean = 1024, left = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t i = r * columns + c;
        const size_t column = static_cast<size_t>(c);
        const int64_t g = gain ? gain[i] : 1;
        if (g == 0) {
          if (Coder::kDecodes) index[i] = 0;
          continue;
        }
        const size_t context[kInputs] = {
            0, static_cast<size_t>(std::min<int64_t>(g < 0 ? -g : g, 15)), static_cast<size_t>(left >> coarse),
            static_cast<size_t>(above[column] >> coarse), static_cast<size_t>(row_mean >> 7),
            static_cast<size_t>(column_mean[column] >> 7)};
        const int32_t value = one(book, index[i], context);
        if (Coder::kDecodes) index[i] = value;
        left = above[column] = value;
        const int32_t position = static_cast<int32_t>((int64_t{value} << 11) / book.size);
        row_mean += ((position - row_mean) * kReciprocal.of[std::min(c, kMeanLimit)]) >> 16;
        column_mean[column] += ((position - column_mean[column]) * kReciprocal.of[std::min(r, kMeanLimit)]) >> 16;
      }
    }
  }

 private:
  int32_t one(Book& book, int32_t value, const size_t* context) {
    size_t node = 1;
    int64_t low = 0;  // the smallest index below the node
    for (int place = book.depth - 1; place >= 0; --place) {
      const int64_t middle = low + (int64_t{1} << place);
      if (middle >= book.size) {  // nothing on that side: nothing to tell
        node *= 2;
        continue;
      }
      Slot* slots[kInputs];
      int inputs[kInputs];
      for (size_t i = 0; i < kInputs; ++i) {
        slots[i] = &book.slots[i][i ? node * kClasses + context[i] : node];
        inputs[i] = slots[i]->stretched();
      }
      Mixer<kInputs>& mixer = mixers_.of[book.depth - 1 - place];
      const int x = mixer.logit(inputs);
      const int bit = coder_.bit(value >> place & 1, probability(x));
      mixer.update(inputs, x, bit);
      for (Slot* slot : slots) slot->update(bit);
      node = node * 2 + static_cast<size_t>(bit);
      if (bit) low = middle;
    }
    return static_cast<int32_t>(low);
  }

  Coder& coder_;
  Mixers mixers_;
};

template <class Coder>
int64_t run(Coder& coder, int32_t* index, const int32_t* gain, int64_t matrices, const int64_t* shape) {
  Codec<Coder> codec(coder);
  Book book;
  for (int64_t m = 0; m < matrices; ++m, shape += 6) {
    const int64_t rows = shape[0], columns = shape[1], size = shape[2], decay = shape[3];
    const bool fresh = shape[4] != 0, has_gains = shape[5] != 0;
    if (rows < 0 || columns < 0 || size < 1 || size > 65536 || decay < 0 || decay > 256) return TERSOR_BAD_ARGUMENT;
    if (fresh) book.reset(size, decay);
    if (book.size != size) return TERSOR_BAD_ARGUMENT;
    if (!Coder::kDecodes) {
      for (int64_t i = 0; i < rows * columns; ++i) {
        if (index[i] < 0 || index[i] >= size) return TERSOR_BAD_ARGUMENT;
      }
    }
    codec.matrix(book, index, has_gains ? gain : nullptr, rows, columns);
    index += rows * columns;
    gain += rows * columns;
  }
  return 0;
}

}  // namespace
}  // namespace tersor

// index, gain: the matrices one after the other; shape [matrices, 6]: rows, columns, kernels in the codebook, decay
// of the law, whether a new codebook begins, whether there are gains. Returns the bytes written or an error code.
TERSOR_API int64_t tersor_kernels_encode(const int32_t* index, const int32_t* gain, int64_t matrices,
                                         const int64_t* shape, uint8_t* out, int64_t capacity) try {
  using namespace tersor;
  BitWriter writer;
  const int64_t status = run(writer, const_cast<int32_t*>(index), gain, matrices, shape);  // a BitWriter only reads
  if (status != 0) return status;
  const std::vector<uint8_t>& bytes = writer.coder.finish();
  if (static_cast<int64_t>(bytes.size()) > capacity) return TERSOR_NO_ROOM;
  if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
  return static_cast<int64_t>(bytes.size());
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

// Returns the bytes consumed (at most 8 more than `size`) or an error code.
TERSOR_API int64_t tersor_kernels_decode(const uint8_t* data, int64_t size, const int32_t* gain, int64_t matrices,
                                         const int64_t* shape, int32_t* index) try {
  using namespace tersor;
  BitReader reader(data, static_cast<size_t>(size));
  const int64_t status = run(reader, index, gain, matrices, shape);
  return status != 0 ? status : static_cast<int64_t>(reader.coder.position);
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}
