// Reading torch's tensors into the table: every parameter, gradient, state and counter is asked in every step; none is converted.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
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

// Takes over where the tensors of a row lie; false where the loop cannot reach them, or they do not lie densely and no layout is wanted.
bool place(Table& table, std::size_t i, const Viewed& p, const Viewed& g, const Viewed* states, std::size_t count, bool with_layout) {
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
  if (!with_layout || p.dimensions > kMaxDimensions) return false;
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

constexpr std::size_t kAhead = 4;  // rows to send the processor ahead

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

// Gets one attribute of many objects that are mostly of one type, for which it is looked up once: torch's own is a pair of functions.
class Attribute {
 public:
  explicit Attribute(const char* name) : name_(nb::steal(PyUnicode_InternFromString(name))) {}

  nb::object of(PyObject* object) {
    if (Py_TYPE(object) != type_) look_up(Py_TYPE(object));
    const nb::object value = nb::steal(getter_ ? getter_->get(object, getter_->closure) : PyObject_GetAttr(object, name_.ptr()));
    if (!value.is_valid()) throw nb::python_error();
    return value;
  }

 private:
  void look_up(PyTypeObject* type) {
    type_ = type;
    getter_ = nullptr;
    descriptor_ = nb::steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_.ptr()));
    if (!descriptor_.is_valid()) return PyErr_Clear();
    const bool usual = type->tp_getattro == PyObject_GenericGetAttr && Py_IS_TYPE(descriptor_.ptr(), &PyGetSetDescr_Type);
    if (usual && PyType_IsSubtype(type, PyDescr_TYPE(descriptor_.ptr())))
      getter_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor_.ptr())->d_getset;
  }

  nb::object name_;
  nb::object descriptor_;
  PyTypeObject* type_ = nullptr;
  PyGetSetDef* getter_ = nullptr;
};

std::uint64_t mixed(std::uint64_t hash, std::uint64_t number) { return (hash ^ number) * 1099511628211u; }

// What has become of a row while the tensors are read.
enum class Stage : std::uint8_t { kOut, kGathered, kReached, kOdd };

// Collects the objects of one parameter: itself, its gradient, and its states, which a dict has by name. False where one is missing or is
// not of a kind that is nothing but memory.
bool gather(const Framework& framework, Table& table, std::size_t i, PyObject* parameter, PyObject* gradient, Cursor& every_state) {
  const Update& update = table.update_of(i);
  Traces& traces = table.traces(i);
  if (update.mover == 0 || static_cast<std::int64_t>(update.state_names.size()) != table.mover_of(update).states) return false;
  traces.add(parameter);
  traces.add(gradient);
  if (!framework.is_known(parameter) || !framework.is_known(gradient)) return false;
  PyObject* own = every_state.find(parameter);
  const bool counts = !update.count_name.is_none();
  if (!own) return update.state_names.empty() && !counts;  // there is nothing to keep
  if (!PyDict_Check(own)) return false;
  traces.dict = reinterpret_cast<const char*>(own);
  traces.keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(own)->ma_keys);
  Cursor cursor(own);
  const auto found = [&](const nb::object& name) {
    PyObject* object = cursor.find(name.ptr());
    if (!object || !framework.is_known(object)) return false;
    table.hold(object);
    traces.add(object);
    return true;
  };
  return (!counts || found(update.count_name)) && std::all_of(update.state_names.begin(), update.state_names.end(), found) &&
         std::all_of(update.memory_names.begin(), update.memory_names.end(), found);
}

// Takes over a row whose objects are gathered: each tensor is recognised, or where that is allowed, asked. False where the loop cannot
// reach it, or not without asking.
bool reach(const Framework& framework, Table& table, std::size_t i, bool ask) {
  const Update& update = table.update_of(i);
  Traces& traces = table.traces(i);
  Item& item = table.item(i);
  Viewed tensors[Traces::kTensors];
  for (int k = 0; k < traces.size(); ++k)
    if (!framework.recognise(traces[k], &tensors[k]) && !(ask && framework.view(&traces[k], &tensors[k]))) return false;
  const bool counts = !update.count_name.is_none() && traces.size() > 2;
  const Viewed* const states = tensors + 2 + counts;
  if (!place(table, i, tensors[0], tensors[1], states, update.state_names.size(), ask)) return false;
  for (std::size_t k = 0; k < update.memory_names.size(); ++k) {
    Number& number = item.memory[k];
    if (!number_in(states[update.state_names.size() + k], &number) || number.type == Number::kWhole) return false;
    if (const double value = number.get(); !(value >= 0 && value <= std::numeric_limits<double>::max())) return false;
  }
  item.count = {};
  double steps = update.state_names.empty() ? 0 : 1;  // where nothing counts, a velocity that exists has seen a gradient
  if (counts) {
    if (!number_in(tensors[2], &item.count)) return false;
    traces.count = static_cast<const char*>(tensors[2].data);
    steps = item.count.get();
    if (!can_count(item.count, steps)) return false;
  }
  item.t = steps + 1;
  item.versions = 1;
  for (std::size_t k = 0; framework.counts_versions() && k < update.state_names.size(); ++k) {
    const Traces::Tensor& state = traces[static_cast<int>(2 + counts + k)];
    if (!state.version) return true;
    item.versions = mixed(mixed(item.versions, reinterpret_cast<std::uintptr_t>(state.object)), framework.version_of(state));
  }
  return true;
}

// Reaches the gathered rows whose tensors are recognised, on several threads where there are many. No thread calls the interpreter, whose
// lock the calling one holds.
void reach_recognised(const Framework& framework, Table& table, std::vector<Stage>& stages, int threads) {
  constexpr std::size_t kRows = 128;  // that one thread takes at a time
  std::atomic<std::size_t> next{0};
  const std::size_t rows = stages.size();
  const std::int64_t length = framework.length_of_description();
  const int useful = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(threads), 1 + rows / (4 * kRows)));
  Pool::instance().run(useful > 1 ? threads : 1, table.team(), [&]() noexcept {
    for (std::size_t begin; (begin = next.fetch_add(kRows, std::memory_order_relaxed)) < rows;) {
      const std::size_t end = std::min(begin + kRows, rows);
      for (std::size_t i = begin; rows > kRows && i < std::min(begin + kAhead, end); ++i) table.traces(i).send_to_tensors(length);
      for (std::size_t i = begin; i < end; ++i) {
        if (i + kAhead < end) table.traces(i + kAhead).send_to_tensors(length);
        if (stages[i] == Stage::kGathered && reach(framework, table, i, false)) stages[i] = Stage::kReached;
      }
    }
  });
}

// Begins a step with all rows that are plain. Returns the rows that need a closer look, or nothing where the groups do not hold the
// parameters that the table was made for.
std::optional<std::vector<std::int64_t>> read_tensors(const Framework& framework, Table& table, nb::handle groups, nb::handle state, int threads) {
  static PyObject* const params = PyUnicode_InternFromString("params");
  table.begin();
  Attribute gradient_of("grad");
  const std::size_t rows = table.count();
  std::vector<Stage> stages(rows, Stage::kOut);
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
      if (i + kAhead < rows) table.traces(i + kAhead).send_to_objects(framework.length_of_description());
      table.traces(i).begin();
      const nb::object gradient = gradient_of.of(parameter);
      if (gradient.is_none()) continue;
      table.hold(parameter);
      table.hold(gradient.ptr());
      table.item(i).parameter = parameter;
      stages[i] = dict_of_dicts && gather(framework, table, i, parameter, gradient.ptr(), cursor) ? Stage::kGathered : Stage::kOdd;
    }
  }
  if (i != rows) return std::nullopt;
  reach_recognised(framework, table, stages, threads);
  std::vector<std::int64_t> others;
  table.versions = 0;
  for (i = 0; i < rows; ++i) {
    if (stages[i] == Stage::kReached || (stages[i] == Stage::kGathered && reach(framework, table, i, true))) {
      table.activate(i, table.item(i).t);
      table.versions = mixed(mixed(table.versions, i), table.item(i).versions);
    } else if (stages[i] != Stage::kOut) {
      others.push_back(static_cast<std::int64_t>(i));
    }
  }
  return others;
}

// Takes over a row that was looked at: the real tensors that stand for its parameter, gradient and states, and its numbers. Returns whether
// the loop reaches it; if not, the row takes no part. With a layout, the gradient is for the rows that it names: contiguous, as the others.
bool place_tensors(const Framework& framework, Table& table, std::size_t i, nb::handle parameter, nb::handle gradient,
                   const std::vector<nb::object>& states, nb::handle count, double steps, const std::vector<nb::object>& memory,
                   const std::vector<std::int64_t>& layout) {
  Viewed p;
  Viewed g;
  Viewed tensors[kMaxStates];
  Viewed tensor;
  const Update& update = table.update_of(table.at(i));
  Item& item = table.item(i);
  const Mover& mover = table.mover_of(update);
  if (update.mover == 0 || static_cast<std::int64_t>(states.size()) != mover.states || static_cast<std::int64_t>(memory.size()) != mover.memory)
    return false;
  if (!framework.view(parameter.ptr(), &p) || !framework.view(gradient.ptr(), &g)) return false;
  for (std::size_t s = 0; s < states.size(); ++s)
    if (!framework.view(states[s].ptr(), &tensors[s])) return false;
  item.count = {};
  if (!count.is_none() && (!framework.view(count.ptr(), &tensor) || !number_in(tensor, &item.count))) return false;
  for (std::size_t k = 0; k < memory.size(); ++k)
    if (!framework.view(memory[k].ptr(), &tensor) || !number_in(tensor, &item.memory[k]) || item.memory[k].type == Number::kWhole) return false;
  if (!place(table, i, p, layout.empty() ? g : p, tensors, states.size(), layout.empty())) return false;
  if (!layout.empty()) {
    Row& row = table.row(i);
    row.gradient = address_of(g);
    table.lay_out(i, layout);
    std::int64_t values = 1;
    for (std::int32_t d = 0; d < g.dimensions; ++d) values *= g.shape[d];
    if (!is_contiguous(g) || !has_room(g) || g.dtype_bits != p.dtype_bits || g.dtype_code != p.dtype_code || g.device_type != kCpu ||
        values != row.length || (values > 0 && (row.gradient & (bytes_of(row.dtype) - 1))))
      return false;
  }
  for (const nb::handle object : {parameter, gradient, count}) table.hold(object.ptr());
  for (const nb::object& object : states) table.hold(object.ptr());
  for (const nb::object& object : memory) table.hold(object.ptr());
  table.activate(i, steps + 1);
  return true;
}

// Calls a function with lists of the parameters that take part, some at a time: those that come next can be sent for meanwhile.
void tell_active(Table& table, nb::handle function) {
  constexpr std::size_t kAtATime = 64;
  const std::size_t rows = table.holds() ? table.count() : 0;
  for (std::size_t begin = 0; begin < rows; begin += kAtATime) {
    const std::size_t end = std::min(begin + kAtATime, rows);
    nb::list found;
    for (std::size_t i = begin; i < end; ++i) {
      if (table.row(i).active && table.item(i).parameter) found.append(nb::borrow(table.item(i).parameter));
      if (i + kAtATime < rows) table.traces(i + kAtATime).send_to_version();
    }
    if (found.size()) function(found);
  }
}

// Asks for huge pages in memory that nobody has touched yet, as far as it fills such pages.
void advise(std::int64_t address, std::int64_t bytes) { advise_huge_pages(reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), bytes); }

}  // namespace

void bind_tensors(nb::module_& m) {
  nb::class_<Framework>(m, "Framework", "Tensors of another library, as memory.")
      .def(nb::init<nb::object, std::vector<nb::object>, std::vector<std::int64_t>>(), nb::arg("capsule"), nb::arg("types"), nb::arg("anatomy"))
      .def("add_type", &Framework::add_type, nb::arg("type"), "Take tensors of this type for memory, too.");
  m.def("read_tensors", &read_tensors, nb::arg("framework"), nb::arg("table"), nb::arg("groups"), nb::arg("state"), nb::arg("threads"),
        "Begin a step with the rows that are plain; returns those that need a closer look, or None where the groups hold other parameters.");
  m.def("place_tensors", &place_tensors, nb::arg("framework"), nb::arg("table"), nb::arg("row"), nb::arg("parameter"), nb::arg("gradient"),
        nb::arg("states"), nb::arg("count").none(), nb::arg("steps"), nb::arg("memory"), nb::arg("layout") = std::vector<std::int64_t>{},
        "Let a row that was looked at take part; returns whether the loop reaches its tensors.");
  m.def("tell_active", &tell_active, nb::arg("table"), nb::arg("function"), "Call a function with lists of the parameters that take part.");
  m.def("advise_huge_pages", &advise, nb::arg("address"), nb::arg("bytes"), "Ask for huge pages where untouched memory fills them.");
}

}  // namespace openadam
