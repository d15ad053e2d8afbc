// The Python module openadam._native: thin, private; names, docs and errors belong to the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <type_traits>

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
  const std::vector<openadam::Mover> movers = openadam::movers_of(*request.kernels);
  request.movers = {movers.data(), static_cast<std::int64_t>(movers.size())};
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

nb::object numbers(const std::vector<double>& values, std::size_t rows, std::size_t width) {
  auto* copy = new std::vector<double>(values);
  const nb::capsule owner(copy, [](void* held) noexcept { delete static_cast<std::vector<double>*>(held); });
  return nb::cast(nb::ndarray<double, nb::numpy, nb::ndim<2>>(copy->data(), {rows, width}, owner));
}

using Pieces = std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::vector<std::int64_t>, std::vector<std::int64_t>>>;

// Instructions, constants and roots, as language/code.py prints them.
using Scalars = std::tuple<std::vector<std::int64_t>, std::vector<double>, std::vector<std::int64_t>>;

openadam::ScalarCode scalar_code(const Scalars& scalars, std::int64_t hyperparameters, std::int64_t memory) {
  return openadam::ScalarCode(std::get<0>(scalars), std::get<1>(scalars), std::get<2>(scalars), hyperparameters, memory);
}

void bind_table(nb::module_& m) {
  m.attr("MAX_STATES") = openadam::kMaxStates;
  m.attr("MAX_MEMORY") = openadam::kMaxMemory;
  nb::class_<openadam::Table>(m, "Table", "The rows of one step, and what is done with them.")
      .def(nb::init<std::size_t, std::uintptr_t, double>(), nb::arg("isa"), nb::arg("team"), nb::arg("clip_value"))
      .def("__len__", &openadam::Table::count)
      .def_prop_rw(
          "taken", [](const openadam::Table& table) { return table.counts[0]; },
          [](openadam::Table& table, std::int64_t value) { table.counts[0] = value; }, "Steps taken.")
      .def_prop_rw(
          "skipped", [](const openadam::Table& table) { return table.counts[1]; },
          [](openadam::Table& table, std::int64_t value) { table.counts[1] = value; }, "Steps skipped.")
      .def_prop_ro(
          "counts", [](openadam::Table& table) { return nb::ndarray<std::int64_t, nb::numpy, nb::shape<2>>(table.counts, {2}, nb::find(table)); },
          "Steps taken and skipped, as an array over both.")
      .def_ro("versions", &openadam::Table::versions, "Changes where operations of torch have written to states, or others have taken their place.")
      .def_ro("version", &openadam::Table::version, "Grows when `settle` sees other numbers than before.")
      .def_prop_ro(
          "isa", [](const openadam::Table& table) { return table.kernels().isa; }, "The instruction set of its kernels.")
      .def_prop_ro("active_count", &openadam::Table::active_count, "Rows that take part in the step under way.")
      .def(
          "is_active",
          [](const openadam::Table& table, std::size_t row) { return const_cast<openadam::Table&>(table).row(table.at(row)).active != 0; },
          nb::arg("row"))
      .def(
          "t", [](const openadam::Table& table, std::size_t row) { return const_cast<openadam::Table&>(table).item(table.at(row)).t; },
          nb::arg("row"), "The number of the step that a row is about to take.")
      .def("resize", &openadam::Table::resize, nb::arg("count"), "Begin anew with so many rows.")
      .def("set_row", nb::overload_cast<std::size_t, std::size_t, std::uintptr_t, bool>(&openadam::Table::set_row), nb::arg("row"), nb::arg("update"),
           nb::arg("identity"), nb::arg("repeated"), "Which update moves a row, and the id of the object that it was made for.")
      .def("set_row", nb::overload_cast<std::size_t, std::size_t, nb::object>(&openadam::Table::set_row), nb::arg("row"), nb::arg("update"),
           nb::arg("array").none(), "Which update moves a row, and its parameter.")
      .def("set_update", &openadam::Table::set_update, nb::arg("index"), nb::arg("kernel"), nb::arg("hyperparameters"), nb::arg("coupled_decay"),
           nb::arg("maximize"), "The kernel of an update and its hyperparameters, in the kernel's order.")
      .def("set_names", &openadam::Table::set_names, nb::arg("index"), nb::arg("count").none(), nb::arg("states"), nb::arg("memory"),
           "What a host that keeps states by name calls the number of steps, the states and the scalar states of an update.")
      .def("begin", &openadam::Table::begin, "Let no row take part yet.")
      .def("forget", &openadam::Table::forget, "Let go of the tensors of this step.")
      .def("settle", &openadam::Table::settle,
           "Whether what the step writes may overlap, and the rows whose gradients may share memory with it; nothing found is remembered as such.")
      .def("trust", &openadam::Table::trust, "Remember that what `settle` doubted has been looked at and found in order.")
      .def(
          "pieces",
          [](const openadam::Table& table) {
            Pieces rows;
            for (openadam::Piece& piece : table.pieces())
              rows.emplace_back(piece.row, piece.which, piece.address, piece.itemsize, std::move(piece.shape), std::move(piece.strides));
            return rows;
          },
          "The memory of every active row: row, which (0 the parameter, 1 the gradient, then the states), address, itemsize, shape, strides.")
      .def("measure", &openadam::Table::measure, nb::arg("threads"), "The gradients' sum of squares, and the largest of one row.")
      .def("update", &openadam::Table::update, nb::arg("factor"), nb::arg("measures"), nb::arg("threads"), nb::arg("columns") = 0,
           "Take the step and commit its counters; returns what `measure` does where its measure is the first of those taken.")
      .def(
          "tallies", [](const openadam::Table& table) { return numbers(table.tallies(), table.count(), table.measured()); },
          "What the last pass measured: rows x measures.")
      .def(
          "set_program",
          [](openadam::Table& table, std::size_t index, const std::vector<std::int64_t>& plain, const std::vector<std::int64_t>& measured,
             const std::vector<std::int64_t>& outputs, std::int64_t slots, const Scalars& scalars, std::int64_t hyperparameters, std::int64_t states,
             std::int64_t memory, const std::vector<std::uintptr_t>& functions) {
            openadam::Interpreted program;
            program.scalars = scalar_code(scalars, hyperparameters, memory);
            const auto elements = [&](const std::vector<std::int64_t>& instructions, const std::vector<std::int64_t>& joined) {
              return openadam::ElementCode(instructions, joined, slots, 3 + states, 2, program.scalars.outputs(), table.kernels().measure_count - 1);
            };
            program.plain = elements(plain, {});
            program.measured = elements(measured, outputs);
            openadam::require_sound(functions.empty() || functions.size() == 2 * openadam::kDtypes);
            openadam::UpdateKernel compiled{};
            for (std::size_t k = 0; k < functions.size() / 2; ++k) {
              compiled.run[k] = reinterpret_cast<std::remove_reference_t<decltype(compiled.run[0])>>(functions[k]);
              compiled.run_measured[k] =
                  reinterpret_cast<std::remove_reference_t<decltype(compiled.run_measured[0])>>(functions[openadam::kDtypes + k]);
            }
            table.set_program(index, states, memory, std::move(program), compiled);
          },
          nb::arg("index"), nb::arg("plain"), nb::arg("measured"), nb::arg("outputs"), nb::arg("slots"), nb::arg("scalars"),
          nb::arg("hyperparameters"), nb::arg("states"), nb::arg("memory"), nb::arg("functions"),
          "The program of an update that has no kernel, and the addresses of its functions where it was compiled: for each dtype, plain, then "
          "measured.")
      .def(
          "set_observer",
          [](openadam::Table& table, std::size_t index, const std::vector<std::int64_t>& instructions, const std::vector<std::int64_t>& outputs,
             std::int64_t slots, const Scalars& scalars, std::vector<double> hyperparameters, std::int64_t columns) {
            const openadam::Mover& mover = table.mover_of(table.class_at(index));
            openadam::require_sound(columns >= 0 && columns <= openadam::kMaxColumns);
            openadam::Observer observer;
            observer.scalars = scalar_code(scalars, static_cast<std::int64_t>(hyperparameters.size()), mover.memory);
            const std::int64_t tensors = 3 + mover.states;
            observer.elements = openadam::ElementCode(instructions, outputs, slots, tensors, tensors, observer.scalars.outputs(), columns);
            observer.hyperparameters = std::move(hyperparameters);
            table.set_observer(index, std::move(observer));
          },
          nb::arg("index"), nb::arg("instructions"), nb::arg("outputs"), nb::arg("slots"), nb::arg("scalars"), nb::arg("hyperparameters"),
          nb::arg("columns"), "The code that looks inside the steps of an update.")
      .def(
          "observed", [](const openadam::Table& table) { return numbers(table.observed(), table.count(), table.columns()); },
          "What the observers saw in the last step: rows x columns, NaN where nobody looked.");
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // at exit others may still hold what holds a Framework, as typing does the functions that it knows as overloads
  openadam::Pool::prepare_for_forks();
  m.attr("COLUMNS") = openadam::kColumns;
  m.attr("MAX_THREADS") = openadam::kMaxThreads;
  m.attr("MAX_OUTPUTS") = openadam::kMaxOutputs;
  m.attr("MAX_COLUMNS") = openadam::kMaxColumns;
  m.attr("MAX_SLOTS") = openadam::kMaxSlots;
  m.def("isas", &isas, "Instruction sets of the compiled kernels that this processor runs, the best first.");
  m.def("updates", &updates, nb::arg("isa"), "Name, digest, states and scalars of each update kernel.");
  m.def("measures", &measures, nb::arg("isa"), "Name and digest of each measure.");
  m.def("run", &run, nb::arg("isa"), nb::arg("rows").noconvert(), nb::arg("scalars").noconvert(), nb::arg("layouts").noconvert(),
        nb::arg("measures").noconvert(), nb::arg("update"), nb::arg("tallies").noconvert(), nb::arg("threads"),
        "Measure rows that are given as numbers and, if asked to, update them. Raises ValueError before anything is touched.");
  bind_table(m);
  openadam::bind_arrays(m);
  openadam::bind_tensors(m);
  openadam::bind_row_sums(m);
  m.def("allocate", &allocate, nb::arg("bytes"), "Zeroed bytes, aligned to 64 and on huge pages where there are many.");
}
