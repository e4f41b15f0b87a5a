#include "ngram_index.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace davinci {
namespace {

constexpr std::size_t kTokensPerTask = std::size_t{1} << 20;

}  // namespace

NgramIndex::NgramIndex(std::size_t n, std::vector<std::uint32_t> tokens, const std::vector<std::size_t>& offsets)
    : n_(n), k_((n + 1) / 2), stride_(n - k_ + 1), multipliers_(n), tokens_(std::move(tokens)) {
  if (n < 2) throw std::invalid_argument("n-grams need n of at least 2");
  std::mt19937_64 draw(0x6461766963696e69);
  for (auto& multiplier : multipliers_) multiplier = draw() | 1;
  collect_grams(offsets);
  fill_filter(offsets);
}

// Multilinear: the high bits are what is used of it.
template <typename Token>
inline std::uint64_t NgramIndex::hash(const Token* tokens, std::size_t count) const {
  const std::uint64_t* multipliers = multipliers_.data();
  std::uint64_t sum = 0x9e3779b97f4a7c15;
  for (std::size_t i = 0; i < count; ++i) sum += (static_cast<std::uint64_t>(tokens[i]) + 1) * multipliers[i];
  return sum;
}

template <typename Token>
std::uint32_t NgramIndex::find_gram(const Token* tokens) const {
  const std::size_t mask = table_.size() - 1;
  for (std::size_t slot = hash(tokens, n_) >> 32 & mask;; slot = (slot + 1) & mask) {
    const std::uint32_t gram = table_[slot];
    if (gram == kNoGram) return kNoGram;
    const std::uint32_t* known = tokens_.data() + gram_position_[gram];
    if (std::equal(known, known + n_, tokens, [](std::uint32_t a, Token b) { return a == static_cast<std::uint32_t>(b); }))
      return gram;
  }
}

// Numbers the distinct grams, and notes which instances have which.
void NgramIndex::collect_grams(const std::vector<std::size_t>& offsets) {
  std::size_t positions = 0;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    positions += offsets[i + 1] - offsets[i] >= n_ ? offsets[i + 1] - offsets[i] - n_ + 1 : 0;
  if (positions >= kNoGram / 4) throw std::invalid_argument("the benchmarks hold more than a billion n-grams");
  table_.assign(std::bit_ceil(2 * positions + 2), kNoGram);

  std::vector<std::vector<std::uint32_t>> of_instance(offsets.empty() ? 0 : offsets.size() - 1);
  for (std::size_t i = 0; i < of_instance.size(); ++i) {
    auto& grams = of_instance[i];
    for (std::size_t p = offsets[i]; p + n_ <= offsets[i + 1]; ++p) {
      std::uint32_t gram = find_gram(tokens_.data() + p);
      if (gram == kNoGram) {
        gram = static_cast<std::uint32_t>(gram_position_.size());
        gram_position_.push_back(p);
        const std::size_t mask = table_.size() - 1;
        std::size_t slot = hash(tokens_.data() + p, n_) >> 32 & mask;
        while (table_[slot] != kNoGram) slot = (slot + 1) & mask;
        table_[slot] = gram;
      }
      grams.push_back(gram);
    }
    std::sort(grams.begin(), grams.end());
    grams.erase(std::unique(grams.begin(), grams.end()), grams.end());
    num_grams_.push_back(static_cast<std::uint32_t>(grams.size()));
  }

  posting_offsets_.assign(gram_position_.size() + 1, 0);
  for (const auto& grams : of_instance)
    for (const std::uint32_t gram : grams) ++posting_offsets_[gram + std::size_t{1}];
  for (std::size_t g = 0; g < gram_position_.size(); ++g) posting_offsets_[g + 1] += posting_offsets_[g];
  postings_.resize(posting_offsets_.back());
  std::vector<std::size_t> next(posting_offsets_.begin(), posting_offsets_.end() - 1);
  for (std::size_t i = 0; i < of_instance.size(); ++i)
    for (const std::uint32_t gram : of_instance[i]) postings_[next[gram]++] = static_cast<std::uint32_t>(i);
}

void NgramIndex::fill_filter(const std::vector<std::size_t>& offsets) {
  filter_ = BloomFilter(tokens_.size());
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
    if (offsets[i + 1] - offsets[i] >= n_)
      for (std::size_t p = offsets[i]; p + k_ <= offsets[i + 1]; ++p) filter_.insert(hash(tokens_.data() + p, k_));
}

template <typename Token, typename Found>
void NgramIndex::for_each_match(std::span<const Token> document, Found&& found) const {
  if (document.size() < n_) return;
  // The usual n = 13 with its loop over k unrolled, and any other.
  if (k_ == 7)
    match_with<7>(document, found);
  else
    match_with<0>(document, found);
}

template <std::size_t K, typename Token, typename Found>
void NgramIndex::match_with(std::span<const Token> document, Found& found) const {
  const std::size_t k = K == 0 ? k_ : K;
  const std::size_t last = document.size() - k;
  const auto may_hold = [&](std::size_t p) { return filter_.may_hold(hash(document.data() + p, k)); };
  for (std::size_t p = 0; p <= last; p += stride_) {
    if (!may_hold(p)) continue;
    // An n-gram holds `stride` k-grams in a row: grow the run of possible ones around p, and look up what fits in it.
    std::size_t first = p, end = p;
    while (first > 0 && p - first < stride_ - 1 && may_hold(first - 1)) --first;
    while (end < last && end - p < stride_ - 1 && may_hold(end + 1)) ++end;
    for (std::size_t start = first; start + stride_ - 1 <= end; ++start)
      if (const std::uint32_t gram = find_gram(document.data() + start); gram != kNoGram) found(gram, start);
  }
}

// What one thread needs: which grams and instances the document at hand has touched.
class LeakageScan::Worker {
 public:
  Worker(const NgramIndex& index, double tau)
      : most_shared(index.num_instances(), 0),
        worst_document(index.num_instances(), -1),
        index_(index),
        tau_(tau),
        seen_by_(index.gram_position_.size(), -1),
        shared_(index.num_instances(), 0) {}

  template <typename Token>
  void scan(std::span<const Token> tokens, std::int64_t document) {
    index_.for_each_match(tokens, [&](std::uint32_t gram, std::size_t) {
      if (seen_by_[gram] == document) return;  // G_x is a set
      seen_by_[gram] = document;
      for (std::size_t i = index_.posting_offsets_[gram]; i < index_.posting_offsets_[gram + std::size_t{1}]; ++i)
        if (shared_[index_.postings_[i]]++ == 0) touched_.push_back(index_.postings_[i]);
    });
    if (!touched_.empty()) finish(document);
  }

  std::vector<std::uint32_t> most_shared;
  std::vector<std::int64_t> worst_document;
  std::vector<std::int64_t> leaking_documents;

 private:
  void finish(std::int64_t document) {
    bool leaks = false;
    for (const std::uint32_t instance : touched_) {
      const std::uint32_t shared = std::exchange(shared_[instance], 0);
      leaks |= static_cast<double>(shared) / index_.num_grams_[instance] >= tau_;
      if (shared > most_shared[instance] || (shared == most_shared[instance] && document < worst_document[instance])) {
        most_shared[instance] = shared;
        worst_document[instance] = document;
      }
    }
    touched_.clear();
    if (leaks) leaking_documents.push_back(document);
  }

  const NgramIndex& index_;
  double tau_;
  std::vector<std::int64_t> seen_by_;  // per gram: the last document that had it
  std::vector<std::uint32_t> shared_;  // per instance: grams shared with the document at hand
  std::vector<std::uint32_t> touched_;
};

LeakageScan::LeakageScan(const NgramIndex& index, double tau)
    : index_(index), tau_(tau), most_shared_(index.num_instances(), 0), worst_document_(index.num_instances(), -1) {}

template <typename Token>
void LeakageScan::add(std::span<const Token> tokens, std::span<const std::int64_t> starts,
                      std::span<const std::int64_t> lengths, std::int64_t first_document, std::size_t num_threads) {
  if (starts.size() != lengths.size()) throw std::invalid_argument("starts and lengths differ in size");
  for (std::size_t d = 0; d < starts.size(); ++d)
    if (starts[d] < 0 || lengths[d] < 0 || static_cast<std::size_t>(starts[d]) > tokens.size() ||
        static_cast<std::size_t>(lengths[d]) > tokens.size() - static_cast<std::size_t>(starts[d]))
      throw std::invalid_argument("document " + std::to_string(d) + " lies outside the tokens");

  // Tasks of about equal size, taken by whichever thread is free.
  std::vector<std::size_t> tasks{0};
  std::size_t size = 0;
  for (std::size_t d = 0; d < starts.size(); ++d)
    if ((size += static_cast<std::size_t>(lengths[d])) >= kTokensPerTask || d + 1 == starts.size()) {
      tasks.push_back(d + 1);
      size = 0;
    }
  std::atomic<std::size_t> next{0};
  const auto run = [&](Worker& worker) {
    for (std::size_t task = next++; task + 1 < tasks.size(); task = next++)
      for (std::size_t d = tasks[task]; d < tasks[task + 1]; ++d)
        worker.scan(tokens.subspan(static_cast<std::size_t>(starts[d]), static_cast<std::size_t>(lengths[d])),
                    first_document + static_cast<std::int64_t>(d));
  };
  std::vector<Worker> workers(std::max<std::size_t>(num_threads, 1), Worker(index_, tau_));
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 1; i < workers.size(); ++i) threads.emplace_back(run, std::ref(workers[i]));
    run(workers[0]);
  }
  const std::size_t known = leaking_documents_.size();
  for (const Worker& worker : workers) merge(worker);
  std::sort(leaking_documents_.begin() + static_cast<std::ptrdiff_t>(known), leaking_documents_.end());
}

void LeakageScan::merge(const Worker& worker) {
  for (std::size_t i = 0; i < most_shared_.size(); ++i) {
    const std::uint32_t shared = worker.most_shared[i];
    if (shared == 0 || shared < most_shared_[i]) continue;
    if (shared > most_shared_[i] || worker.worst_document[i] < worst_document_[i])
      worst_document_[i] = worker.worst_document[i];
    most_shared_[i] = shared;
  }
  leaking_documents_.insert(leaking_documents_.end(), worker.leaking_documents.begin(),
                            worker.leaking_documents.end());
}

template <typename Token>
std::vector<std::int64_t> LeakageScan::shared_starts(std::span<const Token> document, std::size_t instance) const {
  std::vector<std::int64_t> starts;
  index_.for_each_match(document, [&](std::uint32_t gram, std::size_t start) {
    const auto first = index_.postings_.begin() + static_cast<std::ptrdiff_t>(index_.posting_offsets_[gram]);
    const auto last = index_.postings_.begin() + static_cast<std::ptrdiff_t>(index_.posting_offsets_[gram + 1]);
    if (std::find(first, last, instance) != last) starts.push_back(static_cast<std::int64_t>(start));
  });
  return starts;
}

template void LeakageScan::add(std::span<const std::uint16_t>, std::span<const std::int64_t>,
                               std::span<const std::int64_t>, std::int64_t, std::size_t);
template void LeakageScan::add(std::span<const std::int32_t>, std::span<const std::int64_t>,
                               std::span<const std::int64_t>, std::int64_t, std::size_t);
template std::vector<std::int64_t> LeakageScan::shared_starts(std::span<const std::uint16_t>, std::size_t) const;
template std::vector<std::int64_t> LeakageScan::shared_starts(std::span<const std::int32_t>, std::size_t) const;

}  // namespace davinci
