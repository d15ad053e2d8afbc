// Reading the tensors of another framework without its headers: addresses, shapes and strides of parameters, gradients and states.
#include "tensors.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "loop.hpp"

namespace nb = nanobind;

namespace openadam {
namespace {

// What DLPack calls a DLTensor, and the table of functions behind a type's __dlpack_c_exchange_api__ (DLPack 1.3).
struct ForeignTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t dimensions;
  std::uint8_t dtype_code;
  std::uint8_t dtype_bits;
  std::uint16_t dtype_lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Exchange {
  std::uint32_t major;
  std::uint32_t minor;
  void* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*view)(void* object, ForeignTensor* out);  // borrows; null where the framework does not offer it
  void* stream;
};

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kFloating = 2;

using Integers = nb::ndarray<std::int64_t, nb::numpy, nb::c_contig, nb::device::cpu, nb::ndim<1>>;
using Table = nb::ndarray<std::int64_t, nb::numpy, nb::c_contig, nb::device::cpu, nb::ndim<2>>;

const Exchange* exchange_of(nb::handle capsule) {
  const auto* exchange = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!exchange) throw nb::python_error();
  return exchange->major == 1 && exchange->view ? exchange : nullptr;
}

bool speaks(nb::handle capsule) { return exchange_of(capsule) != nullptr; }

// Fills in the tensor behind an object; false, without an error set, where there is none to be had.
bool view(const Exchange* exchange, PyObject* object, ForeignTensor* tensor) {
  if (exchange->view(object, tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

// Whether a tensor lies on the CPU as [dimensions, shape, strides] says, in elements of the row's dtype.
bool lies_as(const ForeignTensor& tensor, const std::int64_t* geometry, const Row& row) {
  if (tensor.device_type != kCpu || tensor.dtype_code != kFloating || tensor.dtype_lanes != 1 || tensor.dtype_bits != 8 * bytes_of(row.dtype) ||
      tensor.dimensions != geometry[0])
    return false;
  const std::int64_t* shape = geometry + 1;
  const std::int64_t* strides = shape + tensor.dimensions;
  for (std::int32_t d = 0; d < tensor.dimensions; ++d)
    if (tensor.shape[d] != shape[d] || (shape[d] > 1 && row.length > 0 && tensor.strides[d] != strides[d])) return false;
  return true;
}

std::int64_t address_of(const ForeignTensor& tensor) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset);
}

// Whether a dict still holds these objects under these names.
bool holds(PyObject* dict, PyObject* names, PyObject* objects) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(objects); ++k)
    if (PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(names, k)) != PyTuple_GET_ITEM(objects, k)) return false;
  return true;
}

// Where a row's objects lie in memory. The processor is sent there before they are needed: each is small, but all of them together are
// more than a cache holds, and to read them one after the other would be one long wait. Nothing else is done with these addresses,
// so that old ones do no harm.
inline void visit(const std::int64_t* addresses, std::size_t count) {
#if defined(__GNUC__) || defined(__clang__)
  for (std::size_t k = 0; k < count; ++k) {
    const auto* address = reinterpret_cast<const char*>(static_cast<std::uintptr_t>(addresses[k]));
    __builtin_prefetch(address);
    __builtin_prefetch(address + 64);
    __builtin_prefetch(address + 128);
  }
#else
  (void)addresses;
  (void)count;
#endif
}

constexpr std::size_t kAhead = 6;           // rows
constexpr std::size_t kGradientTraces = 2;  // the first addresses of a row are those of its gradient, noted here

struct Found {
  std::vector<std::int64_t> others;    // rows whose gradient needs a closer look
  std::vector<std::int64_t> suspects;  // whose gradient reaches into memory that the step writes
  std::vector<std::int64_t> moved;     // whose parameter or states are no longer what the table says
  std::vector<std::int64_t> missing;   // that have no gradient
};

bool states_stand(const Exchange* exchange, const Row& row, PyObject* dict, PyObject* names, PyObject* held, const std::int64_t* geometry) {
  const Py_ssize_t count = PyTuple_GET_SIZE(held);
  if (PyTuple_GET_SIZE(names) < count || count > kMaxStates) return false;
  for (Py_ssize_t s = 0; s < count; ++s) {
    PyObject* state = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(names, s));
    ForeignTensor tensor;
    if (state != PyTuple_GET_ITEM(held, s) || !view(exchange, state, &tensor) || !lies_as(tensor, geometry, row)) return false;
    if (row.length > 0 && address_of(tensor) != row.states[s]) return false;
  }
  return true;
}

// Writes the addresses of gradients that lie as their parameters do into the table, and looks whether parameters and states are still
// where it says. `geometry` holds, from `places[i]` on, row i's dimensions, shape and strides; a negative place leaves the row to the
// caller. `dicts`, `names` and `held` are, per row, the dict of its states, their keys and the tensors that the table points to;
// `scalars` are the tensors that show its scalar states, under names that all rows share.
std::tuple<std::vector<std::int64_t>, std::vector<std::int64_t>, std::vector<std::int64_t>, std::vector<std::int64_t>> read_tensors(
    nb::handle capsule, nb::handle tensor_type, nb::list parameters, nb::list dicts, nb::list names, nb::list held, nb::tuple scalar_names,
    nb::list scalars, const Table& table, const Integers& places, const Integers& geometry, const Integers& starts, const Integers& ends,
    const Table& traces, bool recheck) {
  const Exchange* exchange = exchange_of(capsule);
  const auto rows = table.shape(0);
  if (!exchange) throw std::invalid_argument("the framework does not speak the exchange interface");
  if (static_cast<std::int64_t>(table.shape(1)) != kColumns || parameters.size() != rows || dicts.size() != rows || names.size() != rows ||
      held.size() != rows || scalars.size() != rows || places.size() != rows || starts.size() != ends.size() || traces.shape(0) != rows ||
      traces.shape(1) < kGradientTraces)
    throw std::invalid_argument("the lists and the table differ in length");
  static PyObject* const grad = PyUnicode_InternFromString("grad");
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  Found found;
  const std::size_t trace_size = traces.shape(1);
  auto* row = reinterpret_cast<Row*>(table.data());
  for (std::size_t r = 0; r < rows; ++r, ++row) {
    const auto i = static_cast<std::int64_t>(r);
    if (places.data()[r] < 0) {
      found.others.push_back(i);
      continue;
    }
    if (r + kAhead < rows) visit(traces.data() + (r + kAhead) * trace_size, trace_size);
    PyObject* parameter = PyList_GET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(r));
    const nb::object gradient = nb::steal(PyObject_GetAttr(parameter, grad));
    if (!gradient.is_valid()) throw nb::python_error();
    row->layout = -1;
    row->active = !gradient.is_none();
    if (!row->active) {
      found.missing.push_back(i);
      continue;
    }
    const std::int64_t* lies = geometry.data() + places.data()[r];
    ForeignTensor tensor;
    if (!view(exchange, parameter, &tensor) || !lies_as(tensor, lies, *row) || (row->length > 0 && address_of(tensor) != row->parameter)) {
      found.moved.push_back(i);
      continue;
    }
    const auto at = static_cast<Py_ssize_t>(r);
    PyObject* dict = PyList_GET_ITEM(dicts.ptr(), at);
    PyObject* states = PyList_GET_ITEM(held.ptr(), at);
    PyObject* shown = PyList_GET_ITEM(scalars.ptr(), at);
    if (PyTuple_GET_SIZE(states) + PyTuple_GET_SIZE(shown) > 0 &&
        (!holds(dict, scalar_names.ptr(), shown) || !states_stand(exchange, *row, dict, PyList_GET_ITEM(names.ptr(), at), states, lies))) {
      found.moved.push_back(i);
      continue;
    }
    if (reinterpret_cast<PyObject*>(Py_TYPE(gradient.ptr())) != tensor_type.ptr() || !view(exchange, gradient.ptr(), &tensor) ||
        !lies_as(tensor, lies, *row) || (address_of(tensor) & (bytes_of(row->dtype) - 1))) {
      found.others.push_back(i);
      continue;
    }
    std::int64_t* trace = traces.data() + r * trace_size;
    trace[0] = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(gradient.ptr()));
    trace[1] = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.shape) - 64);  // within the tensor itself
    const std::int64_t low = address_of(tensor);
    if (recheck || row->gradient != low) {
      // A negated view shows other numbers than its memory holds.
      const nb::object negated = nb::steal(PyObject_CallMethodNoArgs(gradient.ptr(), is_neg));
      if (!negated.is_valid()) throw nb::python_error();
      if (negated.ptr() != Py_False) {
        found.others.push_back(i);
        continue;
      }
      const std::int64_t high = low + row->length * bytes_of(row->dtype);
      const auto after = std::lower_bound(starts.data(), starts.data() + starts.size(), high) - starts.data();
      if (after > 0 && ends.data()[after - 1] > low && high > low) found.suspects.push_back(i);
    }
    row->gradient = low;
  }
  return {std::move(found.others), std::move(found.suspects), std::move(found.moved), std::move(found.missing)};
}

// Whether the values of a dict are, in its order, the objects of the list; values that are none of its rows' are passed over.
bool same_values(nb::dict dict, nb::list values) {
  PyObject* key;
  PyObject* value;
  Py_ssize_t at = 0;
  Py_ssize_t next = 0;
  const Py_ssize_t count = PyList_GET_SIZE(values.ptr());
  while (PyDict_Next(dict.ptr(), &at, &key, &value))
    if (next < count && value == PyList_GET_ITEM(values.ptr(), next)) ++next;
  return next == count;
}

// Whether two lists hold the same objects.
bool same_items(nb::list a, nb::list b) {
  const Py_ssize_t count = PyList_GET_SIZE(a.ptr());
  if (PyList_GET_SIZE(b.ptr()) != count) return false;
  for (Py_ssize_t k = 0; k < count; ++k)
    if (PyList_GET_ITEM(a.ptr(), k) != PyList_GET_ITEM(b.ptr(), k)) return false;
  return true;
}

}  // namespace

void bind_tensors(nb::module_& m) {
  m.attr("GRADIENT_TRACES") = kGradientTraces;
  m.def("speaks", &speaks, nb::arg("capsule"), "Whether tensors can be read through this exchange interface.");
  m.def("read_tensors", &read_tensors, nb::arg("capsule"), nb::arg("tensor_type"), nb::arg("parameters"), nb::arg("dicts"), nb::arg("names"),
        nb::arg("held"), nb::arg("scalar_names"), nb::arg("scalars"), nb::arg("table").noconvert(), nb::arg("places").noconvert(),
        nb::arg("geometry").noconvert(), nb::arg("starts").noconvert(), nb::arg("ends").noconvert(), nb::arg("traces").noconvert(),
        nb::arg("recheck"),
        "Write the addresses of plain gradients into the table; returns the rows that need a closer look, that reach into protected memory, "
        "whose parameter or states have moved, and that have no gradient.");
  m.def("same_values", &same_values, nb::arg("dict"), nb::arg("values"), "Whether a dict still holds these objects, in this order.");
  m.def("same_items", &same_items, nb::arg("a"), nb::arg("b"), "Whether two lists hold the same objects.");
}

}  // namespace openadam
