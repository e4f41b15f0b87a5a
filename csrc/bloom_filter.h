// A blocked Bloom filter over 64-bit hashes: three bits in one word, so that a look costs one load.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace davinci {

class BloomFilter {
 public:
  BloomFilter() : BloomFilter(0) {}
  explicit BloomFilter(std::size_t expected, std::size_t bits_per_entry = 16)
      : words_(std::clamp(std::bit_ceil(expected * bits_per_entry / 64 + 2), std::size_t{2}, kMaxWords), 0),
        shift_(64 - std::countr_zero(words_.size())) {}

  void insert(std::uint64_t hash) { words_[hash >> shift_] |= three_bits(hash); }
  bool may_hold(std::uint64_t hash) const {
    const std::uint64_t bits = three_bits(hash);
    return (words_[hash >> shift_] & bits) == bits;
  }
  void prefetch(std::uint64_t hash) const { __builtin_prefetch(&words_[hash >> shift_]); }

 private:
  static constexpr std::size_t kMaxWords = std::size_t{1} << 24;  // 128 MiB: beyond any benchmark

  static std::uint64_t three_bits(std::uint64_t hash) {
    return std::uint64_t{1} << (hash >> 22 & 63) | std::uint64_t{1} << (hash >> 28 & 63) |
           std::uint64_t{1} << (hash >> 34 & 63);
  }

  std::vector<std::uint64_t> words_;
  int shift_;
};

}  // namespace davinci
