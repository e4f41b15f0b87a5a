// The only file that knows Python: checks shapes, releases the GIL, hands arrays over without copying.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <vector>

#include "indexed_dataset.h"
#include "ngram_index.h"
#include "packing.h"
#include "text_filter.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

void require_vector(const Int64Array& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
}

std::span<const std::int64_t> as_span(const Int64Array& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// A numpy array that owns the vector's memory.
py::array_t<std::int64_t> to_numpy(std::vector<std::int64_t>&& values) {
  auto owner = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  const auto size = static_cast<py::ssize_t>(owner->size());
  const std::int64_t* data = owner->data();
  py::capsule release(owner.release(), [](void* v) { delete static_cast<std::vector<std::int64_t>*>(v); });
  return py::array_t<std::int64_t>(size, data, release);
}

davinci::ElementType parse_element_type(const std::string& name) {
  if (name == "uint8") return davinci::ElementType::kUint8;
  if (name == "uint16") return davinci::ElementType::kUint16;
  if (name == "int32") return davinci::ElementType::kInt32;
  throw std::invalid_argument("the element type is '" + name + "'; it must be uint8, uint16 or int32");
}

davinci::LongDocuments parse_long_documents(const std::string& name) {
  if (name == "error") return davinci::LongDocuments::kError;
  if (name == "split") return davinci::LongDocuments::kSplit;
  if (name == "drop") return davinci::LongDocuments::kDrop;
  throw std::invalid_argument("long_documents is '" + name + "'; it must be error, split or drop");
}

py::dict pack_best_fit(const Int64Array& lengths, std::int64_t seq_length, std::int64_t document_alignment,
                       const std::string& long_documents) {
  require_vector(lengths, "lengths");
  const auto policy = parse_long_documents(long_documents);
  davinci::PackedSpans packed;
  {
    py::gil_scoped_release release;
    packed = davinci::pack_best_fit(as_span(lengths), seq_length, document_alignment, policy);
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

// Calls `use` with the array's elements as a span of their own type; one of the types that ids and masks come in.
template <typename Use>
void with_elements(const py::array& array, Use&& use) {
  if (array.ndim() != 1 || !(array.flags() & py::array::c_style))
    throw std::invalid_argument("ids must be contiguous and have one dimension");
  const auto try_type = [&]<typename T>(T) {
    if (!py::isinstance<py::array_t<T>>(array)) return false;
    use(std::span(static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())));
    return true;
  };
  if (try_type(std::uint32_t{}) || try_type(std::int32_t{}) || try_type(std::uint16_t{}) || try_type(std::uint8_t{}) ||
      try_type(std::int64_t{}))
    return;
  throw std::invalid_argument("ids must be uint8, uint16, uint32, int32 or int64");
}

void add_to_dataset(davinci::IndexedDatasetWriter& writer, const py::array& ids, const Int64Array& lengths,
                    const std::optional<Int64Array>& sequences_per_document, std::optional<std::int64_t> end) {
  require_vector(lengths, "lengths");
  std::span<const std::int64_t> sequences;
  if (sequences_per_document) {
    require_vector(*sequences_per_document, "sequences_per_document");
    sequences = as_span(*sequences_per_document);
  }
  with_elements(ids, [&](auto elements) {
    py::gil_scoped_release release;
    writer.add(elements, as_span(lengths), sequences, end.value_or(-1));
  });
}

davinci::IndexedDatasetWriter make_writer(std::string bin_path, std::string scratch_path, const std::string& type,
                                          std::uint64_t limit, const std::array<std::uint64_t, 4>& position) {
  const auto [tokens, sequences, documents, empty] = position;
  return {std::move(bin_path), std::move(scratch_path), parse_element_type(type), limit,
          {tokens, sequences, documents, empty}};
}

std::array<std::uint64_t, 4> position_of(const davinci::IndexedDatasetWriter& writer) {
  const auto& at = writer.position();
  return {at.tokens, at.sequences, at.documents, at.empty};
}

// Benchmark instances end to end; `offsets` has one entry more than there are instances.
davinci::NgramIndex make_index(std::size_t n, const Int64Array& tokens, const Int64Array& offsets) {
  require_vector(tokens, "tokens");
  require_vector(offsets, "offsets");
  const std::span<const std::int64_t> ids = as_span(tokens);
  std::vector<std::size_t> ends;
  for (const std::int64_t offset : as_span(offsets)) {
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
    scan.add(ids, as_span(starts), as_span(lengths), first_document, num_threads);
  });
}

davinci::TextFilter make_text_filter(std::string text, const Int64Array& begins, const Int64Array& ends) {
  require_vector(begins, "begins");
  require_vector(ends, "ends");
  py::gil_scoped_release release;
  return {std::move(text), as_span(begins), as_span(ends)};
}

// Numbers of the texts that match, in order. The list keeps the strings alive while others use the interpreter.
std::vector<std::size_t> matching_texts(const davinci::TextFilter& filter, const py::list& texts) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (const py::handle text : texts) {
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (utf8 == nullptr) throw py::error_already_set();
    views.emplace_back(utf8, static_cast<std::size_t>(size));
  }
  std::vector<std::size_t> found;
  py::gil_scoped_release release;
  for (std::size_t i = 0; i < views.size(); ++i)
    if (filter.matches(views[i])) found.push_back(i);
  return found;
}

template <typename T>
py::array_t<std::int64_t> copy_to_numpy(const std::vector<T>& values) {
  return to_numpy(std::vector<std::int64_t>(values.begin(), values.end()));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  // A full disk or a missing directory is an OSError to Python, with its number.
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::system_error& error) {
      PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), error.what()).ptr());
    }
  });

  module.doc() = "C++ core of data_prep: indexed datasets, packing, n-gram leakage.";

  module.def("pack_best_fit", &pack_best_fit, py::arg("lengths"), py::arg("seq_length"),
             py::arg("document_alignment"), py::arg("long_documents"),
             "Best-fit decreasing packing; see csrc/packing.h.");

  py::class_<davinci::IndexedDatasetWriter>(module, "IndexedDatasetWriter",
                                            "Streaming writer of a .bin/.idx pair; see csrc/indexed_dataset.h.")
      .def(py::init(&make_writer), py::arg("bin_path"), py::arg("scratch_path"), py::arg("type"), py::arg("limit"),
           py::arg("position"))
      .def("add", &add_to_dataset, py::arg("ids"), py::arg("lengths"), py::arg("sequences_per_document") = std::nullopt,
           py::arg("end") = std::nullopt)
      .def("flush", &davinci::IndexedDatasetWriter::flush, py::call_guard<py::gil_scoped_release>())
      .def("finish", &davinci::IndexedDatasetWriter::finish, py::arg("idx_path"),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("position", &position_of, "(tokens, sequences, documents, empty documents dropped)");

  py::class_<davinci::NgramIndex>(module, "NgramIndex", "n-grams of benchmark instances; see csrc/ngram_index.h.")
      .def(py::init(&make_index), py::arg("n"), py::arg("tokens"), py::arg("offsets"))
      .def_property_readonly("num_grams",
                             [](const davinci::NgramIndex& index) { return copy_to_numpy(index.num_grams()); });

  py::class_<davinci::TextFilter>(module, "TextFilter", "Texts that hold any of many byte strings; see csrc/text_filter.h.")
      .def(py::init(&make_text_filter), py::arg("text"), py::arg("begins"), py::arg("ends"))
      .def("matching", &matching_texts, py::arg("texts"), "Numbers of the strings in a list that match, in order.");

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
