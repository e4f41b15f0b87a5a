#include "indexed_dataset.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <system_error>

namespace davinci {
namespace {

static_assert(std::endian::native == std::endian::little, "the index format is little endian");

File open_for_writing(const std::string& path) {
  File file(std::fopen(path.c_str(), "wb"));
  if (!file) throw std::system_error(errno, std::generic_category(), "cannot write " + path);
  return file;
}

void write_bytes(std::FILE* file, const void* data, std::size_t size, const std::string& path) {
  if (size != 0 && std::fwrite(data, 1, size, file) != size)
    throw std::system_error(errno, std::generic_category(), "cannot write " + path);
}

template <typename T>
void write_value(std::FILE* file, T value, const std::string& path) {
  write_bytes(file, &value, sizeof value, path);
}

void flush_to_disk(File file, const std::string& path) {
  if (std::fflush(file.get()) != 0 || ::fsync(::fileno(file.get())) != 0)
    throw std::system_error(errno, std::generic_category(), "cannot write " + path);
}

template <typename T>
void narrow(const std::int64_t* ids, std::size_t count, std::vector<std::uint8_t>& out) {
  out.resize(count * sizeof(T));
  for (std::size_t i = 0; i < count; ++i) {
    const T value = static_cast<T>(ids[i]);
    std::memcpy(out.data() + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

TokenType token_type_for_vocabulary(std::uint64_t vocabulary_size) {
  return vocabulary_size < kUint16VocabularyLimit ? TokenType::kUint16 : TokenType::kInt32;
}

std::size_t bytes_per_token(TokenType type) { return type == TokenType::kUint16 ? 2 : 4; }

IndexedDatasetWriter::IndexedDatasetWriter(std::string bin_path, std::uint64_t vocabulary_size)
    : bin_path_(std::move(bin_path)),
      vocabulary_size_(vocabulary_size),
      type_(token_type_for_vocabulary(vocabulary_size)),
      bin_(open_for_writing(bin_path_)) {}

void IndexedDatasetWriter::add_documents(const std::int64_t* ids, std::size_t num_ids,
                                         const std::int64_t* lengths, std::size_t num_documents) {
  if (!bin_) throw std::logic_error("add_documents after finish");
  std::uint64_t total = 0;
  for (std::size_t d = 0; d < num_documents; ++d) {
    if (lengths[d] < 0 || lengths[d] > std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument("a document has " + std::to_string(lengths[d]) +
                                  " tokens; the index holds lengths from 0 to 2147483647");
    total += static_cast<std::uint64_t>(lengths[d]);
  }
  if (total != num_ids) throw std::invalid_argument("the document lengths do not add up to the number of ids");
  for (std::size_t i = 0; i < num_ids; ++i) {
    if (ids[i] < 0 || static_cast<std::uint64_t>(ids[i]) >= vocabulary_size_)
      throw std::invalid_argument("token id " + std::to_string(ids[i]) + " is outside the vocabulary of " +
                                  std::to_string(vocabulary_size_) + " ids");
  }
  write_ids(ids, num_ids);
  for (std::size_t d = 0; d < num_documents; ++d) {
    if (lengths[d] == 0)
      ++num_empty_;
    else
      lengths_.push_back(static_cast<std::int32_t>(lengths[d]));
  }
  num_tokens_ += total;
}

void IndexedDatasetWriter::write_ids(const std::int64_t* ids, std::size_t count) {
  if (type_ == TokenType::kUint16)
    narrow<std::uint16_t>(ids, count, buffer_);
  else
    narrow<std::int32_t>(ids, count, buffer_);
  write_bytes(bin_.get(), buffer_.data(), buffer_.size(), bin_path_);
}

void IndexedDatasetWriter::finish(const std::string& idx_path) {
  if (!bin_) throw std::logic_error("finish called twice");
  flush_to_disk(std::move(bin_), bin_path_);

  File idx = open_for_writing(idx_path);
  write_bytes(idx.get(), "MMIDIDX\0\0", 9, idx_path);
  write_value<std::uint64_t>(idx.get(), 1, idx_path);
  write_value<std::uint8_t>(idx.get(), static_cast<std::uint8_t>(type_), idx_path);
  write_value<std::uint64_t>(idx.get(), lengths_.size(), idx_path);
  write_value<std::uint64_t>(idx.get(), lengths_.size() + 1, idx_path);
  write_bytes(idx.get(), lengths_.data(), lengths_.size() * sizeof(std::int32_t), idx_path);
  std::int64_t offset = 0;
  for (const std::int32_t length : lengths_) {
    write_value<std::int64_t>(idx.get(), offset, idx_path);
    offset += static_cast<std::int64_t>(length) * static_cast<std::int64_t>(bytes_per_token(type_));
  }
  for (std::int64_t document = 0; document <= static_cast<std::int64_t>(lengths_.size()); ++document)
    write_value<std::int64_t>(idx.get(), document, idx_path);
  flush_to_disk(std::move(idx), idx_path);
}

}  // namespace davinci
