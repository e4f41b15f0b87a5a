// The only file that knows Python: checks shapes, releases the GIL, hands arrays over without copying.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "indexed_dataset.h"
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

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "C++ core of data_prep: indexed datasets and packing.";

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
}
