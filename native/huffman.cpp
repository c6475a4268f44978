// Canonical Huffman codes of limited length, and fixed-length codes: docs/format.md, "Tool 4: codebook".
//
// Lengths come from package-merge (Larmore and Hirschberg, 1990): optimal within the limit. The decoder
// looks up the next kLookup bits; the few longer codes are found by comparing with the last code of each
// length. Bits go from the most significant of a byte to the least.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
#include <vector>

#include "tersor.h"

namespace tersor {
namespace {

constexpr int kMaxLength = 20;
constexpr int kLookup = 11;
constexpr int64_t kMaxAlphabet = int64_t{1} << 16;

class BitWriter {
 public:
  BitWriter(uint8_t* out, int64_t capacity) : out_(out), capacity_(capacity) {}
  bool put(uint32_t value, int bits) {  // bits <= 32
    held_ = (held_ << bits) | value;
    count_ += bits;
    while (count_ >= 8) {
      if (used_ == capacity_) return false;
      count_ -= 8;
      out_[used_++] = static_cast<uint8_t>(held_ >> count_);
    }
    return true;
  }
  int64_t finish() {  // bytes used, or -1
    if (count_ > 0 && !put(0, 8 - count_)) return -1;
    return used_;
  }

 private:
  uint8_t* out_;
  int64_t capacity_, used_ = 0;
  uint64_t held_ = 0;
  int count_ = 0;
};

// Bits past the end read as zero; `consumed` tells how many were really taken.
class BitReader {
 public:
  BitReader(const uint8_t* data, int64_t size) : data_(data), size_(size) {}
  void fill() {  // at least 57 bits in `held_` afterwards
    while (count_ <= 56) {
      const uint64_t byte = position_ < size_ ? data_[position_] : 0;
      ++position_;
      held_ |= byte << (56 - count_);
      count_ += 8;
    }
  }
  uint32_t peek(int bits) const { return static_cast<uint32_t>(held_ >> (64 - bits)); }  // 1 .. 32
  void skip(int bits) {
    held_ <<= bits;
    count_ -= bits;
  }
  int held() const { return count_; }
  bool beyond() const { return position_ * 8 - count_ > size_ * 8; }
  // The stream ends here: no byte left, and the bits that fill its last byte are zero.
  bool ended() const {
    const int64_t consumed = position_ * 8 - count_;
    if ((consumed + 7) / 8 != size_) return false;
    const int tail = static_cast<int>(size_ * 8 - consumed);
    return tail == 0 || (data_[size_ - 1] & ((1 << tail) - 1)) == 0;
  }

 private:
  const uint8_t* data_;
  int64_t size_, position_ = 0;
  uint64_t held_ = 0;
  int count_ = 0;
};

// The canonical code: symbols by length, then by number.
struct Canonical {
  int64_t of_length[kMaxLength + 2] = {};  // number of codes
  uint32_t first[kMaxLength + 2] = {};     // first code of each length
  int64_t start[kMaxLength + 2] = {};      // where its symbols start in `sorted`
  std::vector<int32_t> sorted;
  int64_t used = 0;
  int longest = 0;

  // False where the lengths are no complete prefix code. A single symbol has length 1, and needs no bits.
  bool make(const uint8_t* lengths, int64_t symbols) {
    for (int64_t s = 0; s < symbols; ++s) {
      if (lengths[s] > kMaxLength) return false;
      if (lengths[s] == 0) continue;
      ++of_length[lengths[s]];
      ++used;
      longest = std::max(longest, int{lengths[s]});
    }
    uint64_t code = 0;
    for (int b = 1; b <= kMaxLength; ++b) {
      code <<= 1;
      first[b] = static_cast<uint32_t>(code);
      start[b + 1] = start[b] + of_length[b];
      code += static_cast<uint64_t>(of_length[b]);
      if (code > uint64_t{1} << b) return false;
    }
    if (used == 1) return longest == 1;
    if (used != 0 && code != uint64_t{1} << kMaxLength) return false;
    sorted.resize(static_cast<size_t>(used));
    int64_t next[kMaxLength + 2];
    std::copy(start, start + kMaxLength + 2, next);
    for (int64_t s = 0; s < symbols; ++s) {
      if (lengths[s] != 0) sorted[static_cast<size_t>(next[lengths[s]]++)] = static_cast<int32_t>(s);
    }
    return true;
  }
};

int32_t only_symbol(const uint8_t* lengths, int64_t symbols) {
  return static_cast<int32_t>(std::find_if(lengths, lengths + symbols, [](uint8_t b) { return b != 0; }) - lengths);
}

struct Entry {
  int32_t symbol;
  int32_t length;  // 0: the code is longer than the lookup
};

std::vector<Entry> lookup_table(const Canonical& code) {
  std::vector<Entry> table(size_t{1} << kLookup, Entry{0, 0});
  for (int b = 1; b <= std::min(kLookup, code.longest); ++b) {
    for (int64_t i = 0; i < code.of_length[b]; ++i) {
      const size_t at = (size_t{code.first[b]} + static_cast<size_t>(i)) << (kLookup - b);
      const Entry entry{code.sorted[static_cast<size_t>(code.start[b] + i)], b};
      std::fill_n(table.begin() + static_cast<std::ptrdiff_t>(at), size_t{1} << (kLookup - b), entry);
    }
  }
  return table;
}

// One level of package-merge: leaves and pairs of the level before, in order of weight.
struct Level {
  std::vector<int64_t> weight;
  std::vector<uint8_t> is_package;
};

Level next_level(const std::vector<int64_t>& leaves, const std::vector<int64_t>& before, size_t most) {
  Level level;
  size_t leaf = 0, package = 0;
  const size_t packages = before.size() / 2;
  while (level.weight.size() < most && (leaf < leaves.size() || package < packages)) {
    const int64_t pair = package < packages ? before[2 * package] + before[2 * package + 1] : 0;
    const bool take_package = package < packages && (leaf == leaves.size() || pair < leaves[leaf]);
    level.weight.push_back(take_package ? pair : leaves[leaf]);
    level.is_package.push_back(take_package);
    (take_package ? package : leaf) += 1;
  }
  return level;
}

}  // namespace
}  // namespace tersor

// Optimal code lengths of at most `limit` bits for counts >= 0 of `symbols` symbols; 0 for those that do not
// occur, 1 for a symbol that is alone. The counts must sum to less than 2^40. Returns 0 or an error code.
TERSOR_API int64_t tersor_huffman_lengths(const int64_t* counts, int64_t symbols, int32_t limit,
                                          uint8_t* lengths) try {
  using namespace tersor;
  if (symbols < 0 || symbols > kMaxAlphabet || limit < 1 || limit > kMaxLength) return TERSOR_BAD_ARGUMENT;
  std::vector<int64_t> order;
  int64_t total = 0;
  for (int64_t s = 0; s < symbols; ++s) {
    lengths[s] = 0;
    if (counts[s] < 0 || counts[s] >> 40) return TERSOR_BAD_ARGUMENT;
    total += counts[s];
    if (total >> 40) return TERSOR_BAD_ARGUMENT;
    if (counts[s]) order.push_back(s);
  }
  const size_t n = order.size();
  if (n > size_t{1} << limit) return TERSOR_BAD_ARGUMENT;
  if (n < 2) {
    if (n) lengths[order[0]] = 1;
    return 0;
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return counts[a] < counts[b]; });
  std::vector<int64_t> leaves;
  for (const int64_t s : order) leaves.push_back(counts[s]);
  const size_t most = 2 * n - 2;
  std::vector<std::vector<uint8_t>> packages;
  std::vector<int64_t> before;
  for (int32_t i = 0; i < limit; ++i) {
    Level level = next_level(leaves, before, most);
    packages.push_back(std::move(level.is_package));
    before = std::move(level.weight);
  }
  size_t taken = most;
  for (size_t i = packages.size(); i-- > 0 && taken > 0;) {
    const auto& kind = packages[i];
    const size_t here = std::min(taken, kind.size());
    const size_t pairs = static_cast<size_t>(
        std::accumulate(kind.begin(), kind.begin() + static_cast<std::ptrdiff_t>(here), int64_t{0}));
    for (size_t leaf = 0; leaf < here - pairs; ++leaf) ++lengths[order[leaf]];
    taken = 2 * pairs;
  }
  return 0;
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

// Returns the number of bytes written or an error code; a symbol without a code is a bad argument.
TERSOR_API int64_t tersor_huffman_encode(const int32_t* values, int64_t count, const uint8_t* lengths, int64_t symbols,
                                         uint8_t* out, int64_t capacity) try {
  using namespace tersor;
  Canonical code;
  if (symbols < 0 || symbols > kMaxAlphabet || !code.make(lengths, symbols)) return TERSOR_BAD_ARGUMENT;
  std::vector<uint32_t> codes(static_cast<size_t>(symbols));
  for (int b = 1; b <= code.longest && code.used > 1; ++b) {
    for (int64_t i = 0; i < code.of_length[b]; ++i) {
      codes[static_cast<size_t>(code.sorted[static_cast<size_t>(code.start[b] + i)])] =
          code.first[b] + static_cast<uint32_t>(i);
    }
  }
  BitWriter writer(out, capacity);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t s = values[i];
    if (s < 0 || s >= symbols || lengths[s] == 0) return TERSOR_BAD_ARGUMENT;
    if (code.used > 1 && !writer.put(codes[static_cast<size_t>(s)], lengths[s])) return TERSOR_NO_ROOM;
  }
  const int64_t used = writer.finish();
  return used < 0 ? int64_t{TERSOR_NO_ROOM} : used;
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

// Fills `out` with `count` symbols. Returns 0 or an error code.
TERSOR_API int64_t tersor_huffman_decode(const uint8_t* data, int64_t size, const uint8_t* lengths, int64_t symbols,
                                         int32_t* out, int64_t count) try {
  using namespace tersor;
  if (size < 0 || count < 0 || symbols < 0 || symbols > kMaxAlphabet) return TERSOR_BAD_ARGUMENT;
  Canonical code;
  if (!code.make(lengths, symbols)) return TERSOR_CORRUPT;
  if (code.used == 0 && count > 0) return TERSOR_CORRUPT;
  if (code.used < 2) {
    if (count > 0) std::fill(out, out + count, only_symbol(lengths, symbols));
    return size == 0 ? 0 : int64_t{TERSOR_CORRUPT};
  }
  const std::vector<Entry> table = lookup_table(code);
  BitReader reader(data, size);
  for (int64_t i = 0; i < count; ++i) {
    if (reader.held() < kMaxLength) {
      reader.fill();
      if (reader.beyond()) return TERSOR_TRUNCATED;
    }
    const Entry entry = table[reader.peek(kLookup)];
    if (entry.length) {
      out[i] = entry.symbol;
      reader.skip(entry.length);
      continue;
    }
    // The code is complete, so some length matches: the shortest whose codes reach the next bits.
    int b = kLookup + 1;
    while (b < code.longest && reader.peek(b) >= code.first[b] + static_cast<uint64_t>(code.of_length[b])) ++b;
    out[i] = code.sorted[static_cast<size_t>(code.start[b] + (reader.peek(b) - code.first[b]))];
    reader.skip(b);
  }
  if (reader.beyond()) return TERSOR_TRUNCATED;
  return reader.ended() ? 0 : int64_t{TERSOR_CORRUPT};
} catch (const std::bad_alloc&) {
  return TERSOR_NO_MEMORY;
}

// Values of `bits` (0 .. 16) bits each, most significant first. Returns the number of bytes or an error code.
TERSOR_API int64_t tersor_fixed_encode(const int32_t* values, int64_t count, int32_t bits, uint8_t* out,
                                       int64_t capacity) {
  using namespace tersor;
  if (bits < 0 || bits > 16 || count < 0) return TERSOR_BAD_ARGUMENT;
  BitWriter writer(out, capacity);
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >> bits) return TERSOR_BAD_ARGUMENT;
    if (bits && !writer.put(static_cast<uint32_t>(values[i]), bits)) return TERSOR_NO_ROOM;
  }
  const int64_t used = writer.finish();
  return used < 0 ? int64_t{TERSOR_NO_ROOM} : used;
}

// The inverse; the data must have exactly the bytes that it takes. Returns 0 or an error code.
TERSOR_API int64_t tersor_fixed_decode(const uint8_t* data, int64_t size, int32_t bits, int32_t* out, int64_t count) {
  using namespace tersor;
  if (bits < 0 || bits > 16 || count < 0 || count > INT64_MAX / 32) return TERSOR_BAD_ARGUMENT;
  const int64_t needed = (count * bits + 7) / 8;
  if (size != needed) return size < needed ? TERSOR_TRUNCATED : TERSOR_CORRUPT;
  BitReader reader(data, size);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = 0;
    if (bits == 0) continue;
    if (reader.held() < 16) reader.fill();
    out[i] = static_cast<int32_t>(reader.peek(bits));
    reader.skip(bits);
  }
  return reader.ended() ? 0 : int64_t{TERSOR_CORRUPT};
}
