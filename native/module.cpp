// The Python module openadam._native: thin, private; names, docs and errors belong to the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "dispatch.hpp"
#include "loop.hpp"
#include "memory.hpp"
#include "table.hpp"

namespace nb = nanobind;
using openadam::Row;

namespace {

template <class T, class... Options>
using Array = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu, Options...>;

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto* set : openadam::kernel_sets()) names.emplace_back(set->isa);
  return names;
}

using Described = std::vector<std::tuple<std::string, std::string, std::int64_t, std::int64_t>>;

Described updates(std::size_t isa) {
  Described rows;
  const auto* set = openadam::kernel_set_at(isa);
  for (std::int64_t i = 0; i < set->update_count; ++i)
    rows.emplace_back(set->updates[i].name, set->updates[i].digest, set->updates[i].states, set->updates[i].scalars);
  return rows;
}

std::vector<std::tuple<std::string, std::string>> measures(std::size_t isa) {
  std::vector<std::tuple<std::string, std::string>> rows;
  const auto* set = openadam::kernel_set_at(isa);
  for (std::int64_t i = 0; i < set->measure_count; ++i) rows.emplace_back(set->measures[i].name, set->measures[i].digest);
  return rows;
}

using Rows = Array<std::int64_t, nb::ndim<2>>;
using Integers = Array<std::int64_t, nb::ndim<1>>;
using Doubles = Array<double, nb::ndim<1>>;

template <class T, class A>
openadam::Span<T> span(const A& array) {
  return {array.data(), static_cast<std::int64_t>(array.size())};
}

// One pass over rows that are given as numbers: the loop by itself, for who tests it.
void run(std::size_t isa, const Rows& rows, const Doubles& scalars, const Integers& layouts, const Integers& which, bool update,
         const Array<double, nb::ndim<2>>& tallies, int threads) {
  if (static_cast<std::int64_t>(rows.shape(1)) != openadam::kColumns) throw std::invalid_argument("the step's table has other columns");
  openadam::Request request;
  request.kernels = openadam::kernel_set_at(isa);
  request.rows = {reinterpret_cast<const Row*>(rows.data()), static_cast<std::int64_t>(rows.shape(0))};
  request.scalars = span<const double>(scalars);
  request.layouts = span<const std::int64_t>(layouts);
  request.measures = span<const std::int64_t>(which);
  request.update = update;
  request.threads = threads;
  request.tallies = span<double>(tallies);
  openadam::Loop loop(request);
  const nb::gil_scoped_release unlocked;
  loop.run();
}

nb::object allocate(std::size_t bytes) {
  auto* memory = new openadam::Memory(bytes);
  const nb::capsule owner(memory, [](void* held) noexcept { delete static_cast<openadam::Memory*>(held); });
  return nb::cast(nb::ndarray<std::uint8_t, nb::numpy, nb::ndim<1>>(memory->data(), {bytes}, owner));
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // at exit others may still hold what holds a Framework, as typing does the functions that it knows as overloads
  openadam::Pool::prepare_for_forks();
  m.attr("COLUMNS") = openadam::kColumns;
  m.attr("MAX_THREADS") = openadam::kMaxThreads;
  m.def("isas", &isas, "Instruction sets of the compiled kernels that this processor runs, the best first.");
  m.def("updates", &updates, nb::arg("isa"), "Name, digest, states and scalars of each update kernel.");
  m.def("measures", &measures, nb::arg("isa"), "Name and digest of each measure.");
  m.def("run", &run, nb::arg("isa"), nb::arg("rows").noconvert(), nb::arg("scalars").noconvert(), nb::arg("layouts").noconvert(),
        nb::arg("measures").noconvert(), nb::arg("update"), nb::arg("tallies").noconvert(), nb::arg("threads"),
        "Measure rows that are given as numbers and, if asked to, update them. Raises ValueError before anything is touched.");
  openadam::bind_table(m);
  openadam::bind_arrays(m);
  openadam::bind_tensors(m);
  m.def("allocate", &allocate, nb::arg("bytes"), "Zeroed bytes, aligned to 64 and on huge pages where there are many.");
}
