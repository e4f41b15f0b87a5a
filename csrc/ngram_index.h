// Exact n-gram leakage of benchmark instances into a tokenized corpus (daVinci-Dev's appendix, after XCoder).
//
// G_e is the set of n-grams of instance e. For a document x, leakage(e, x) = |G_e ∩ G_x| / |G_e|; the score of e is the
// maximum over documents. Grams do not cross documents.
//
// Why it is fast: every n-gram contains a k-gram that starts at a multiple of n - k + 1 (k = (n + 1) / 2: for n = 13
// every seventh token). So one k-gram is hashed per n - k + 1 tokens and looked up in a Bloom filter of the benchmark's
// k-grams that fits in the cache. Around a hit the run of k-grams that the filter may hold is grown; only n-grams that
// lie in it as a whole are hashed, looked up and compared token by token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "bloom_filter.h"

namespace davinci {

class NgramIndex {
 public:
  // Instance i holds tokens[offsets[i] .. offsets[i + 1]). Throws std::invalid_argument for n < 2.
  NgramIndex(std::size_t n, std::vector<std::uint32_t> tokens, const std::vector<std::size_t>& offsets);

  std::size_t num_instances() const { return num_grams_.size(); }
  // |G_e| per instance; 0 where it is shorter than n tokens.
  const std::vector<std::uint32_t>& num_grams() const { return num_grams_; }

 private:
  friend class LeakageScan;
  static constexpr std::uint32_t kNoGram = std::numeric_limits<std::uint32_t>::max();

  template <typename Token>
  std::uint64_t hash(const Token* tokens, std::size_t count) const;
  template <typename Token>
  std::uint32_t find_gram(const Token* tokens) const;
  void collect_grams(const std::vector<std::size_t>& offsets);
  void fill_filter(const std::vector<std::size_t>& offsets);

  // Calls found(gram, start) for every n-gram of the document that some instance has, in order of start.
  template <typename Token, typename Found>
  void for_each_match(std::span<const Token> document, Found&& found) const;
  template <std::size_t K, typename Token, typename Found>  // K: the length of a k-gram, or 0 for any
  void match_with(std::span<const Token> document, Found& found) const;

  std::size_t n_, k_, stride_;
  std::vector<std::uint64_t> multipliers_;  // of the multilinear hash, one per token of a gram
  std::vector<std::uint32_t> tokens_;       // of all instances, end to end
  std::vector<std::size_t> gram_position_;  // where in tokens_ a gram stands first
  std::vector<std::uint32_t> table_;        // open addressing: gram number, or kNoGram
  std::vector<std::uint32_t> num_grams_;    // per instance
  std::vector<std::uint32_t> postings_;     // instances of each gram, gram by gram
  std::vector<std::size_t> posting_offsets_;
  BloomFilter filter_;
};

// The running result of scanning documents against an index.
class LeakageScan {
 public:
  // A document with leakage >= tau for some instance is listed in leaking_documents.
  LeakageScan(const NgramIndex& index, double tau);

  // Scans documents laid out in `tokens`: document d is tokens[starts[d] .. starts[d] + lengths[d]), and has the number
  // first_document + d. The result does not depend on the number of threads or on how documents are split into calls.
  template <typename Token>
  void add(std::span<const Token> tokens, std::span<const std::int64_t> starts, std::span<const std::int64_t> lengths,
           std::int64_t first_document, std::size_t num_threads);

  // Per instance: |G_e ∩ G_x| of the worst document x, and its number, the lowest among equals; -1 where none shares any.
  const std::vector<std::uint32_t>& most_shared() const { return most_shared_; }
  const std::vector<std::int64_t>& worst_document() const { return worst_document_; }
  // In ascending order within one call of add.
  const std::vector<std::int64_t>& leaking_documents() const { return leaking_documents_; }

  // Starts, in a document, of the n-grams that it shares with one instance.
  template <typename Token>
  std::vector<std::int64_t> shared_starts(std::span<const Token> document, std::size_t instance) const;

 private:
  class Worker;
  void merge(const Worker& worker);

  const NgramIndex& index_;
  double tau_;
  std::vector<std::uint32_t> most_shared_;
  std::vector<std::int64_t> worst_document_;
  std::vector<std::int64_t> leaking_documents_;
};

}  // namespace davinci
