// Streaming writer of Megatron's indexed dataset: PREFIX.bin (token ids) and PREFIX.idx (where documents lie).
//
// Layout of the index, little endian (megatron.core.datasets.indexed_dataset):
//   "MMIDIDX\0\0" | u64 version=1 | u8 element code | u64 sequences | u64 documents+1
//   | i32 length[sequences] | i64 byte_offset[sequences] | i64 document_index[documents+1]
// A document is one sequence, or several where it is split into sentences.
//
// Memory does not grow with the data: lengths go to a scratch file, from which the index is made at the end. A writer
// can go on where an earlier one, killed, was known to be (Position).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace davinci {

// Megatron's element codes (its DType enumeration), for token ids and masks.
enum class ElementType : std::uint8_t { kUint8 = 1, kInt32 = 4, kUint16 = 8 };

std::size_t bytes_per_element(ElementType type);

struct FileCloser {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

class IndexedDatasetWriter {
 public:
  struct Position {
    std::uint64_t tokens = 0;
    std::uint64_t sequences = 0;
    std::uint64_t documents = 0;
    std::uint64_t empty = 0;  // documents without a token: dropped and counted
  };

  // Writes `bin_path`, and lengths into `scratch_path`; `limit` bounds every element from above. From a position other
  // than the start both files must hold at least what had been written there; what lies behind it is cut off.
  IndexedDatasetWriter(std::string bin_path, std::string scratch_path, ElementType type, std::uint64_t limit,
                       Position from);

  // Appends sequences laid end to end in `ids`. Each is a document, unless `sequences_per_document` says how many make
  // one. Empty sequences are dropped; with `end` >= 0 that element closes each document that is not empty.
  // Throws std::invalid_argument, before anything of this call is written, when an element is not below the limit.
  template <typename T>
  void add(std::span<const T> ids, std::span<const std::int64_t> lengths,
           std::span<const std::int64_t> sequences_per_document, std::int64_t end);

  // Hands everything to the operating system: a killed process loses nothing that was added before.
  void flush();

  // Writes the index; .bin and .idx are on disk (fsync) when this returns. The scratch file stays: it is the caller's.
  void finish(const std::string& idx_path);

  const Position& position() const { return position_; }

 private:
  std::vector<std::size_t> cut_documents(std::span<const std::int64_t> lengths,
                                          std::span<const std::int64_t> sequences_per_document, bool closed);
  template <typename T, typename Element>
  void write_elements(std::span<const T> ids, const std::vector<std::size_t>& document_tokens, std::int64_t end);
  void write_index(std::FILE* idx, const std::string& idx_path);

  std::string bin_path_, scratch_path_;
  ElementType type_;
  std::uint64_t limit_;
  Position position_;
  File bin_, scratch_;
  std::vector<std::int32_t> signed_lengths_;  // of the current call; the last sequence of a document: negative
};

}  // namespace davinci
