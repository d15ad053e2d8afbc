// Reading NumPy's arrays into the table: in every step each is asked where it lies, of what type it is and whether it may be written.
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <stdexcept>

#include "table.hpp"

namespace nb = nanobind;

namespace openadam {
namespace {

std::int64_t address_of(PyArrayObject* array) { return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(PyArray_DATA(array))); }

// Dense in the order of its axes, aligned, in the processor's byte order.
bool is_plain(PyArrayObject* array) { return PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISALIGNED(array) && PyArray_ISNOTSWAPPED(array); }

bool dtype_of(PyArrayObject* array, std::int64_t* dtype) {
  const int type = PyArray_TYPE(array);
  *dtype = type == NPY_FLOAT ? kFloat32 : kFloat64;
  return type == NPY_FLOAT || type == NPY_DOUBLE;
}

// Reads a row whose parameter and gradient are plain arrays of one dtype and shape; false where they are not.
bool read_row(Table& table, std::size_t i, PyObject* gradient) {
  PyObject* parameter = table.item(i).array.ptr();
  if (!PyArray_CheckExact(gradient) || !parameter || !PyArray_Check(parameter)) return false;
  auto* g = reinterpret_cast<PyArrayObject*>(gradient);
  auto* p = reinterpret_cast<PyArrayObject*>(parameter);
  Row& row = table.row(i);
  std::int64_t dtype = 0;
  const int dimensions = PyArray_NDIM(p);
  if (!is_plain(p) || !is_plain(g) || !PyArray_ISWRITEABLE(p) || !dtype_of(p, &dtype) || PyArray_TYPE(g) != PyArray_TYPE(p) ||
      PyArray_NDIM(g) != dimensions || !std::equal(PyArray_DIMS(p), PyArray_DIMS(p) + dimensions, PyArray_DIMS(g)) || dtype != row.dtype ||
      PyArray_SIZE(p) != table.item(i).elements || !(table.item(i).count.get() < kMostSteps))
    return false;
  row.parameter = address_of(p);
  row.gradient = address_of(g);
  row.length = table.item(i).elements;
  row.layout = -1;
  return true;
}

// Takes over the gradients that are plain, and returns the rows that need a closer look.
std::vector<std::int64_t> read_arrays(Table& table, nb::list gradients) {
  if (static_cast<std::size_t>(PyList_GET_SIZE(gradients.ptr())) != table.count())
    throw std::invalid_argument("gradients and table differ in length");
  table.begin();
  std::vector<std::int64_t> others;
  for (std::size_t i = 0; i < table.count(); ++i) {
    PyObject* gradient = PyList_GET_ITEM(gradients.ptr(), static_cast<Py_ssize_t>(i));
    if (read_row(table, i, gradient)) {
      table.hold(gradient);
      table.activate(i, table.item(i).count.get() + 1);
    } else {
      others.push_back(static_cast<std::int64_t>(i));
    }
  }
  return others;
}

// Takes over a row that was looked at: addresses, and how the elements lie where they are not dense.
void place_array(Table& table, std::size_t i, std::int64_t parameter, std::int64_t gradient, const std::vector<std::int64_t>& layout,
                 nb::object hold) {
  Row& row = table.row(table.at(i));
  row.parameter = parameter;
  row.gradient = gradient;
  row.length = table.item(i).elements;
  table.lay_out(i, layout);
  table.hold(hold.ptr());
  table.activate(i, table.item(i).count.get() + 1);
}

// What belongs to a row of arrays for good: its length and dtype, the addresses of its states, and its numbers, which lie together.
void set_memory(Table& table, std::size_t i, std::int64_t length, std::int64_t dtype, const std::vector<std::int64_t>& states, std::int64_t numbers,
                std::size_t memory) {
  Row& row = table.row(table.at(i));
  if (states.size() > kMaxStates || memory > kMaxMemory) throw std::invalid_argument("too many states");
  row.length = table.item(i).elements = length;
  row.dtype = dtype;
  std::copy(states.begin(), states.end(), row.states);
  Item& item = table.item(i);
  item.count = {numbers, Number::kDouble};
  for (std::size_t k = 0; k < memory; ++k) item.memory[k] = {numbers + 8 * static_cast<std::int64_t>(1 + k), Number::kDouble};
}

int import_numpy() {
  import_array1(-1);
  return 0;
}

}  // namespace

void bind_arrays(nb::module_& m) {
  if (import_numpy() < 0) throw nb::python_error();
  m.def("read_arrays", &read_arrays, nb::arg("table"), nb::arg("gradients"),
        "Begin a step with the gradients that are plain; returns the rows that need a closer look.");
  m.def("place_array", &place_array, nb::arg("table"), nb::arg("row"), nb::arg("parameter"), nb::arg("gradient"), nb::arg("layout"),
        nb::arg("hold").none(), "Let a row that was looked at take part: two addresses and, unless both are dense, a layout.");
  m.def("set_memory", &set_memory, nb::arg("table"), nb::arg("row"), nb::arg("length"), nb::arg("dtype"), nb::arg("states"), nb::arg("numbers"),
        nb::arg("memory"), "What stays with a row: length, dtype, the states' addresses, and where its number of steps and scalar states lie.");
}

}  // namespace openadam
