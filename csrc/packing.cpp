#include "packing.h"

#include <algorithm>
#include <bit>
#include <limits>
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
      : spaces_(seq_length + 1), top_(static_cast<std::size_t>(seq_length) + 1, kNoSequence), seq_length_(seq_length) {}

  std::uint32_t place(std::int64_t length) {
    std::int64_t space = spaces_.first_at_or_after(length);
    std::uint32_t sequence;
    if (space == kNone) {
      sequence = static_cast<std::uint32_t>(below_.size());
      below_.push_back(kNoSequence);
      space = seq_length_;
    } else {
      sequence = pop(space);
    }
    push(space - length, sequence);
    return sequence;
  }

  std::size_t size() const { return below_.size(); }

 private:
  static constexpr std::uint32_t kNoSequence = ~std::uint32_t{0};

  std::uint32_t pop(std::int64_t space) {
    auto& top = top_[static_cast<std::size_t>(space)];
    const std::uint32_t sequence = top;
    top = below_[sequence];
    if (top == kNoSequence) spaces_.erase(space);
    return sequence;
  }

  void push(std::int64_t space, std::uint32_t sequence) {
    if (space == 0) return;  // full: nothing fits any more
    auto& top = top_[static_cast<std::size_t>(space)];
    if (top == kNoSequence) spaces_.insert(space);
    below_[sequence] = top;
    top = sequence;
  }

  OrderedSet spaces_;
  std::vector<std::uint32_t> top_;    // per free space: the sequence on top of its stack
  std::vector<std::uint32_t> below_;  // per sequence: the one beneath it
  std::int64_t seq_length_;
};

struct Span {
  std::int64_t document, start, length;
};

std::vector<Span> cut_documents(std::span<const std::int64_t> lengths, std::int64_t seq_length, LongDocuments policy,
                                PackedSpans& report) {
  std::vector<Span> spans;
  spans.reserve(lengths.size());
  for (std::size_t d = 0; d < lengths.size(); ++d) {
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
  if (spans.size() >= std::numeric_limits<std::uint32_t>::max())
    throw std::invalid_argument("more than 4294967294 spans: pack the corpora in several plans");
  return spans;
}

// Numbers of the spans, longest first; among equals in the order of documents. A counting sort.
std::vector<std::uint32_t> longest_first(const std::vector<Span>& spans, std::int64_t seq_length) {
  std::vector<std::uint32_t> next(static_cast<std::size_t>(seq_length) + 2, 0);
  for (const Span& span : spans) ++next[static_cast<std::size_t>(seq_length - span.length) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::vector<std::uint32_t> order(spans.size());
  for (std::size_t i = 0; i < spans.size(); ++i)
    order[next[static_cast<std::size_t>(seq_length - spans[i].length)]++] = static_cast<std::uint32_t>(i);
  return order;
}

}  // namespace

PackedSpans pack_best_fit(std::span<const std::int64_t> lengths, std::int64_t seq_length,
                          std::int64_t document_alignment, LongDocuments long_documents) {
  if (seq_length < 1 || seq_length > kMaxSeqLength)
    throw std::invalid_argument("a sequence length of " + std::to_string(seq_length) + " is outside 1 to " +
                                std::to_string(kMaxSeqLength));
  if (document_alignment < 1 || seq_length % document_alignment != 0)
    throw std::invalid_argument("a document alignment of " + std::to_string(document_alignment) +
                                " does not divide the sequence length of " + std::to_string(seq_length));
  const auto aligned = [&](std::int64_t length) {
    return (length + document_alignment - 1) / document_alignment * document_alignment;
  };
  PackedSpans out;
  const std::vector<Span> spans = cut_documents(lengths, seq_length, long_documents, out);
  const std::vector<std::uint32_t> order = longest_first(spans, seq_length);

  OpenSequences open(seq_length);
  std::vector<std::uint32_t> sequence(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) sequence[i] = open.place(aligned(spans[order[i]].length));

  out.sequence_offsets.assign(open.size() + 1, 0);
  for (const std::uint32_t s : sequence) ++out.sequence_offsets[s + std::size_t{1}];
  std::partial_sum(out.sequence_offsets.begin(), out.sequence_offsets.end(), out.sequence_offsets.begin());

  // Another counting sort, by sequence; the order inside a sequence stays longest first.
  std::vector<std::int64_t> next(out.sequence_offsets.begin(), out.sequence_offsets.end() - 1);
  out.document.resize(spans.size());
  out.start.resize(spans.size());
  out.length.resize(spans.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto slot = static_cast<std::size_t>(next[sequence[i]]++);
    const Span& span = spans[order[i]];
    out.document[slot] = span.document;
    out.start[slot] = span.start;
    out.length[slot] = span.length;
  }
  return out;
}

}  // namespace davinci
