// Reading torch's tensors into the table: every parameter, gradient, state and counter is asked in every step; none is converted.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "framework.hpp"
#include "memory.hpp"
#include "table.hpp"

namespace nb = nanobind;

namespace openadam {
namespace {

bool is_real(const ForeignTensor& tensor, std::int64_t* dtype) {
  *dtype = tensor.dtype_bits == 32 ? kFloat32 : kFloat64;
  return tensor.device_type == kCpu && tensor.dtype_code == kFloating && tensor.dtype_lanes == 1 &&
         (tensor.dtype_bits == 32 || tensor.dtype_bits == 64);
}

bool same_kind(const ForeignTensor& a, const ForeignTensor& b) {
  return a.device_type == b.device_type && a.dtype_code == b.dtype_code && a.dtype_bits == b.dtype_bits && a.dtype_lanes == b.dtype_lanes &&
         a.dimensions == b.dimensions && std::equal(a.shape, a.shape + a.dimensions, b.shape);
}

bool is_contiguous(const ForeignTensor& tensor) {
  std::int64_t expected = 1;
  for (std::int32_t d = tensor.dimensions - 1; d >= 0; --d) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

// Axes of more than one element, the farthest stride first.
std::vector<std::int32_t> order_of(const ForeignTensor& tensor) {
  std::vector<std::int32_t> order;
  for (std::int32_t d = 0; d < tensor.dimensions; ++d)
    if (tensor.shape[d] != 1) order.push_back(d);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return tensor.strides[a] > tensor.strides[b]; });
  return order;
}

bool is_dense_in(const std::vector<std::int32_t>& order, const ForeignTensor& tensor) {
  std::int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (tensor.strides[*d] != expected) return false;
    expected *= tensor.shape[*d];
  }
  return true;
}

// Whether no two elements share memory: each axis steps farther than those within it reach.
bool is_injective(const std::vector<std::int32_t>& order, const ForeignTensor& tensor) {
  std::int64_t reach = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (tensor.strides[*d] < reach) return false;
    reach += tensor.strides[*d] * (tensor.shape[*d] - 1);
  }
  return true;
}

// Whether a tensor's elements all lie within its storage, which may have been made smaller under it.
bool has_room(const Viewed& tensor) {
  std::int64_t reach = 0;
  for (std::int32_t d = 0; d < tensor.dimensions; ++d) {
    if (tensor.shape[d] == 0) return true;
    reach += (tensor.shape[d] - 1) * tensor.strides[d];
  }
  return address_of(tensor) != 0 && (reach + 1) * (tensor.dtype_bits / 8) <= tensor.room;
}

// Takes over where the tensors of a row lie; false where the loop cannot reach them.
bool place(Table& table, std::size_t i, const Viewed& p, const Viewed& g, const Viewed* states, std::size_t count) {
  Row& row = table.row(i);
  if (!is_real(p, &row.dtype) || !same_kind(p, g) || !has_room(p) || !has_room(g)) return false;
  bool contiguous = is_contiguous(p) && is_contiguous(g);
  for (std::size_t s = 0; s < count; ++s) {
    if (!same_kind(p, states[s]) || !has_room(states[s])) return false;
    contiguous = contiguous && is_contiguous(states[s]);
  }
  const std::int64_t misaligned = bytes_of(row.dtype) - 1;
  row.parameter = address_of(p);
  row.gradient = address_of(g);
  row.layout = -1;
  row.length = 1;
  for (std::int32_t d = 0; d < p.dimensions; ++d) row.length *= p.shape[d];
  for (std::size_t s = 0; s < count; ++s) {
    row.states[s] = address_of(states[s]);
    if (row.length > 0 && (row.states[s] & misaligned)) return false;
  }
  const bool p_aligned = !(row.parameter & misaligned);
  const bool g_aligned = !(row.gradient & misaligned);
  if (row.length == 0 || (contiguous && p_aligned && g_aligned)) return true;
  if (p.dimensions > kMaxDimensions) return false;
  // Elements are taken in the order in which the states lie, or the parameter where there are none.
  const std::vector<std::int32_t> order = order_of(count ? states[0] : p);
  for (std::size_t s = 0; s < count; ++s)
    if (!is_dense_in(order, states[s])) return false;
  const bool p_dense = is_dense_in(order, p) && p_aligned;
  const bool g_dense = is_dense_in(order, g) && g_aligned;
  if (p_dense && g_dense) return true;
  if (!p_dense && !is_injective(order_of(p), p)) return false;
  auto& layouts = table.layouts();
  row.layout = static_cast<std::int64_t>(layouts.size());
  layouts.push_back(static_cast<std::int64_t>(order.size()));
  layouts.push_back(!p_dense);
  layouts.push_back(!g_dense);
  for (const std::int32_t d : order) layouts.push_back(p.shape[d]);
  for (const std::int32_t d : order) layouts.push_back(p.strides[d] * bytes_of(row.dtype));
  for (const std::int32_t d : order) layouts.push_back(g.strides[d] * bytes_of(row.dtype));
  return true;
}

// Where a number lies that the step reads and writes: one element on the CPU, of a type that it can count in.
bool number_in(const Viewed& tensor, Number* number) {
  std::int64_t elements = 1;
  for (std::int32_t d = 0; d < tensor.dimensions; ++d) elements *= tensor.shape[d];
  if (tensor.device_type != kCpu || tensor.dtype_lanes != 1 || elements != 1 || !has_room(tensor)) return false;
  if (tensor.dtype_code == kFloating && tensor.dtype_bits == 32)
    number->type = Number::kSingle;
  else if (tensor.dtype_code == kFloating && tensor.dtype_bits == 64)
    number->type = Number::kDouble;
  else if (tensor.dtype_code == kInteger && tensor.dtype_bits == 64)
    number->type = Number::kWhole;
  else
    return false;
  number->address = address_of(tensor);
  return !(number->address & (tensor.dtype_bits / 8 - 1));
}

// Whether a number is a number of steps after which another can be counted.
bool can_count(const Number& number, double steps) {
  return steps >= 0 && steps == std::floor(steps) && steps < (number.type == Number::kSingle ? kMostSingleSteps : kMostSteps);
}

// The states of one parameter as they are now: in a dict, which is asked by name.
bool read_states(const Framework& framework, Table& table, std::size_t i, PyObject* own, const Viewed& p, const Viewed& g) {
  const Update& update = table.update_of(i);
  Item& item = table.item(i);
  const std::size_t states = update.state_names.size();
  if (static_cast<std::int64_t>(states) != table.kernels().updates[update.kernel].states) return false;
  Viewed tensors[kMaxStates];
  Viewed tensor;
  const auto found = [&](const nb::object& name, Viewed* out) {
    PyObject* object = own ? PyDict_GetItemWithError(own, name.ptr()) : nullptr;
    if (!object) {
      if (PyErr_Occurred()) throw nb::python_error();
      return false;
    }
    if (!framework.view(object, out, &table.traces(i))) return false;
    table.hold(object);
    return true;
  };
  for (std::size_t s = 0; s < states; ++s)
    if (!found(update.state_names[s], &tensors[s])) return false;
  if (!place(table, i, p, g, tensors, states)) return false;
  for (std::size_t k = 0; k < update.memory_names.size(); ++k) {
    if (!found(update.memory_names[k], &tensor) || !number_in(tensor, &item.memory[k]) || item.memory[k].type == Number::kWhole) return false;
    if (const double value = item.memory[k].get(); !(value >= 0 && value <= std::numeric_limits<double>::max())) return false;
  }
  item.count = {};
  double steps = states ? 1 : 0;  // where nothing counts, a velocity that exists has seen a gradient
  if (!update.count_name.is_none()) {
    if (!found(update.count_name, &tensor) || !number_in(tensor, &item.count)) return false;
    table.traces(i).count = static_cast<const char*>(tensor.data);
    steps = item.count.get();
    if (!can_count(item.count, steps)) return false;
  }
  table.activate(i, steps + 1);
  return true;
}

constexpr std::size_t kAhead = 8;  // rows to send the processor ahead

// Walks a dict beside a list of its keys: entries usually come in the same order, and then need not be looked up.
class Cursor {
 public:
  explicit Cursor(PyObject* dict) : dict_(dict) {}

  PyObject* find(PyObject* key) {
    PyObject* found;
    PyObject* value;
    Py_ssize_t at = at_;
    for (int tries = 0; tries < 3 && PyDict_Next(dict_, &at, &found, &value); ++tries) {
      if (found == key) {
        at_ = at;
        return value;
      }
    }
    value = PyDict_GetItemWithError(dict_, key);
    if (!value && PyErr_Occurred()) throw nb::python_error();
    return value;
  }

 private:
  PyObject* dict_;
  Py_ssize_t at_ = 0;
};

// Begins a step with all rows that are plain. Returns the rows that need a closer look, or nothing where the groups do not hold the
// parameters that the table was made for.
std::optional<std::vector<std::int64_t>> read_tensors(const Framework& framework, Table& table, nb::handle groups, nb::handle state) {
  static PyObject* const grad = PyUnicode_InternFromString("grad");
  static PyObject* const params = PyUnicode_InternFromString("params");
  table.begin();
  std::vector<std::int64_t> others;
  const std::size_t rows = table.count();
  std::size_t i = 0;
  const bool dict_of_dicts = PyDict_Check(state.ptr());
  Cursor cursor(state.ptr());
  const nb::object all = nb::steal(PySequence_Fast(groups.ptr(), "param_groups must be a sequence"));
  if (!all.is_valid()) throw nb::python_error();
  for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(all.ptr()); ++k) {
    const nb::object given = nb::steal(PyObject_GetItem(PySequence_Fast_GET_ITEM(all.ptr(), k), params));
    if (!given.is_valid()) throw nb::python_error();
    const nb::object list = nb::steal(PySequence_Fast(given.ptr(), "params must be a sequence"));
    if (!list.is_valid()) throw nb::python_error();
    for (Py_ssize_t n = 0; n < PySequence_Fast_GET_SIZE(list.ptr()); ++n, ++i) {
      PyObject* parameter = PySequence_Fast_GET_ITEM(list.ptr(), n);
      if (i >= rows || table.item(i).identity != reinterpret_cast<std::uintptr_t>(parameter)) return std::nullopt;
      if (table.item(i).update / 2 != static_cast<std::size_t>(k)) return std::nullopt;  // a group has two updates: decayed or not
      if (table.item(i).repeated) continue;
      if (i + kAhead < rows) table.traces(i + kAhead).visit(framework.length_of_description());
      Traces& traces = table.traces(i);
      traces.begin();
      const nb::object gradient = nb::steal(PyObject_GetAttr(parameter, grad));
      if (!gradient.is_valid()) throw nb::python_error();
      if (gradient.is_none()) continue;
      table.hold(parameter);
      table.item(i).parameter = parameter;
      Viewed p;
      Viewed g;
      PyObject* own = nullptr;
      bool plain =
          dict_of_dicts && table.row(i).kernel > 0 && framework.view(parameter, &p, &traces, true) && framework.view(gradient.ptr(), &g, &traces);
      if (plain) {
        own = cursor.find(parameter);
        plain = own && PyDict_Check(own);
        if (plain) {
          traces.dict = reinterpret_cast<const char*>(own);
          traces.keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(own)->ma_keys);
        }
        if (!own && table.update_of(i).state_names.empty() && table.update_of(i).count_name.is_none()) plain = true;  // there is nothing to keep
      }
      if (plain && read_states(framework, table, i, own, p, g)) {
        table.hold(gradient.ptr());
      } else {
        others.push_back(static_cast<std::int64_t>(i));
      }
    }
  }
  if (i != rows) return std::nullopt;
  return others;
}

// Takes over a row that was looked at: the real tensors that stand for its parameter, gradient and states, and its numbers. Returns whether
// the loop reaches it; if not, the row takes no part.
bool place_tensors(const Framework& framework, Table& table, std::size_t i, nb::handle parameter, nb::handle gradient,
                   const std::vector<nb::object>& states, nb::handle count, double steps, const std::vector<nb::object>& memory) {
  Viewed p;
  Viewed g;
  Viewed tensors[kMaxStates];
  Viewed tensor;
  const Update& update = table.update_of(table.at(i));
  Item& item = table.item(i);
  if (table.row(i).kernel <= 0 || states.size() > kMaxStates || memory.size() > kMaxMemory ||
      static_cast<std::int64_t>(states.size()) != table.kernels().updates[update.kernel].states ||
      static_cast<std::int64_t>(memory.size()) != scalar_programs()[update.kernel].states)
    return false;
  if (!framework.view(parameter.ptr(), &p) || !framework.view(gradient.ptr(), &g)) return false;
  for (std::size_t s = 0; s < states.size(); ++s)
    if (!framework.view(states[s].ptr(), &tensors[s])) return false;
  item.count = {};
  if (!count.is_none() && (!framework.view(count.ptr(), &tensor) || !number_in(tensor, &item.count))) return false;
  for (std::size_t k = 0; k < memory.size(); ++k)
    if (!framework.view(memory[k].ptr(), &tensor) || !number_in(tensor, &item.memory[k]) || item.memory[k].type == Number::kWhole) return false;
  if (!place(table, i, p, g, tensors, states.size())) return false;
  for (const nb::handle object : {parameter, gradient, count}) table.hold(object.ptr());
  for (const nb::object& object : states) table.hold(object.ptr());
  for (const nb::object& object : memory) table.hold(object.ptr());
  table.activate(i, steps + 1);
  return true;
}

// The parameters that take part, for who must be told that they change.
nb::list active_parameters(Table& table) {
  nb::list found;
  for (std::size_t i = 0; table.holds() && i < table.count(); ++i)
    if (table.row(i).active && table.item(i).parameter) found.append(nb::borrow(table.item(i).parameter));
  return found;
}

// Asks for huge pages in memory that nobody has touched yet, as far as it fills such pages.
void advise(std::int64_t address, std::int64_t bytes) { advise_huge_pages(reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), bytes); }

}  // namespace

void bind_tensors(nb::module_& m) {
  nb::class_<Framework>(m, "Framework", "Tensors of another library, as memory.")
      .def(nb::init<nb::object, std::vector<nb::object>, std::vector<std::int64_t>>(), nb::arg("capsule"), nb::arg("types"), nb::arg("anatomy"))
      .def("add_type", &Framework::add_type, nb::arg("type"), "Take tensors of this type for memory, too.");
  m.def("read_tensors", &read_tensors, nb::arg("framework"), nb::arg("table"), nb::arg("groups"), nb::arg("state"),
        "Begin a step with the rows that are plain; returns those that need a closer look, or None where the groups hold other parameters.");
  m.def("place_tensors", &place_tensors, nb::arg("framework"), nb::arg("table"), nb::arg("row"), nb::arg("parameter"), nb::arg("gradient"),
        nb::arg("states"), nb::arg("count").none(), nb::arg("steps"), nb::arg("memory"),
        "Let a row that was looked at take part; returns whether the loop reaches its tensors.");
  m.def("active_parameters", &active_parameters, nb::arg("table"), "The parameters of the rows that take part.");
  m.def("advise_huge_pages", &advise, nb::arg("address"), nb::arg("bytes"), "Ask for huge pages where untouched memory fills them.");
}

}  // namespace openadam
