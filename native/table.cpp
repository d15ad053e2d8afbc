// The table of one step: see table.hpp.
#include "table.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "dispatch.hpp"

namespace nb = nanobind;

namespace openadam {
namespace {

// The interpreter's lock given up while in scope.
class WithoutLock {
 public:
  WithoutLock() : thread_(PyEval_SaveThread()) {}
  ~WithoutLock() noexcept {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      // The interpreter is shutting down and ends this thread by unwinding its stack, which C++ code on it would turn into an
      // abort. The process is about to end: wait for that here.
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* thread_;
};

// Where a hyperparameter stands among the names of a program, or -1.
std::int64_t place_of(std::string_view name, std::string_view names) {
  std::int64_t place = 0;
  while (!names.empty()) {
    const std::size_t end = std::min(names.find(' '), names.size());
    if (names.substr(0, end) == name) return place;
    names.remove_prefix(std::min(end + 1, names.size()));
    ++place;
  }
  return -1;
}

std::int64_t count_of(std::string_view names) { return names.empty() ? 0 : 1 + std::count(names.begin(), names.end(), ' '); }

template <class T>
T* pointer(std::int64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

}  // namespace

double Number::get() const {
  switch (type) {
    case kSingle:
      return static_cast<double>(*pointer<const float>(address));
    case kDouble:
      return *pointer<const double>(address);
    case kWhole:
      return static_cast<double>(*pointer<const std::int64_t>(address));
    default:
      return 0;
  }
}

void Number::set(double value) const {
  switch (type) {
    case kSingle:
      *pointer<float>(address) = static_cast<float>(value);
      return;
    case kDouble:
      *pointer<double>(address) = value;
      return;
    case kWhole:
      *pointer<std::int64_t>(address) = static_cast<std::int64_t>(value);
      return;
    default:
      return;
  }
}

const KernelSet* kernel_set_at(std::size_t index) {
  const auto sets = kernel_sets();
  if (index >= sets.size()) throw std::invalid_argument("no such set of kernels");
  return sets[index];
}

std::vector<Mover> movers_of(const KernelSet& kernels) {
  std::vector<Mover> movers;
  for (std::int64_t k = 0; k < kernels.update_count; ++k)
    movers.push_back({kernels.updates[k].states, kernels.updates[k].scalars, scalar_programs()[k].states, kernels.updates + k, {}, {}});
  return movers;
}

Table::Table(std::size_t isa, std::uintptr_t team, double clip_value)
    : kernels_(kernel_set_at(isa)), movers_(movers_of(*kernels_)), team_(reinterpret_cast<Team>(team)), clip_value_(clip_value) {}

// --- what a host tells ---------------------------------------------------------------------------------------------

void Table::resize(std::size_t count) {
  forget();
  rows_.assign(count, Row{});
  for (Row& row : rows_) row.layout = row.prepare = -1;
  items_.clear();
  items_.resize(count);
  traces_.assign(count, Traces{});
  written_.clear();
}

std::size_t Table::at(std::size_t row) const {
  if (row >= rows_.size()) throw std::invalid_argument("no such row");
  return row;
}

std::size_t Table::update_at(std::size_t index) const {
  if (index >= updates_.size()) throw std::invalid_argument("no such update");
  return index;
}

void Table::set_row(std::size_t row, std::size_t update, std::uintptr_t identity, bool repeated) {
  Item& item = items_[at(row)];
  item.update = update_at(update);
  item.identity = identity;
  item.repeated = repeated;
  rows_[row].mover = updates_[update].mover;
}

void Table::set_row(std::size_t row, std::size_t update, nb::object array) {
  set_row(row, update, std::uintptr_t{0}, false);
  items_[row].array = std::move(array);
}

void Table::set_update(std::size_t index, std::int64_t kernel, std::vector<double> hyperparameters, double coupled_decay, bool maximize) {
  if (kernel < -1 || kernel >= kernels_->update_count) throw std::invalid_argument("no such kernel");
  if (index >= updates_.size()) updates_.resize(index + 1);
  Update& update = updates_[index];
  if (kernel == -1 && update.program.plain.empty()) throw std::invalid_argument("the update has no program");
  const std::int64_t mover = kernel == -1 ? kernels_->update_count + static_cast<std::int64_t>(index) : kernel;
  const std::int64_t wanted = kernel == -1 ? update.program.scalars.hyperparameters() : count_of(scalar_programs()[kernel].hyperparameters);
  if (kernel != 0 && static_cast<std::int64_t>(hyperparameters.size()) != wanted)
    throw std::invalid_argument("the kernel takes another number of hyperparameters");
  if (mover != update.mover) update.observer = {};  // it was for other states
  update.mover = mover;
  update.hyperparameters = std::move(hyperparameters);
  update.coupled_decay = coupled_decay;
  update.maximize = maximize;
  for (std::size_t i = 0; i < rows_.size(); ++i)
    if (items_[i].update == index) rows_[i].mover = mover;
}

void Table::set_program(std::size_t index, std::int64_t states, std::int64_t memory, Interpreted program, const UpdateKernel& compiled) {
  if (states < 0 || states > kMaxStates || memory < 0 || memory > kMaxMemory) throw std::invalid_argument("too many states");
  if (index >= updates_.size()) updates_.resize(index + 1);
  updates_[index].program = std::move(program);
  updates_[index].compiled = compiled;
  const std::size_t place = static_cast<std::size_t>(kernels_->update_count) + index;
  if (place >= movers_.size()) movers_.resize(place + 1);
  movers_[place] = {states, updates_[index].program.scalars.outputs(), memory, nullptr, {}, {}};  // `pass` points to the code
}

void Table::set_names(std::size_t index, nb::object count, std::vector<nb::object> states, std::vector<nb::object> memory) {
  if (states.size() > kMaxStates || memory.size() > kMaxMemory) throw std::invalid_argument("too many states");
  Update& update = updates_[update_at(index)];
  update.count_name = std::move(count);
  update.state_names = std::move(states);
  update.memory_names = std::move(memory);
}

// --- reading -------------------------------------------------------------------------------------------------------

void Table::begin() {
  forget();
  layouts_.clear();
  active_ = 0;
  for (Row& row : rows_) row.active = 0;
}

void Table::forget() noexcept { held_.clear(); }

void Table::activate(std::size_t row, double t) {
  if (!rows_[row].active) ++active_;
  rows_[row].active = 1;
  items_[row].t = t;
}

void Table::lay_out(std::size_t row, const std::vector<std::int64_t>& layout) {
  rows_[row].layout = layout.empty() ? -1 : static_cast<std::int64_t>(layouts_.size());
  layouts_.insert(layouts_.end(), layout.begin(), layout.end());
  if (!layout.empty() && layout[0] == NamedRows::kMark) {
    if (layout.size() < NamedRows::kHead) throw std::invalid_argument("the layout is too short");
    rows_[row].length = layout[2] * layout[3];
  }
}

// --- who shares memory ---------------------------------------------------------------------------------------------

std::int64_t Table::elements(const Row& row) const { return names_rows(row) ? named(row).count() * named(row).width() : row.length; }

std::pair<std::int64_t, std::int64_t> Table::extent(const Row& row, bool gradient) const {
  const std::int64_t base = gradient ? row.gradient : row.parameter;
  const std::int64_t bytes = bytes_of(row.dtype);
  if (row.length == 0) return {base, base};
  if (row.layout < 0) return {base, base + row.length * bytes};
  if (names_rows(row)) {
    const NamedRows rows = named(row);
    if (gradient) return {base, base + row.length * bytes};
    if (rows.contiguous()) return {base, base + elements(row) * bytes};
    std::int64_t low = base;
    std::int64_t high = base + bytes;
    const std::int64_t* strides = rows.strides(false);
    (strides[0] < 0 ? low : high) += strides[0] * (rows.count() - 1);
    for (std::int64_t d = 0; d < rows.dimensions(); ++d) (strides[1 + d] < 0 ? low : high) += strides[1 + d] * (rows.shape()[d] - 1);
    return {low, high};
  }
  const std::int64_t* layout = layouts_.data() + row.layout;
  if (!layout[gradient ? 2 : 1]) return {base, base + row.length * bytes};
  std::int64_t low = base;
  std::int64_t high = base + bytes;
  const std::int64_t* strides = layout + 3 + layout[0] * (gradient ? 2 : 1);
  for (std::int64_t d = 0; d < layout[0]; ++d) (strides[d] < 0 ? low : high) += strides[d] * (layout[3 + d] - 1);
  return {low, high};
}

// What tells one way of lying from another, where a tensor is not dense.
std::int64_t Table::digest(const Row& row, bool gradient) const {
  if (row.layout < 0) return 0;
  const std::int64_t* layout = layouts_.data() + row.layout;
  std::uint64_t hash = 14695981039346656037u;
  const auto mix = [&hash](std::int64_t number) { hash = (hash ^ static_cast<std::uint64_t>(number)) * 1099511628211u; };
  if (names_rows(row)) {
    const NamedRows rows = named(row);
    if (gradient) {
      mix(row.length);
    } else if (!rows.contiguous()) {
      mix(rows.count());
      for (std::int64_t d = 0; d < 2 * rows.dimensions() + 1; ++d) mix(rows.shape()[d]);  // the parameter's strides follow
    }
    return static_cast<std::int64_t>(hash | 1);
  }
  if (!layout[gradient ? 2 : 1]) return 0;
  mix(layout[0]);
  for (std::int64_t d = 0; d < layout[0]; ++d) {
    mix(layout[3 + d]);
    mix(layout[3 + layout[0] * (gradient ? 2 : 1) + d]);
  }
  return static_cast<std::int64_t>(hash | 1);
}

void Table::see(std::size_t row, std::int64_t (&numbers)[3 + kMaxStates]) const {
  const Row& r = rows_[row];
  numbers[0] = r.parameter;
  numbers[1] = elements(r) * 2 + r.dtype;
  numbers[2] = digest(r, false);
  const std::int64_t states = movers_[static_cast<std::size_t>(r.mover)].states;
  for (std::int64_t s = 0; s < kMaxStates; ++s) numbers[3 + s] = s < states ? r.states[s] : 0;
}

bool Table::as_seen(std::size_t row) const {
  if (!items_[row].trusted) return false;
  std::int64_t now[3 + kMaxStates];
  see(row, now);
  return std::memcmp(now, items_[row].seen, sizeof(now)) == 0;
}

std::pair<bool, std::vector<std::int64_t>> Table::settle() {
  bool fresh = false;
  for (std::size_t i = 0; i < rows_.size() && !fresh; ++i) fresh = rows_[i].active && !as_seen(i);
  bool doubtful = false;
  bool news = false;
  std::vector<std::int64_t> suspects;
  for (;;) {
    if (fresh) {
      written_.clear();
      for (const Row& row : rows_) {
        if (!row.active || row.length == 0) continue;
        written_.push_back(extent(row, false));
        for (std::int64_t s = 0; s < movers_[static_cast<std::size_t>(row.mover)].states; ++s)
          written_.emplace_back(row.states[s], row.states[s] + elements(row) * bytes_of(row.dtype));
      }
      std::sort(written_.begin(), written_.end());
      std::size_t merged = 0;
      for (std::size_t k = 1; k < written_.size(); ++k) {
        if (written_[k].first < written_[merged].second) doubtful = true;
        if (written_[k].first <= written_[merged].second)
          written_[merged].second = std::max(written_[merged].second, written_[k].second);
        else
          written_[++merged] = written_[k];
      }
      if (!written_.empty()) written_.resize(merged + 1);
      for (Item& item : items_) item.trusted = false;
    }
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Row& row = rows_[i];
      if (!row.active || row.length == 0) continue;
      Item& item = items_[i];
      if (!fresh && item.seen_gradient[0] == row.gradient && item.seen_gradient[1] == digest(row, true)) continue;
      news = true;
      const auto [low, high] = extent(row, true);
      const auto after = std::lower_bound(written_.begin(), written_.end(), std::pair<std::int64_t, std::int64_t>{high, 0});
      if (after != written_.begin() && std::prev(after)->second > low) suspects.push_back(static_cast<std::int64_t>(i));
    }
    // What this step does not write may have been given back, and taken for a gradient: look once more, without it.
    if (suspects.empty() || fresh) break;
    suspects.clear();
    fresh = true;
  }
  if (news || fresh) ++version;
  if (!doubtful && suspects.empty() && (news || fresh)) trust();
  return {doubtful, std::move(suspects)};
}

void Table::trust() {
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (!rows_[i].active) continue;
    Item& item = items_[i];
    see(i, item.seen);
    item.seen_gradient[0] = rows_[i].gradient;
    item.seen_gradient[1] = digest(rows_[i], true);
    item.trusted = true;
  }
}

std::vector<Piece> Table::pieces() const {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    if (!row.active || row.length == 0) continue;
    const std::int64_t bytes = bytes_of(row.dtype);
    const auto at = static_cast<std::int64_t>(i);
    const auto add = [&](std::int64_t which, std::int64_t address, std::int64_t strided) {
      Piece piece{at, which, address, bytes, {which == 1 ? row.length : elements(row)}, {bytes}};
      if (names_rows(row)) {
        const NamedRows rows = named(row);
        if (which == 0 && !rows.contiguous()) {
          piece.shape.assign(rows.shape(), rows.shape() + rows.dimensions());
          piece.shape.insert(piece.shape.begin(), rows.count());
          piece.strides.assign(rows.strides(false), rows.strides(false) + rows.dimensions() + 1);
        }
      } else if (strided >= 0 && layouts_[static_cast<std::size_t>(row.layout + 1 + strided)]) {
        const std::int64_t* layout = layouts_.data() + row.layout;
        const std::int64_t* strides = layout + 3 + layout[0] * (1 + strided);
        piece.shape.assign(layout + 3, layout + 3 + layout[0]);
        piece.strides.assign(strides, strides + layout[0]);
      }
      pieces.push_back(std::move(piece));
    };
    add(0, row.parameter, row.layout < 0 ? -1 : 0);
    add(1, row.gradient, row.layout < 0 ? -1 : 1);
    for (std::int64_t s = 0; s < movers_[static_cast<std::size_t>(row.mover)].states; ++s) add(2 + s, row.states[s], -1);
  }
  return pieces;
}

// --- the passes ----------------------------------------------------------------------------------------------------

void Table::place_scalars(double factor) {
  const ScalarProgram& prepare = scalar_programs()[0];
  scalars_.clear();
  observations_.assign(columns_ ? rows_.size() : 0, {});
  for (Update& update : updates_) update.placed = false;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Row& row = rows_[i];
    if (!row.active) continue;
    Item& item = items_[i];
    Update& update = updates_[item.update];
    const Mover& mover = mover_of(update);
    double memory[kMaxMemory] = {};
    for (std::int64_t k = 0; k < mover.memory; ++k) memory[k] = item.memory[k].get();
    if (!update.placed || update.t != item.t || std::memcmp(update.memory, memory, sizeof(memory)) != 0) {
      update.placed = true;
      update.t = item.t;
      std::memcpy(update.memory, memory, sizeof(memory));
      double scale = update.maximize ? -factor : factor;
      update.prepare = -1;
      if (clip_value_ < std::numeric_limits<double>::infinity() || update.coupled_decay != 0) {
        update.prepare = static_cast<std::int64_t>(scalars_.size());
        scalars_.resize(scalars_.size() + static_cast<std::size_t>(prepare.outputs));
        double given[2] = {};
        if (const auto at = place_of("clip_value", prepare.hyperparameters); at >= 0) given[at] = clip_value_;
        if (const auto at = place_of("coupled_decay", prepare.hyperparameters); at >= 0) given[at] = update.coupled_decay;
        prepare.run(given, nullptr, item.t, scale, scalars_.data() + update.prepare);
        scale = 1.0;  // it has been applied
      }
      update.scalars = static_cast<std::int64_t>(scalars_.size());
      if (update.mover < kernels_->update_count) {
        const ScalarProgram& program = scalar_programs()[update.mover];
        scalars_.resize(scalars_.size() + static_cast<std::size_t>(program.outputs));
        program.run(update.hyperparameters.data(), memory, item.t, scale, scalars_.data() + update.scalars);
      } else {
        update.program.scalars.of_step(update.hyperparameters.data(), memory, item.t, scale, scalars_);
      }
      for (std::int64_t k = 0; k < mover.memory; ++k) update.after[k] = scalars_[scalars_.size() - static_cast<std::size_t>(mover.memory - k)];
      update.observer_scalars = static_cast<std::int64_t>(scalars_.size());
      if (columns_ && !update.observer.empty())
        update.observer.scalars.of_step(update.observer.hyperparameters.data(), memory, item.t, scale, scalars_);
    }
    if (columns_ && !update.observer.empty()) observations_[i] = {&update.observer, update.observer_scalars};
    row.scalars = update.scalars;
    row.prepare = update.prepare;
    std::memcpy(item.after, update.after, sizeof(item.after));
  }
}

void Table::pass(bool update, int threads) {
  tallies_.resize(rows_.size() * measures_.size());
  for (const Update& each : updates_) {
    if (each.mover < kernels_->update_count) continue;
    Mover& mover = movers_[static_cast<std::size_t>(each.mover)];
    mover.plain = each.program.plain.code();
    mover.measured = each.program.measured.code();
    mover.printed = each.compiled.run[0] ? &each.compiled : nullptr;
  }
  Request request;
  request.kernels = kernels_;
  request.movers = {movers_.data(), static_cast<std::int64_t>(movers_.size())};
  request.rows = {rows_.data(), static_cast<std::int64_t>(rows_.size())};
  request.scalars = {scalars_.data(), static_cast<std::int64_t>(scalars_.size())};
  request.layouts = {layouts_.data(), static_cast<std::int64_t>(layouts_.size())};
  request.measures = {measures_.data(), static_cast<std::int64_t>(measures_.size())};
  request.update = update;
  request.threads = threads;
  request.team = team_;
  request.tallies = {tallies_.data(), static_cast<std::int64_t>(tallies_.size())};
  if (update && columns_) {
    observed_.assign(rows_.size() * columns(), std::numeric_limits<double>::quiet_NaN());
    request.observations = {observations_.data(), static_cast<std::int64_t>(observations_.size())};
    request.columns = columns_;
    request.observed = {observed_.data(), static_cast<std::int64_t>(observed_.size())};
  }
  Loop loop(request);
  const WithoutLock unlocked;
  loop.run();
  if (!update) return;
  // In the same call, so that no signal can come between the tensors and their counters.
  double latest = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (!rows_[i].active) continue;
    const Item& item = items_[i];
    item.count.set(item.t);
    latest = std::max(latest, item.count.type == Number::kNone ? 0 : item.t);
    for (int k = 0; k < kMaxMemory; ++k) item.memory[k].set(item.after[k]);
  }
  counts[0] = std::max(counts[0] + 1, static_cast<std::int64_t>(latest));
}

std::pair<double, double> Table::total() const {
  double sum = 0;
  double largest = 0;
  const std::size_t width = measures_.size();
  for (std::size_t i = 0; width && i < rows_.size(); ++i) {
    const double square = tallies_[i * width];
    sum += square;
    if (!(square <= largest)) largest = square;  // NaN too
  }
  return {sum, largest};
}

std::pair<double, double> Table::measure(int threads) {
  measures_.assign(1, 0);
  pass(false, threads);
  return total();
}

std::pair<double, double> Table::update(double factor, std::vector<std::int64_t> measures, int threads, std::int64_t columns) {
  if (columns < 0 || columns > kMaxColumns) throw std::invalid_argument("so many columns cannot be observed");
  measures_ = std::move(measures);
  columns_ = columns;
  place_scalars(factor);
  pass(true, threads);
  return total();
}

}  // namespace openadam
