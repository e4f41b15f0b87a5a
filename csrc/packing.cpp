#include "packing.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>
#include <string>

namespace davinci {
namespace {

constexpr std::int64_t kMaxSeqLength = 1 << 24;  // four bitmap levels of 64 each
constexpr std::int64_t kNone = -1;

// A set of integers in [0, 2^24) with "smallest member >= x" in a handful of instructions:
// bit i of level k says whether anything is set in word i of level k - 1.
class OrderedSet {
 public:
  explicit OrderedSet(std::int64_t size) {
    do {
      size = (size + 63) / 64;
      levels_.emplace_back(static_cast<std::size_t>(size), 0);
    } while (size > 1);
  }

  void insert(std::int64_t value) {
    for (auto& level : levels_) {
      level[word(value)] |= bit(value);
      value /= 64;
    }
  }

  void erase(std::int64_t value) {
    for (auto& level : levels_) {
      level[word(value)] &= ~bit(value);
      if (level[word(value)] != 0) return;
      value /= 64;
    }
  }

  std::int64_t first_at_or_after(std::int64_t value) const {
    for (std::size_t k = 0; k < levels_.size(); ++k, value = value / 64 + 1) {
      if (word(value) >= levels_[k].size()) return kNone;
      const std::uint64_t rest = levels_[k][word(value)] & (~std::uint64_t{0} << (value % 64));
      if (rest == 0) continue;
      std::int64_t found = value / 64 * 64 + std::countr_zero(rest);
      while (k-- > 0) found = found * 64 + std::countr_zero(levels_[k][static_cast<std::size_t>(found)]);
      return found;
    }
    return kNone;
  }

 private:
  static std::size_t word(std::int64_t value) { return static_cast<std::size_t>(value / 64); }
  static std::uint64_t bit(std::int64_t value) { return std::uint64_t{1} << (value % 64); }

  std::vector<std::vector<std::uint64_t>> levels_;
};

// Open sequences by their free space; among equals the one used last.
class OpenSequences {
 public:
  explicit OpenSequences(std::int64_t seq_length)
      : spaces_(seq_length + 1), top_(static_cast<std::size_t>(seq_length) + 1, kNone), seq_length_(seq_length) {}

  std::int64_t place(std::int64_t length) {
    std::int64_t space = spaces_.first_at_or_after(length);
    std::int64_t sequence;
    if (space == kNone) {
      sequence = static_cast<std::int64_t>(below_.size());
      below_.push_back(kNone);
      space = seq_length_;
    } else {
      sequence = pop(space);
    }
    push(space - length, sequence);
    return sequence;
  }

  std::size_t size() const { return below_.size(); }

 private:
  std::int64_t pop(std::int64_t space) {
    auto& top = top_[static_cast<std::size_t>(space)];
    const std::int64_t sequence = top;
    top = below_[static_cast<std::size_t>(sequence)];
    if (top == kNone) spaces_.erase(space);
    return sequence;
  }

  void push(std::int64_t space, std::int64_t sequence) {
    if (space == 0) return;  // full: nothing fits any more
    auto& top = top_[static_cast<std::size_t>(space)];
    if (top == kNone) spaces_.insert(space);
    below_[static_cast<std::size_t>(sequence)] = top;
    top = sequence;
  }

  OrderedSet spaces_;
  std::vector<std::int64_t> top_;    // per free space: the sequence on top of its stack
  std::vector<std::int64_t> below_;  // per sequence: the one beneath it
  std::int64_t seq_length_;
};

struct Span {
  std::int64_t document, start, length;
};

std::vector<Span> cut_documents(const std::int64_t* lengths, std::size_t num_documents, std::int64_t seq_length,
                                LongDocuments policy, PackedSpans& report) {
  std::vector<Span> spans;
  spans.reserve(num_documents);
  for (std::size_t d = 0; d < num_documents; ++d) {
    const auto document = static_cast<std::int64_t>(d);
    if (lengths[d] < 0) throw std::invalid_argument("a document length is negative");
    if (lengths[d] > seq_length) {
      if (policy == LongDocuments::kError)
        throw std::invalid_argument("document " + std::to_string(d) + " has " + std::to_string(lengths[d]) +
                                    " tokens, a sequence holds " + std::to_string(seq_length) +
                                    ": choose a longer sequence, or say whether to split or to drop long documents");
      if (policy == LongDocuments::kDrop) {
        ++report.num_dropped;
        continue;
      }
      ++report.num_split;
    }
    for (std::int64_t start = 0; start < lengths[d]; start += seq_length)
      spans.push_back({document, start, std::min(seq_length, lengths[d] - start)});
  }
  return spans;
}

// Stable order of `keys` (each in [0, limit)), by counting.
std::vector<std::size_t> counting_order(const std::vector<std::int64_t>& keys, std::size_t limit) {
  std::vector<std::size_t> next(limit + 1, 0);
  for (const std::int64_t key : keys) ++next[static_cast<std::size_t>(key) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::vector<std::size_t> order(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) order[next[static_cast<std::size_t>(keys[i])]++] = i;
  return order;
}

}  // namespace

PackedSpans pack_best_fit(const std::int64_t* lengths, std::size_t num_documents, std::int64_t seq_length,
                          LongDocuments long_documents) {
  if (seq_length < 1 || seq_length > kMaxSeqLength)
    throw std::invalid_argument("a sequence length of " + std::to_string(seq_length) +
                                " is outside 1 to " + std::to_string(kMaxSeqLength));
  PackedSpans out;
  const std::vector<Span> spans = cut_documents(lengths, num_documents, seq_length, long_documents, out);

  std::vector<std::int64_t> keys(spans.size());  // longest first
  for (std::size_t i = 0; i < spans.size(); ++i) keys[i] = seq_length - spans[i].length;
  OpenSequences open(seq_length);
  std::vector<std::int64_t> sequence(spans.size());
  for (const std::size_t i : counting_order(keys, static_cast<std::size_t>(seq_length)))
    sequence[i] = open.place(spans[i].length);

  out.sequence_offsets.assign(open.size() + 1, 0);
  for (const std::int64_t s : sequence) ++out.sequence_offsets[static_cast<std::size_t>(s) + 1];
  std::partial_sum(out.sequence_offsets.begin(), out.sequence_offsets.end(), out.sequence_offsets.begin());
  out.document.reserve(spans.size());
  out.start.reserve(spans.size());
  out.length.reserve(spans.size());
  for (const std::size_t i : counting_order(sequence, open.size())) {  // inside a sequence: document order
    out.document.push_back(spans[i].document);
    out.start.push_back(spans[i].start);
    out.length.push_back(spans[i].length);
  }
  return out;
}

}  // namespace davinci
