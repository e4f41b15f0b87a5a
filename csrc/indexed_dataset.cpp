#include "indexed_dataset.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <type_traits>

namespace davinci {
namespace {

static_assert(std::endian::native == std::endian::little, "the index format is little endian");

constexpr std::size_t kLengthsPerRead = 1 << 16;

[[noreturn]] void fail(const std::string& what, const std::string& path) {
  throw std::system_error(errno, std::generic_category(), what + " " + path);
}

File open_file(const std::string& path, const char* mode) {
  File file(std::fopen(path.c_str(), mode));
  if (!file) fail("cannot open", path);
  return file;
}

// A file of exactly `size` bytes that had at least as many, positioned at its end.
File open_at(const std::string& path, std::uint64_t size) {
  if (size == 0) return open_file(path, "w+b");
  File file = open_file(path, "r+b");
  if (std::fseek(file.get(), 0, SEEK_END) != 0) fail("cannot seek in", path);
  if (static_cast<std::uint64_t>(std::ftell(file.get())) < size)
    throw std::invalid_argument(path + " is shorter than the position to go on from");
  if (::ftruncate(::fileno(file.get()), static_cast<off_t>(size)) != 0) fail("cannot shorten", path);
  if (std::fseek(file.get(), 0, SEEK_END) != 0) fail("cannot seek in", path);
  return file;
}

void write_bytes(std::FILE* file, const void* data, std::size_t size, const std::string& path) {
  if (size != 0 && std::fwrite(data, 1, size, file) != size) fail("cannot write", path);
}

template <typename T>
void write_value(std::FILE* file, T value, const std::string& path) {
  write_bytes(file, &value, sizeof value, path);
}

void flush_file(std::FILE* file, const std::string& path) {
  if (std::fflush(file) != 0) fail("cannot write", path);
}

// Lets the disk begin with what has been written, so that the fsync at the end has little left to wait for.
void begin_writeback(std::FILE* file) {
#ifdef SYNC_FILE_RANGE_WRITE
  ::sync_file_range(::fileno(file), 0, 0, SYNC_FILE_RANGE_WRITE);
#else
  static_cast<void>(file);
#endif
}

void close_on_disk(File file, const std::string& path) {
  flush_file(file.get(), path);
  if (::fsync(::fileno(file.get())) != 0) fail("cannot write", path);
}

// Calls use(length, ends_document) for every length of the scratch file, in order.
template <typename Use>
void for_each_length(std::FILE* scratch, const std::string& path, Use&& use) {
  if (std::fseek(scratch, 0, SEEK_SET) != 0) fail("cannot seek in", path);
  std::vector<std::int32_t> lengths(kLengthsPerRead);
  while (const std::size_t count = std::fread(lengths.data(), sizeof(std::int32_t), lengths.size(), scratch))
    for (std::size_t i = 0; i < count; ++i) use(std::abs(lengths[i]), lengths[i] < 0);
  if (std::ferror(scratch)) fail("cannot read", path);
}

std::uint64_t sum_lengths(std::span<const std::int64_t> lengths) {
  std::uint64_t total = 0;
  for (const std::int64_t length : lengths) {
    // One less than the index holds: an end-of-document token may follow.
    if (length < 0 || length >= std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument("a document has " + std::to_string(length) +
                                  " tokens; the index holds lengths from 0 to 2147483646");
    total += static_cast<std::uint64_t>(length);
  }
  return total;
}

template <typename T>
void require_below(std::span<const T> ids, std::uint64_t limit) {
  // A negative id becomes a huge one here, and is found by the same comparison.
  std::uint64_t largest = 0;
  for (const T id : ids) largest = std::max(largest, static_cast<std::uint64_t>(static_cast<std::int64_t>(id)));
  if (largest < limit) return;
  for (const T id : ids)
    if (static_cast<std::uint64_t>(static_cast<std::int64_t>(id)) >= limit)
      throw std::invalid_argument("token id " + std::to_string(id) + " is outside the vocabulary of " +
                                  std::to_string(limit) + " ids");
}

}  // namespace

std::size_t bytes_per_element(ElementType type) {
  switch (type) {
    case ElementType::kUint8: return 1;
    case ElementType::kUint16: return 2;
    case ElementType::kInt32: return 4;
  }
  throw std::invalid_argument("unknown element type");
}

IndexedDatasetWriter::IndexedDatasetWriter(std::string bin_path, std::string scratch_path, ElementType type,
                                           std::uint64_t limit, Position from)
    : bin_path_(std::move(bin_path)),
      scratch_path_(std::move(scratch_path)),
      type_(type),
      limit_(limit),
      position_(from),
      bin_(open_at(bin_path_, from.tokens * bytes_per_element(type))),
      scratch_(open_at(scratch_path_, from.sequences * sizeof(std::int32_t))) {}

template <typename T>
void IndexedDatasetWriter::add(std::span<const T> ids, std::span<const std::int64_t> lengths,
                               std::span<const std::int64_t> sequences_per_document, std::int64_t end) {
  if (!bin_) throw std::logic_error("add after finish");
  if (sum_lengths(lengths) != ids.size())
    throw std::invalid_argument("the document lengths do not add up to the number of ids");
  require_below(ids, limit_);
  if (end >= 0) require_below(std::span<const std::int64_t>(&end, 1), limit_);
  const std::vector<std::size_t> document_tokens = cut_documents(lengths, sequences_per_document, end >= 0);
  switch (type_) {
    case ElementType::kUint8: write_elements<T, std::uint8_t>(ids, document_tokens, end); break;
    case ElementType::kUint16: write_elements<T, std::uint16_t>(ids, document_tokens, end); break;
    case ElementType::kInt32: write_elements<T, std::int32_t>(ids, document_tokens, end); break;
  }
  begin_writeback(bin_.get());
  write_bytes(scratch_.get(), signed_lengths_.data(), signed_lengths_.size() * sizeof(std::int32_t), scratch_path_);
  position_.tokens += ids.size() + (end >= 0 ? document_tokens.size() : 0);
  position_.sequences += signed_lengths_.size();
  position_.documents += document_tokens.size();
  position_.empty += (sequences_per_document.empty() ? lengths : sequences_per_document).size() - document_tokens.size();
}

// Tokens of each document that is not empty; the lengths of their sequences go into signed_lengths_.
std::vector<std::size_t> IndexedDatasetWriter::cut_documents(std::span<const std::int64_t> lengths,
                                                             std::span<const std::int64_t> sequences_per_document,
                                                             bool closed) {
  std::vector<std::size_t> document_tokens;
  signed_lengths_.clear();
  std::size_t next = 0;
  const auto append_document = [&](std::size_t count) {
    std::size_t tokens = 0;
    for (const std::int64_t length : lengths.subspan(next, count)) {
      if (length != 0) signed_lengths_.push_back(static_cast<std::int32_t>(length));
      tokens += static_cast<std::size_t>(length);
    }
    next += count;
    if (tokens == 0) return;
    if (closed) ++signed_lengths_.back();
    signed_lengths_.back() = -signed_lengths_.back();
    document_tokens.push_back(tokens);
  };
  if (sequences_per_document.empty()) {
    while (next < lengths.size()) append_document(1);
    return document_tokens;
  }
  for (const std::int64_t count : sequences_per_document) {
    if (count < 0 || static_cast<std::size_t>(count) > lengths.size() - next)
      throw std::invalid_argument("the documents have more sequences than there are lengths");
    append_document(static_cast<std::size_t>(count));
  }
  if (next != lengths.size()) throw std::invalid_argument("the documents have fewer sequences than there are lengths");
  return document_tokens;
}

template <typename T, typename Element>
void IndexedDatasetWriter::write_elements(std::span<const T> ids, const std::vector<std::size_t>& document_tokens,
                                          std::int64_t end) {
  if constexpr (sizeof(T) == sizeof(Element)) {
    if (end < 0) {  // they lie in memory as they go into the file
      write_bytes(bin_.get(), ids.data(), ids.size_bytes(), bin_path_);
      return;
    }
  }
  const std::size_t count = ids.size() + (end < 0 ? 0 : document_tokens.size());
  const auto elements = std::make_unique_for_overwrite<Element[]>(count);
  Element* out = elements.get();
  const T* in = ids.data();
  for (const std::size_t tokens : document_tokens) {
    out = std::transform(in, in + tokens, out, [](T id) { return static_cast<Element>(id); });
    if (end >= 0) *out++ = static_cast<Element>(end);
    in += tokens;
  }
  write_bytes(bin_.get(), elements.get(), count * sizeof(Element), bin_path_);
}

void IndexedDatasetWriter::flush() {
  if (!bin_) throw std::logic_error("flush after finish");
  flush_file(bin_.get(), bin_path_);
  flush_file(scratch_.get(), scratch_path_);
}

void IndexedDatasetWriter::finish(const std::string& idx_path) {
  if (!bin_) throw std::logic_error("finish called twice");
  flush_file(scratch_.get(), scratch_path_);
  File idx = open_file(idx_path, "wb");
  write_index(idx.get(), idx_path);
  close_on_disk(std::move(idx), idx_path);
  close_on_disk(std::move(bin_), bin_path_);
  scratch_.reset();
}

void IndexedDatasetWriter::write_index(std::FILE* idx, const std::string& idx_path) {
  write_bytes(idx, "MMIDIDX\0\0", 9, idx_path);
  write_value<std::uint64_t>(idx, 1, idx_path);
  write_value<std::uint8_t>(idx, static_cast<std::uint8_t>(type_), idx_path);
  write_value<std::uint64_t>(idx, position_.sequences, idx_path);
  write_value<std::uint64_t>(idx, position_.documents + 1, idx_path);
  for_each_length(scratch_.get(), scratch_path_,
                  [&](std::int32_t length, bool) { write_value<std::int32_t>(idx, length, idx_path); });
  std::int64_t offset = 0;
  for_each_length(scratch_.get(), scratch_path_, [&](std::int32_t length, bool) {
    write_value<std::int64_t>(idx, offset, idx_path);
    offset += static_cast<std::int64_t>(length) * static_cast<std::int64_t>(bytes_per_element(type_));
  });
  write_value<std::int64_t>(idx, 0, idx_path);
  std::int64_t sequences = 0;
  for_each_length(scratch_.get(), scratch_path_, [&](std::int32_t, bool ends_document) {
    ++sequences;
    if (ends_document) write_value<std::int64_t>(idx, sequences, idx_path);
  });
}

#define DAVINCI_INSTANTIATE_ADD(T)                                                                       \
  template void IndexedDatasetWriter::add<T>(std::span<const T>, std::span<const std::int64_t>,         \
                                             std::span<const std::int64_t>, std::int64_t);
DAVINCI_INSTANTIATE_ADD(std::uint8_t)
DAVINCI_INSTANTIATE_ADD(std::uint16_t)
DAVINCI_INSTANTIATE_ADD(std::int32_t)
DAVINCI_INSTANTIATE_ADD(std::uint32_t)
DAVINCI_INSTANTIATE_ADD(std::int64_t)
#undef DAVINCI_INSTANTIATE_ADD

}  // namespace davinci
