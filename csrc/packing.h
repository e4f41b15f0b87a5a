// Best-fit decreasing packing of document lengths into sequences of a fixed number of tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace davinci {

// What to do with a document that is longer than one sequence.
enum class LongDocuments { kError, kSplit, kDrop };

// Spans of documents, grouped by sequence: those of sequence s are [sequence_offsets[s], sequence_offsets[s + 1]).
struct PackedSpans {
  std::vector<std::int64_t> document;
  std::vector<std::int64_t> start;  // first token of the span inside its document
  std::vector<std::int64_t> length;
  std::vector<std::int64_t> sequence_offsets{0};
  std::uint64_t num_dropped = 0;
  std::uint64_t num_split = 0;
};

// Packs documents of `lengths` tokens into sequences of `seq_length`. Each span takes room up to the next multiple of
// `document_alignment`, which must divide seq_length (context parallelism cuts every document into 2 * CP equal parts).
// O(documents + seq_length): a counting sort by length, then each span goes to the fullest sequence it fits into, found
// through a bitmap over free space. Deterministic; empty documents take no span. Throws std::invalid_argument on a
// negative length, on seq_length outside [1, 2^24], and on a longer document under LongDocuments::kError.
PackedSpans pack_best_fit(std::span<const std::int64_t> lengths, std::int64_t seq_length,
                          std::int64_t document_alignment, LongDocuments long_documents);

}  // namespace davinci
