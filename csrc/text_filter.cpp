#include "text_filter.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace davinci {
namespace {

constexpr std::size_t kMostWindowBytes = 16;  // two loads
constexpr std::size_t kMostBands = 3;
constexpr std::size_t kHashesAhead = 64;
constexpr std::size_t kBitsPerWindow = 8;  // small enough for the second cache matters more than hitting less

template <typename Word>
std::uint64_t load(const char* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

std::uint64_t mix(std::uint64_t low, std::uint64_t high) {
  const std::uint64_t hash = (low + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9 + (high + 0x632be59bd9b4e019) * 0x94d049bb133111eb;
  return hash ^ hash >> 32;
}

// Of 1 to 16 bytes; the two loads overlap where they must.
std::uint64_t hash_window(const char* bytes, std::size_t size) {
  if (size >= 8) return mix(load<std::uint64_t>(bytes), load<std::uint64_t>(bytes + size - 8));
  if (size >= 4) return mix(load<std::uint32_t>(bytes), load<std::uint32_t>(bytes + size - 4));
  return mix(load<std::uint8_t>(bytes) | load<std::uint8_t>(bytes + size - 1) << 8, load<std::uint8_t>(bytes + size / 2));
}

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t hash = bytes.size();
  std::size_t at = 0;
  for (; at + kMostWindowBytes <= bytes.size(); at += kMostWindowBytes)
    hash = mix(hash, hash_window(bytes.data() + at, kMostWindowBytes));
  return at < bytes.size() ? mix(hash, hash_window(bytes.data() + at, bytes.size() - at)) : hash;
}

// How many bytes of the text lie in some pattern, where patterns come in the order in which they stand in it.
template <typename Patterns>
std::size_t bytes_covered(const Patterns& patterns) {
  std::size_t covered = 0, reached = 0;
  for (const auto& pattern : patterns) {
    const std::size_t end = pattern.begin + pattern.length;
    covered += end - std::clamp<std::size_t>(reached, pattern.begin, end);
    reached = std::max(reached, end);
  }
  return covered;
}

}  // namespace

TextFilter::TextFilter(std::string text, std::span<const std::int64_t> begins, std::span<const std::int64_t> ends)
    : text_(std::move(text)) {
  if (begins.size() != ends.size()) throw std::invalid_argument("begins and ends differ in size");
  if (text_.size() >= std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("the patterns hold over 4 GB");
  std::size_t shortest = std::numeric_limits<std::size_t>::max();
  for (std::size_t i = 0; i < begins.size(); ++i) {
    if (begins[i] < 0 || ends[i] <= begins[i] || static_cast<std::size_t>(ends[i]) > text_.size())
      throw std::invalid_argument("pattern " + std::to_string(i) + " is empty or lies outside the text");
    shortest = std::min(shortest, static_cast<std::size_t>(ends[i] - begins[i]));
  }
  std::vector<std::vector<Pattern>> by_band(kMostBands);
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const auto length = static_cast<std::size_t>(ends[i] - begins[i]);
    const std::size_t band = std::min<std::size_t>(std::bit_width(length / shortest) - 1, kMostBands - 1);
    by_band[band].push_back({static_cast<std::uint32_t>(begins[i]), static_cast<std::uint32_t>(length)});
  }
  for (std::size_t band = 0; band < by_band.size(); ++band) {
    // A text that holds a pattern holds what the pattern holds.
    std::erase_if(by_band[band], [&](const Pattern& pattern) { return matches(bytes_of(pattern)); });
    if (!by_band[band].empty()) bands_.push_back(make_band(shortest << band, std::move(by_band[band])));
  }
}

TextFilter::Band TextFilter::make_band(std::size_t least, std::vector<Pattern> patterns) const {
  Band band;
  band.least = least;
  band.window = std::clamp<std::size_t>(least * 3 / 4, 1, kMostWindowBytes);  // longer windows hit less, cost more looks
  band.stride = least - band.window + 1;
  band.windows = BloomFilter(bytes_covered(patterns), kBitsPerWindow);
  std::sort(patterns.begin(), patterns.end(),
            [&](const Pattern& a, const Pattern& b) { return bytes_of(a) < bytes_of(b); });
  for (const Pattern& pattern : patterns) {
    if (!band.patterns.empty() && bytes_of(pattern).starts_with(bytes_of(band.patterns.back()))) continue;
    band.patterns.push_back(pattern);
  }
  fill_table(band);
  for (const Pattern& pattern : band.patterns)
    for (std::size_t at = 0; at + band.window <= pattern.length; ++at)
      band.windows.insert(hash_window(text_.data() + pattern.begin + at, band.window));
  return band;
}

void TextFilter::fill_table(Band& band) const {
  band.table.assign(std::bit_ceil(2 * band.patterns.size() + 2), {});
  band.keys = BloomFilter(band.patterns.size());
  const std::size_t mask = band.table.size() - 1;
  std::size_t slot = 0;
  for (std::uint32_t i = 0; i < band.patterns.size(); ++i) {
    const std::string_view key = key_of(band, band.patterns[i]);
    if (i > 0 && key == key_of(band, band.patterns[i - 1])) {
      ++band.table[slot].count;
      continue;
    }
    const std::uint64_t hash = hash_bytes(key);
    band.keys.insert(hash);
    for (slot = hash & mask; band.table[slot].count != 0;) slot = (slot + 1) & mask;
    band.table[slot] = {i, 1};
  }
}

bool TextFilter::matches(std::string_view document) const {
  return std::any_of(bands_.begin(), bands_.end(), [&](const Band& band) { return matches_in(band, document); });
}

bool TextFilter::matches_in(const Band& band, std::string_view document) const {
  return band.window >= 8 ? scan<8>(band, document) : scan<1>(band, document);
}

template <std::size_t Least>
bool TextFilter::scan(const Band& band, std::string_view document) const {
  if (document.size() < band.least) return false;
  const std::size_t window = std::max(band.window, Least);  // which tells the compiler how to load it
  const std::size_t last = document.size() - window;
  std::array<std::uint64_t, kHashesAhead> hashes;
  std::size_t looked_at = 0;  // no pattern begins before
  for (std::size_t at = 0; at <= last;) {
    // The filter lies outside the nearest cache: ask for many words of it before the first is looked at.
    const std::size_t count = std::min(kHashesAhead, (last - at) / band.stride + 1);
    for (std::size_t i = 0; i < count; ++i) {
      hashes[i] = hash_window(document.data() + at + i * band.stride, window);
      band.windows.prefetch(hashes[i]);
    }
    for (std::size_t i = 0; i < count; ++i, at += band.stride)
      if (band.windows.may_hold(hashes[i]) && any_pattern_around(band, document, at, looked_at)) return true;
  }
  return false;
}

// A pattern begins with `stride` windows in a row or more: grow the run of possible ones around `at`.
bool TextFilter::any_pattern_around(const Band& band, std::string_view document, std::size_t at,
                                    std::size_t& looked_at) const {
  const std::size_t last = document.size() - band.window, reach = band.stride - 1;
  const auto may_hold = [&](std::size_t p) {
    return band.windows.may_hold(hash_window(document.data() + p, band.window));
  };
  std::size_t first = at, end = at;
  while (first > looked_at && at - first < reach && may_hold(first - 1)) --first;
  while (end < last && end - at < reach && may_hold(end + 1)) ++end;
  for (; first + reach <= end; ++first)
    if (any_pattern_at(band, document.substr(first))) return true;
  looked_at = first;
  return false;
}

bool TextFilter::any_pattern_at(const Band& band, std::string_view rest) const {
  const std::string_view key = rest.substr(0, band.least);
  const std::uint64_t hash = hash_bytes(key);
  if (!band.keys.may_hold(hash)) return false;
  const std::size_t mask = band.table.size() - 1;
  for (std::size_t slot = hash & mask; band.table[slot].count != 0; slot = (slot + 1) & mask) {
    const auto first = band.patterns.begin() + band.table[slot].first;
    if (key_of(band, *first) != key) continue;
    // None begins with another: only the last one that is not behind the text can be its beginning.
    const auto behind = std::upper_bound(first, first + band.table[slot].count, rest,
                                         [&](std::string_view text, const Pattern& p) { return text < bytes_of(p); });
    return behind != first && rest.starts_with(bytes_of(*(behind - 1)));
  }
  return false;
}

}  // namespace davinci
