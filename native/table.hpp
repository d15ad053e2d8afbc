// The table of one step: rows that a host's reader fills, who shares memory, the scalars, the two passes, the counters.
//
// A reader (tensors.cpp, arrays.cpp) asks the host's own tensors in every step where they lie and what their counters say, and holds on
// to them until the step is over. What is kept from one step to the next are conclusions about numbers (these addresses do not
// overlap), never about objects.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "loop.hpp"
#include "scalars.hpp"

namespace openadam {

constexpr int kMaxMemory = 2;                      // scalar states of a rule
constexpr double kMostSteps = 9007199254740991.0;  // a float64 counts exactly up to here
constexpr double kMostSingleSteps = 16777216.0;    // and a float32 up to here

// A number that a step reads and writes: where it is, and of which type.
struct Number {
  enum Type : std::int64_t { kNone, kSingle, kDouble, kWhole };
  std::int64_t address = 0;
  std::int64_t type = kNone;

  double get() const;
  void set(double value) const;
};

// What the table knows of a row beside what the loop needs.
struct Item {
  std::size_t update = 0;
  double t = 0;  // the step that it is about to take
  Number count;
  Number memory[kMaxMemory];
  double after[kMaxMemory] = {};
  nanobind::object array;         // the parameter, of a host that owns its parameters
  std::uintptr_t identity = 0;    // of a host that does not: which object the row was made for
  PyObject* parameter = nullptr;  // and the object, while a step holds it
  std::int64_t elements = 0;      // of the parameter, of a host that tells once; a step may be over some of its rows only
  bool repeated = false;          // the same parameter as an earlier row: not stepped again
  // What was looked at when it was last found to share no memory: of the parameter and the states, and of the gradient.
  std::int64_t seen[3 + kMaxStates] = {};
  std::int64_t seen_gradient[2] = {};
  bool trusted = false;
  std::uint64_t versions = 1;  // changes where the framework's operations have written to the states, or others have taken their place
};

// Sends the processor to an address that will be read soon. The empty instruction is for gcc, which takes a function that does nothing else
// for one without effect, and leaves its calls out.
inline void send_ahead([[maybe_unused]] const char* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
  asm volatile("");
#endif
}

// The tensors behind a row: their objects in the step under way, and what was read of them before.
//
// Where the parts of these objects were is known too, so that the processor can be sent there some rows ahead: each is small, but all of
// them together are more than a cache holds, and to read them one after the other would be one long wait. Nothing else is done with the
// addresses, so that old ones do no harm.
class Traces {
 public:
  struct Tensor {
    PyObject* object = nullptr;
    // What the tensor was found to be when its description had these bytes: as long as it has them, it is that.
    std::uint64_t digest = 0;
    std::int64_t offset = 0;  // from its storage's memory to its first element
    std::int32_t dimensions = 0;
    std::uint8_t dtype_code = 0;
    std::uint8_t dtype_bits = 0;
    std::uint8_t sizes = 0;  // where its shape stands in its description, in words
    std::uint8_t strides = 0;
    // Where its parts are.
    const char* description = nullptr;
    const char* storage = nullptr;
    const char* gradient = nullptr;  // what leads to it
    const char* version = nullptr;
  };

  static constexpr int kTensors = 3 + kMaxStates + kMaxMemory;  // parameter, gradient, states, numbers, the number of steps
  static constexpr std::int64_t kLine = 64;

  void begin() { used_ = 0; }
  void add(PyObject* object) { tensors_[used_++].object = object; }
  int size() const { return used_; }
  Tensor& operator[](int k) { return tensors_[k]; }
  const Tensor& operator[](int k) const { return tensors_[k]; }
  // The dict of the states, and the number of steps.
  const char* dict = nullptr;
  const char* keys = nullptr;
  const char* count = nullptr;

  // To what leads to the tensors: the parameter, its gradient, the dict, the objects.
  void send_to_objects(std::int64_t length_of_description) const {
    for (int k = 0; k < used_; ++k) send_ahead(reinterpret_cast<const char*>(tensors_[k].object));
    send_ahead(tensors_[0].gradient);
    for (int k = 0; k < 2; ++k) send_to_lines(tensors_[k].description, length_of_description);
    if (!dict) return;
    send_ahead(dict);
    send_ahead(keys);
    send_ahead(keys + kLine);
  }

  void send_to_tensors(std::int64_t length_of_description) const {
    for (int k = 0; k < used_; ++k) {
      send_ahead(reinterpret_cast<const char*>(tensors_[k].object));
      send_to_lines(tensors_[k].description, length_of_description);
      if (!tensors_[k].storage) continue;
      send_ahead(tensors_[k].storage);
      send_ahead(tensors_[k].storage + kLine - 8);
    }
    send_ahead(count);
  }

  // To what changes when a parameter is said to.
  void send_to_version() const {
    send_ahead(reinterpret_cast<const char*>(tensors_[0].object));
    send_to_lines(tensors_[0].description, 2 * kLine);
    send_ahead(tensors_[0].version);
  }

 private:
  static void send_to_lines(const char* begin, std::int64_t length) {
    if (!begin) return;
    for (std::int64_t at = 0; at < length; at += kLine) send_ahead(begin + at);
    send_ahead(begin + length - 1);
  }

  Tensor tensors_[kTensors];
  int used_ = 0;
};

// What moves the rows of one class: a kernel, its hyperparameters, and what surrounds the rule.
struct Update {
  std::int64_t mover = 0;  // 0: there is none, such rows are the host's own affair
  std::vector<double> hyperparameters;
  double coupled_decay = 0;
  bool maximize = false;
  // What a host that keeps its states by name calls them.
  nanobind::object count_name;
  std::vector<nanobind::object> state_names;
  std::vector<nanobind::object> memory_names;
  Interpreted program;      // where there is no kernel here
  UpdateKernel compiled{};  // for this program; without functions where it is interpreted
  Observer observer;        // of what is to be seen inside, if anything is
  // The scalars last computed in the step under way, and what for.
  bool placed = false;
  double t = 0;
  double memory[kMaxMemory] = {};
  double after[kMaxMemory] = {};
  std::int64_t scalars = 0;
  std::int64_t prepare = -1;
  std::int64_t observer_scalars = 0;
};

// Memory of one tensor as bytes: for those who look more closely.
struct Piece {
  std::int64_t row;
  std::int64_t which;  // 0: the parameter, 1: the gradient, 2...: the states
  std::int64_t address;
  std::int64_t itemsize;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

class Table {
 public:
  Table(std::size_t isa, std::uintptr_t team, double clip_value);

  // --- what a host tells -------------------------------------------------------------------------------------------

  void resize(std::size_t count);
  void set_row(std::size_t row, std::size_t update, nanobind::object array);
  void set_row(std::size_t row, std::size_t update, std::uintptr_t identity, bool repeated);
  void set_update(std::size_t index, std::int64_t kernel, std::vector<double> hyperparameters, double coupled_decay, bool maximize);
  // The program of an update that has no kernel here, which `set_update` then calls -1, and where it was compiled, its functions.
  void set_program(std::size_t index, std::int64_t states, std::int64_t memory, Interpreted program, const UpdateKernel& compiled);
  void set_observer(std::size_t index, Observer observer) { updates_[update_at(index)].observer = std::move(observer); }
  void set_names(std::size_t index, nanobind::object count, std::vector<nanobind::object> states, std::vector<nanobind::object> memory);

  // --- one step ----------------------------------------------------------------------------------------------------

  void begin();                              // no row is active
  void activate(std::size_t row, double t);  // once its addresses are there
  // Takes over how a row's elements lie; of one that names rows, how many are stepped.
  void lay_out(std::size_t row, const std::vector<std::int64_t>& layout);
  void hold(PyObject* object) { held_.push_back(nanobind::borrow(object)); }
  void forget() noexcept;
  bool holds() const { return !held_.empty(); }

  // Rows whose gradient may share memory with what the step writes; and whether what it writes may overlap.
  std::pair<bool, std::vector<std::int64_t>> settle();
  void trust();
  std::vector<Piece> pieces() const;

  // The sum of squares of the gradients of all rows, added in order, and the largest of one row.
  std::pair<double, double> measure(int threads);
  // With columns, also looks inside: what that many of the classes' observers see is `observed`.
  std::pair<double, double> update(double factor, std::vector<std::int64_t> measures, int threads, std::int64_t columns);

  std::size_t count() const { return rows_.size(); }
  std::size_t active_count() const { return active_; }
  std::size_t at(std::size_t row) const;
  std::size_t update_at(std::size_t index) const;
  Row& row(std::size_t index) { return rows_[index]; }
  Item& item(std::size_t index) { return items_[index]; }
  Traces& traces(std::size_t index) { return traces_[index]; }
  const Update& class_at(std::size_t index) const { return updates_[update_at(index)]; }
  const Update& update_of(std::size_t index) const { return updates_[items_[index].update]; }
  const KernelSet& kernels() const { return *kernels_; }
  const Mover& mover_of(const Update& update) const { return movers_[static_cast<std::size_t>(update.mover)]; }
  std::vector<std::int64_t>& layouts() { return layouts_; }
  Team team() const { return team_; }
  const std::vector<double>& tallies() const { return tallies_; }
  const std::vector<double>& observed() const { return observed_; }
  std::size_t columns() const { return static_cast<std::size_t>(columns_); }
  std::size_t measured() const { return measures_.size(); }

  std::uint64_t versions = 0;       // of the states of all rows that were read
  std::int64_t version = 0;         // grows when `settle` has seen other numbers than before
  std::int64_t counts[2] = {0, 0};  // steps taken, steps skipped

 private:
  void place_scalars(double factor);
  void pass(bool update, int threads);
  std::pair<double, double> total() const;
  bool as_seen(std::size_t row) const;
  void see(std::size_t row, std::int64_t (&numbers)[3 + kMaxStates]) const;
  NamedRows named(const Row& row) const { return NamedRows(layouts_.data() + row.layout); }  // of a row with a layout
  bool names_rows(const Row& row) const { return row.layout >= 0 && named(row).is_named(); }
  std::int64_t elements(const Row& row) const;  // of its parameter
  std::pair<std::int64_t, std::int64_t> extent(const Row& row, bool gradient) const;
  std::int64_t digest(const Row& row, bool gradient) const;

  const KernelSet* kernels_;
  std::vector<Mover> movers_;  // those of the kernels, then one for each update
  Team team_;
  double clip_value_;
  std::vector<Row> rows_;
  std::vector<Item> items_;
  std::vector<Traces> traces_;
  std::vector<Update> updates_;
  std::vector<std::int64_t> layouts_;
  std::vector<double> scalars_;
  std::vector<double> tallies_;
  std::vector<Observation> observations_;
  std::vector<double> observed_;
  std::int64_t columns_ = 0;
  std::vector<std::int64_t> measures_;
  std::vector<nanobind::object> held_;
  std::vector<std::pair<std::int64_t, std::int64_t>> written_;  // merged and sorted
  std::size_t active_ = 0;
};

const KernelSet* kernel_set_at(std::size_t index);
std::vector<Mover> movers_of(const KernelSet& kernels);

void bind_tensors(nanobind::module_& m);
void bind_arrays(nanobind::module_& m);
void bind_row_sums(nanobind::module_& m);

}  // namespace openadam
