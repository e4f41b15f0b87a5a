// The only file that knows Python: checks shapes, releases the GIL, hands arrays over without copying.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "indexed_dataset.h"
#include "ngram_index.h"
#include "packing.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

void require_vector(const Int64Array& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
}

// A numpy array that owns the vector's memory.
py::array_t<std::int64_t> to_numpy(std::vector<std::int64_t>&& values) {
  auto owner = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  const auto size = static_cast<py::ssize_t>(owner->size());
  const std::int64_t* data = owner->data();
  py::capsule release(owner.release(), [](void* v) { delete static_cast<std::vector<std::int64_t>*>(v); });
  return py::array_t<std::int64_t>(size, data, release);
}

davinci::LongDocuments parse_long_documents(const std::string& name) {
  if (name == "error") return davinci::LongDocuments::kError;
  if (name == "split") return davinci::LongDocuments::kSplit;
  if (name == "drop") return davinci::LongDocuments::kDrop;
  throw std::invalid_argument("long_documents is '" + name + "'; it must be error, split or drop");
}

py::dict pack_best_fit(const Int64Array& lengths, std::int64_t seq_length, const std::string& long_documents) {
  require_vector(lengths, "lengths");
  const auto policy = parse_long_documents(long_documents);
  davinci::PackedSpans packed;
  {
    py::gil_scoped_release release;
    packed = davinci::pack_best_fit(lengths.data(), static_cast<std::size_t>(lengths.size()), seq_length, policy);
  }
  py::dict out;
  out["document"] = to_numpy(std::move(packed.document));
  out["start"] = to_numpy(std::move(packed.start));
  out["length"] = to_numpy(std::move(packed.length));
  out["sequence_offsets"] = to_numpy(std::move(packed.sequence_offsets));
  out["num_dropped"] = packed.num_dropped;
  out["num_split"] = packed.num_split;
  return out;
}

void add_documents(davinci::IndexedDatasetWriter& writer, const Int64Array& ids, const Int64Array& lengths) {
  require_vector(ids, "ids");
  require_vector(lengths, "lengths");
  py::gil_scoped_release release;
  writer.add_documents(ids.data(), static_cast<std::size_t>(ids.size()), lengths.data(),
                       static_cast<std::size_t>(lengths.size()));
}

// Benchmark instances end to end; `offsets` has one entry more than there are instances.
davinci::NgramIndex make_index(std::size_t n, const Int64Array& tokens, const Int64Array& offsets) {
  require_vector(tokens, "tokens");
  require_vector(offsets, "offsets");
  const std::span<const std::int64_t> ids(tokens.data(), static_cast<std::size_t>(tokens.size()));
  std::vector<std::size_t> ends;
  for (const std::int64_t offset : std::span(offsets.data(), static_cast<std::size_t>(offsets.size()))) {
    if (offset < 0 || static_cast<std::size_t>(offset) > ids.size() ||
        (!ends.empty() && static_cast<std::size_t>(offset) < ends.back()))
      throw std::invalid_argument("offsets must rise from 0 to the number of tokens");
    ends.push_back(static_cast<std::size_t>(offset));
  }
  std::vector<std::uint32_t> narrow;
  narrow.reserve(ids.size());
  for (const std::int64_t id : ids) {
    if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) throw std::invalid_argument("a token id is out of range");
    narrow.push_back(static_cast<std::uint32_t>(id));
  }
  py::gil_scoped_release release;
  return davinci::NgramIndex(n, std::move(narrow), ends);
}

// Calls `use` with the tokens of a corpus as a span of their own type: uint16 or int32, one dimension, contiguous.
template <typename Use>
auto with_tokens(const py::array& tokens, Use&& use) {
  if (tokens.ndim() != 1 || !(tokens.flags() & py::array::c_style))
    throw std::invalid_argument("tokens must be contiguous and have one dimension");
  const auto size = static_cast<std::size_t>(tokens.size());
  if (py::isinstance<py::array_t<std::uint16_t>>(tokens))
    return use(std::span(static_cast<const std::uint16_t*>(tokens.data()), size));
  if (py::isinstance<py::array_t<std::int32_t>>(tokens))
    return use(std::span(static_cast<const std::int32_t*>(tokens.data()), size));
  throw std::invalid_argument("tokens must be uint16 or int32");
}

void scan_documents(davinci::LeakageScan& scan, const py::array& tokens, const Int64Array& starts,
                    const Int64Array& lengths, std::int64_t first_document, std::size_t num_threads) {
  require_vector(starts, "starts");
  require_vector(lengths, "lengths");
  with_tokens(tokens, [&](auto ids) {
    py::gil_scoped_release release;
    scan.add(ids, std::span(starts.data(), static_cast<std::size_t>(starts.size())),
             std::span(lengths.data(), static_cast<std::size_t>(lengths.size())), first_document, num_threads);
  });
}

template <typename T>
py::array_t<std::int64_t> copy_to_numpy(const std::vector<T>& values) {
  return to_numpy(std::vector<std::int64_t>(values.begin(), values.end()));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "C++ core of data_prep: indexed datasets, packing and n-gram leakage.";

  module.def("pack_best_fit", &pack_best_fit, py::arg("lengths"), py::arg("seq_length"), py::arg("long_documents"),
             "Best-fit decreasing packing; see csrc/packing.h.");

  py::class_<davinci::IndexedDatasetWriter>(module, "IndexedDatasetWriter",
                                            "Streaming writer of a .bin/.idx pair; see csrc/indexed_dataset.h.")
      .def(py::init<std::string, std::uint64_t>(), py::arg("bin_path"), py::arg("vocabulary_size"))
      .def("add_documents", &add_documents, py::arg("ids"), py::arg("lengths"))
      .def("finish", &davinci::IndexedDatasetWriter::finish, py::arg("idx_path"),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("num_documents", &davinci::IndexedDatasetWriter::num_documents)
      .def_property_readonly("num_tokens", &davinci::IndexedDatasetWriter::num_tokens)
      .def_property_readonly("num_empty", &davinci::IndexedDatasetWriter::num_empty);

  py::class_<davinci::NgramIndex>(module, "NgramIndex", "n-grams of benchmark instances; see csrc/ngram_index.h.")
      .def(py::init(&make_index), py::arg("n"), py::arg("tokens"), py::arg("offsets"))
      .def_property_readonly("num_grams",
                             [](const davinci::NgramIndex& index) { return copy_to_numpy(index.num_grams()); });

  py::class_<davinci::LeakageScan>(module, "LeakageScan", "Running leakage of documents; see csrc/ngram_index.h.")
      .def(py::init<const davinci::NgramIndex&, double>(), py::arg("index"), py::arg("tau"), py::keep_alive<1, 2>())
      .def("add", &scan_documents, py::arg("tokens"), py::arg("starts"), py::arg("lengths"), py::arg("first_document"),
           py::arg("num_threads"))
      .def("shared_starts",
           [](const davinci::LeakageScan& scan, const py::array& document, std::size_t instance) {
             return with_tokens(document, [&](auto ids) { return to_numpy(scan.shared_starts(ids, instance)); });
           },
           py::arg("document"), py::arg("instance"))
      .def_property_readonly("most_shared",
                             [](const davinci::LeakageScan& scan) { return copy_to_numpy(scan.most_shared()); })
      .def_property_readonly("worst_document",
                             [](const davinci::LeakageScan& scan) { return copy_to_numpy(scan.worst_document()); })
      .def_property_readonly("leaking_documents",
                             [](const davinci::LeakageScan& scan) { return copy_to_numpy(scan.leaking_documents()); });
}
