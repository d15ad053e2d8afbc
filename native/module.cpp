// The Python module openadam._native: thin, private; names, docs and errors belong to the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <chrono>
#include <thread>

#include "dispatch.hpp"
#include "loop.hpp"
#include "memory.hpp"
#include "tensors.hpp"

namespace nb = nanobind;
using openadam::Row;

namespace {

template <class T, class... Options>
using Array = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu, Options...>;

const openadam::KernelSet* set_at(std::size_t index) {
  const auto sets = openadam::kernel_sets();
  if (index >= sets.size()) throw std::invalid_argument("no such set of kernels");
  return sets[index];
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto* set : openadam::kernel_sets()) names.emplace_back(set->isa);
  return names;
}

using Described = std::vector<std::tuple<std::string, std::string, std::int64_t, std::int64_t>>;

Described updates(std::size_t isa) {
  Described rows;
  const auto* set = set_at(isa);
  for (std::int64_t i = 0; i < set->update_count; ++i)
    rows.emplace_back(set->updates[i].name, set->updates[i].digest, set->updates[i].states, set->updates[i].scalars);
  return rows;
}

std::vector<std::tuple<std::string, std::string>> measures(std::size_t isa) {
  std::vector<std::tuple<std::string, std::string>> rows;
  const auto* set = set_at(isa);
  for (std::int64_t i = 0; i < set->measure_count; ++i) rows.emplace_back(set->measures[i].name, set->measures[i].digest);
  return rows;
}

using Table = Array<std::int64_t, nb::ndim<2>>;
using Integers = Array<std::int64_t, nb::ndim<1>>;
using Doubles = Array<double, nb::ndim<1>>;

template <class T, class A>
openadam::Span<T> span(const A& array) {
  return {array.data(), static_cast<std::int64_t>(array.size())};
}

void run(std::size_t isa, const Table& table, const Doubles& scalars, const Integers& layouts, const Integers& which, bool update,
         const Array<double, nb::ndim<2>>& tallies, int threads, const Integers& counters, const Integers& counters_after, const Doubles& memory,
         const Doubles& memory_after, std::uintptr_t team) {
  if (static_cast<std::int64_t>(table.shape(1)) != openadam::kColumns) throw std::invalid_argument("the step's table has other columns");
  if (counters.size() != counters_after.size() || memory.size() != memory_after.size())
    throw std::invalid_argument("counters and their next values differ in length");
  openadam::Request request;
  request.kernels = set_at(isa);
  request.rows = {reinterpret_cast<const Row*>(table.data()), static_cast<std::int64_t>(table.shape(0))};
  request.scalars = span<const double>(scalars);
  request.layouts = span<const std::int64_t>(layouts);
  request.measures = span<const std::int64_t>(which);
  request.update = update;
  request.threads = threads;
  request.team = reinterpret_cast<openadam::Team>(team);
  request.tallies = span<double>(tallies);
  openadam::Loop loop(request);
  PyThreadState* const thread = PyEval_SaveThread();
  loop.run();
  if (update) {  // in the same call, so that no signal can come between the tensors and their counters
    if (counters.size()) std::memcpy(counters.data(), counters_after.data(), counters.size() * sizeof(std::int64_t));
    if (memory.size()) std::memcpy(memory.data(), memory_after.data(), memory.size() * sizeof(double));
  }
  try {
    PyEval_RestoreThread(thread);
  } catch (...) {
    // The interpreter is shutting down and ends this thread by unwinding its stack, which C++ code on it would turn into an
    // abort. The process is about to end: wait for that here.
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Writes the addresses of gradients that are as plain as their parameters (exact ndarrays of the same dtype and shape,
// dense, aligned, native) into the table. Returns the rows that need a closer look, and the rows whose gradients are new (or all, to
// recheck) and reach into the protected memory, which is given by its sorted starts and ends.
std::tuple<std::vector<std::int64_t>, std::vector<std::int64_t>> read_gradients(nb::list gradients, nb::list parameters, const Table& table,
                                                                                const Integers& starts, const Integers& ends, bool recheck) {
  const auto rows = static_cast<std::int64_t>(table.shape(0));
  if (static_cast<std::int64_t>(table.shape(1)) != openadam::kColumns || static_cast<std::int64_t>(gradients.size()) != rows ||
      static_cast<std::int64_t>(parameters.size()) != rows)
    throw std::invalid_argument("gradients, parameters and table differ in length");
  if (starts.size() != ends.size()) throw std::invalid_argument("starts and ends differ in length");
  std::vector<std::int64_t> others;
  std::vector<std::int64_t> suspects;
  auto* row = reinterpret_cast<Row*>(table.data());
  for (std::int64_t i = 0; i < rows; ++i, ++row) {
    const nb::object gradient = gradients[static_cast<std::size_t>(i)];
    const nb::object parameter = parameters[static_cast<std::size_t>(i)];
    if (!PyArray_CheckExact(gradient.ptr()) || !PyArray_CheckExact(parameter.ptr())) {
      others.push_back(i);
      continue;
    }
    auto* g = reinterpret_cast<PyArrayObject*>(gradient.ptr());
    auto* p = reinterpret_cast<PyArrayObject*>(parameter.ptr());
    const int dimensions = PyArray_NDIM(p);
    const bool plain = PyArray_TYPE(g) == PyArray_TYPE(p) && PyArray_NDIM(g) == dimensions && PyArray_ISNOTSWAPPED(g) && PyArray_ISALIGNED(g) &&
                       PyArray_IS_C_CONTIGUOUS(g) && PyArray_IS_C_CONTIGUOUS(p) && PyArray_ISALIGNED(p) &&
                       std::equal(PyArray_DIMS(p), PyArray_DIMS(p) + dimensions, PyArray_DIMS(g));
    if (!plain) {
      others.push_back(i);
      continue;
    }
    const auto low = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(PyArray_DATA(g)));
    if (recheck || row->gradient != low || row->layout != -1 || !row->active) {
      const std::int64_t high = low + static_cast<std::int64_t>(PyArray_NBYTES(g));
      const auto after = std::lower_bound(starts.data(), starts.data() + starts.size(), high) - starts.data();
      if (after > 0 && ends.data()[after - 1] > low && high > low) suspects.push_back(i);
    }
    row->gradient = low;
    row->layout = -1;
    row->active = 1;
  }
  return {std::move(others), std::move(suspects)};
}

nb::object allocate(std::size_t bytes) {
  auto* memory = new openadam::Memory(bytes);
  const nb::capsule owner(memory, [](void* held) noexcept { delete static_cast<openadam::Memory*>(held); });
  return nb::cast(nb::ndarray<std::uint8_t, nb::numpy, nb::ndim<1>>(memory->data(), {bytes}, owner));
}

int import_numpy() {
  import_array1(-1);
  return 0;
}

}  // namespace

NB_MODULE(_native, m) {
  if (import_numpy() < 0) throw nb::python_error();
  openadam::Pool::prepare_for_forks();
  m.attr("COLUMNS") = openadam::kColumns;
  m.attr("MAX_STATES") = openadam::kMaxStates;
  m.attr("MAX_THREADS") = openadam::kMaxThreads;
  m.def("isas", &isas, "Instruction sets of the compiled kernels that this processor runs, the best first.");
  m.def("updates", &updates, nb::arg("isa"), "Name, digest, states and scalars of each update kernel.");
  m.def("measures", &measures, nb::arg("isa"), "Name and digest of each measure.");
  m.def("run", &run, nb::arg("isa"), nb::arg("table").noconvert(), nb::arg("scalars").noconvert(), nb::arg("layouts").noconvert(),
        nb::arg("measures").noconvert(), nb::arg("update"), nb::arg("tallies").noconvert(), nb::arg("threads"), nb::arg("counters").noconvert(),
        nb::arg("counters_after").noconvert(), nb::arg("memory").noconvert(), nb::arg("memory_after").noconvert(), nb::arg("team") = 0,
        "Measure all tensors of a table and, if asked to, update them and commit the counters. Raises ValueError before anything is touched.");
  m.def("read_gradients", &read_gradients, nb::arg("gradients"), nb::arg("parameters"), nb::arg("table").noconvert(), nb::arg("starts").noconvert(),
        nb::arg("ends").noconvert(), nb::arg("recheck"),
        "Write the addresses of plain gradients into the table; returns (rows that need a closer look, rows that reach into protected memory).");
  openadam::bind_tensors(m);
  m.def("allocate", &allocate, nb::arg("bytes"), "Zeroed bytes, aligned to 64 and on huge pages where there are many.");
}
