// Streaming writer of Megatron's indexed dataset: PREFIX.bin (token ids) and PREFIX.idx (where documents lie).
//
// Layout of the index, little endian (megatron.core.datasets.indexed_dataset):
//   "MMIDIDX\0\0" | u64 version=1 | u8 element code | u64 sequences | u64 documents+1
//   | i32 length[sequences] | i64 byte_offset[sequences] | i64 document_index[documents+1]
// One document is one sequence here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace davinci {

// Megatron's element codes (its DType enumeration), for the types a token id can have.
enum class TokenType : std::uint8_t { kInt32 = 4, kUint16 = 8 };

// Ids fit in uint16 below this vocabulary size (Megatron's rule); above it int32 is used.
inline constexpr std::uint64_t kUint16VocabularyLimit = 65500;

TokenType token_type_for_vocabulary(std::uint64_t vocabulary_size);
std::size_t bytes_per_token(TokenType type);

struct FileCloser {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

class IndexedDatasetWriter {
 public:
  // Opens `bin_path` for writing; `vocabulary_size` settles the element type and bounds every id.
  IndexedDatasetWriter(std::string bin_path, std::uint64_t vocabulary_size);

  // Appends documents laid end to end in `ids`; an empty document is dropped and counted.
  // Throws std::invalid_argument, before anything of this call is written, when an id is outside the vocabulary.
  void add_documents(const std::int64_t* ids, std::size_t num_ids, const std::int64_t* lengths,
                     std::size_t num_documents);

  // Flushes the ids and writes the index; both files are on disk (fsync) when this returns.
  void finish(const std::string& idx_path);

  std::uint64_t num_documents() const { return lengths_.size(); }
  std::uint64_t num_tokens() const { return num_tokens_; }
  std::uint64_t num_empty() const { return num_empty_; }

 private:
  void write_ids(const std::int64_t* ids, std::size_t count);

  std::string bin_path_;
  std::uint64_t vocabulary_size_;
  TokenType type_;
  File bin_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::uint8_t> buffer_;
  std::uint64_t num_tokens_ = 0;
  std::uint64_t num_empty_ = 0;
};

}  // namespace davinci
