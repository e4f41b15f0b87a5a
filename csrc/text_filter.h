// Whether a text holds any of many byte strings: which documents can share an n-gram with a benchmark, before any of
// them is tokenized. Exact: every hit is compared byte by byte.
//
// The idea is that of ngram_index.h, on bytes. Patterns are put into bands by length. One that has at least `least` bytes
// holds a window of w bytes that starts at a multiple of stride = least - w + 1; so one window per stride bytes is looked
// up in a Bloom filter of the band's windows, and patterns are looked up only where enough windows in a row are there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bloom_filter.h"

namespace davinci {

class TextFilter {
 public:
  // Pattern i is text[begins[i] .. ends[i]); none is empty. Throws std::invalid_argument for one that is, or lies outside.
  TextFilter(std::string text, std::span<const std::int64_t> begins, std::span<const std::int64_t> ends);

  bool matches(std::string_view document) const;

 private:
  struct Pattern {
    std::uint32_t begin, length;
  };

  // Of patterns that begin with the same `least` bytes; they stand side by side.
  struct Group {
    std::uint32_t first = 0, count = 0;
  };

  struct Band {
    std::size_t least = 0, window = 0, stride = 0;
    BloomFilter windows;            // of all patterns
    BloomFilter keys;               // their first `least` bytes: smaller than the table, and nearer
    std::vector<Pattern> patterns;  // sorted by their bytes; none begins with another
    std::vector<Group> table;       // open addressing by the first `least` bytes; a free slot counts 0
  };

  Band make_band(std::size_t least, std::vector<Pattern> patterns) const;
  void fill_table(Band& band) const;
  std::string_view bytes_of(const Pattern& pattern) const { return {text_.data() + pattern.begin, pattern.length}; }
  std::string_view key_of(const Band& band, const Pattern& pattern) const { return bytes_of(pattern).substr(0, band.least); }
  bool matches_in(const Band& band, std::string_view document) const;
  template <std::size_t Least>
  bool scan(const Band& band, std::string_view document) const;
  bool any_pattern_around(const Band& band, std::string_view document, std::size_t at,
                          std::size_t& looked_at) const;
  bool any_pattern_at(const Band& band, std::string_view rest) const;

  std::string text_;
  std::vector<Band> bands_;
};

}  // namespace davinci
