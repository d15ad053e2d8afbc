// One step over the table of all tensors: first everything is checked, then blocks are updated and measured.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats.hpp"
#include "kernels.hpp"
#include "programs.hpp"
#include "threads.hpp"

namespace openadam {

constexpr std::int64_t kBlock = 1024;            // elements that stay in the L1 cache
constexpr std::int64_t kChunk = 16 * kBlock;     // elements that one thread takes at a time
constexpr std::int64_t kRowCost = 64;            // what a tensor costs beside its elements, in elements
constexpr std::int64_t kPerThread = 4 * kChunk;  // less work than this does not pay for waking a thread
constexpr std::size_t kLeftForUpdate = 16;       // tasks whose gradients the cache still holds when the update begins
constexpr std::int64_t kMaxMeasures = 16;
constexpr std::int64_t kAheadInTable = 8;  // named rows to send the processor ahead

// A row of the table: one tensor in one step, as addresses and numbers.
struct Row {
  std::int64_t parameter;  // address
  std::int64_t gradient;   // address
  std::int64_t length;     // elements that are stepped
  std::int64_t dtype;
  std::int64_t mover;
  std::int64_t scalars;             // where this row's scalars start
  std::int64_t prepare;             // where the scalars of the gradient's preparation start, or -1: the gradient is used as it is
  std::int64_t layout;              // where this row's layout starts, or -1: both are dense
  std::int64_t active;              // 0: leave it alone
  std::int64_t states[kMaxStates];  // addresses
};
constexpr std::int64_t kColumns = sizeof(Row) / sizeof(std::int64_t);

// What moves a row: a printed kernel, or a program that is interpreted.
struct Mover {
  std::int64_t states = 0;
  std::int64_t scalars = 0;
  std::int64_t memory = 0;  // scalar states
  const UpdateKernel* printed = nullptr;
  Code plain{};  // where there is none
  Code measured{};
};

// A layout that names rows instead: the gradient is for these alone, which it holds one after the other. States have the parameter's rows.
// Where a row lies: begin + its number times the first stride. Strides are in bytes.
class NamedRows {
 public:
  static constexpr std::int64_t kMark = -1;  // where other layouts have their number of dimensions
  static constexpr std::int64_t kHead = 6;

  explicit NamedRows(const std::int64_t* layout) : layout_(layout) {}

  bool is_named() const { return layout_[0] == kMark; }
  const std::int64_t* rows() const { return reinterpret_cast<const std::int64_t*>(static_cast<std::uintptr_t>(layout_[1])); }
  std::int64_t named() const { return layout_[2]; }
  std::int64_t width() const { return layout_[3]; }  // elements of a row
  std::int64_t count() const { return layout_[4]; }  // rows of the parameter
  std::int64_t dimensions() const { return layout_[5]; }
  bool contiguous() const { return layout_[5] == kMark; }
  std::int64_t size() const { return contiguous() ? kHead : kHead + 3 * dimensions() + 2; }
  const std::int64_t* shape() const { return layout_ + kHead; }  // of a row
  const std::int64_t* strides(bool state) const { return layout_ + kHead + dimensions() + (state ? dimensions() + 1 : 0); }

 private:
  const std::int64_t* layout_;
};

template <class T>
struct Span {
  T* data = nullptr;
  std::int64_t size = 0;
};

// Who looks inside a row's step, and where the scalars for that start.
struct Observation {
  const Observer* observer = nullptr;  // null: nobody
  std::int64_t scalars = 0;
};

// Of every block a piece is looked into, at a place that goes by the golden ratio, so that no period of the tensor's can meet it. The pieces of
// a chunk together are so many at most; of small tensors they are larger.
constexpr std::int64_t kMostOfChunk = 512;
inline std::int64_t piece_of(std::int64_t length) {
  const std::int64_t blocks = (length + kBlock - 1) / kBlock;
  std::int64_t piece = kMostOfChunk;
  while (piece > kMostOfChunk / 64 && piece * blocks > kMostOfChunk) piece /= 2;
  return piece;
}

inline std::int64_t place_in_block(std::int64_t block, std::int64_t piece, std::int64_t n) {
  const std::uint64_t ratio = static_cast<std::uint32_t>(block) * 2654435769u;  // of 2^32
  const std::int64_t apart = std::max<std::int64_t>(piece, kLanes);
  const std::int64_t place = static_cast<std::int64_t>(ratio * static_cast<std::uint64_t>(kBlock / apart) >> 32) * apart;
  return place + piece <= n ? place : 0;
}

// What has been taken from the blocks of a chunk before their update.
struct Sample {
  std::int64_t count = 0;
  alignas(64) char values[kMaxTensors][(kMostOfChunk + 48) * 8];

  // Elements [place, place + n) of arrays that lie dense.
  void take(void* const* arrays, std::int64_t how_many, std::int64_t bytes, std::int64_t place, std::int64_t n) {
    for (std::int64_t k = 0; k < how_many; ++k)
      std::memcpy(values[k] + count * bytes, static_cast<const char*>(arrays[k]) + place * bytes, static_cast<std::size_t>(n * bytes));
    count += n;
  }

  // The interpreter works in whole vectors: what lies behind the last element is nothing.
  void finish(std::int64_t how_many, std::int64_t bytes) {
    for (std::int64_t k = 0; k < how_many; ++k) std::memset(values[k] + count * bytes, 0, static_cast<std::size_t>(-count & (kLanes - 1)) * bytes);
  }
};

struct Request {
  const KernelSet* kernels = nullptr;
  Span<const Mover> movers;  // the first is none
  Span<const Row> rows;
  Span<const double> scalars;
  Span<const std::int64_t> layouts;   // dimensions, p is strided, g is strided, shape, strides of p, strides of g; or NamedRows
  Span<const std::int64_t> measures;  // indices of those to take
  bool update = false;                // otherwise the tensors are measured only
  int threads = 1;
  Team team = nullptr;                   // of the host, if its threads are to do the work
  Span<double> tallies;                  // rows x measures
  Span<const Observation> observations;  // one for each row, or none at all
  std::int64_t columns = 0;
  Span<double> observed;  // rows x columns
};

inline std::int64_t bytes_of(std::int64_t dtype) { return dtype == kFloat32 ? 4 : 8; }

// Whether a shape has so many elements, of which there are some: no length is 0 then, and none exceeds that.
inline bool spans(const std::int64_t* shape, std::int64_t dimensions, std::int64_t length) {
  std::int64_t elements = 1;
  for (std::int64_t d = 0; d < dimensions; ++d) {
    if (shape[d] < 1 || shape[d] > length / elements) return false;
    elements *= shape[d];
  }
  return elements == length;
}

// What is wrong with a layout of so many numbers at most, or nothing.
inline const char* fault_of(const std::int64_t* layout, std::int64_t length, std::int64_t room) {
  if (layout[0] < 0 || layout[0] > kMaxDimensions || 3 * layout[0] > room - 3) return "layout out of range";
  return spans(layout + 3, layout[0], length) ? nullptr : "the layout's shape is not the row's length";
}

// And with one that names rows.
inline const char* fault_of(const NamedRows& named, std::int64_t length, std::int64_t room) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 16;
  if (room < NamedRows::kHead) return "layout out of range";
  if (!named.contiguous() && (named.dimensions() < 0 || named.dimensions() >= kMaxDimensions || named.size() > room)) return "layout out of range";
  if (named.named() < 0 || named.width() < 0 || named.count() < 0) return "impossible rows";
  if (named.width() > 0 && (named.count() > kMost / named.width() || named.named() > kMost / named.width())) return "impossible rows";
  if (named.named() * named.width() != length) return "the named rows are not the row's length";
  if (!named.contiguous() && !spans(named.shape(), named.dimensions(), named.width())) return "the layout's shape is not the rows' width";
  if (!named.rows()) return "null address";
  std::int64_t before = -1;
  for (std::int64_t k = 0; k < named.named(); ++k) {
    if (named.rows()[k] <= before) return "the named rows are not in ascending order";
    before = named.rows()[k];
  }
  return before < named.count() ? nullptr : "a named row out of range";
}

// Refuses a table that would touch memory it should not; after this nothing can fail.
inline void check(const Request& request) {
  if (request.threads < 1 || request.threads > kMaxThreads) throw std::invalid_argument("the number of threads is out of range");
  const auto refuse = [](std::int64_t row, const char* what) {
    throw std::invalid_argument("row " + std::to_string(row) + " of the step's table: " + what);
  };
  if (request.kernels->measure_count > kMaxMeasures) throw std::invalid_argument("too many measures");
  for (std::int64_t i = 0; i < request.measures.size; ++i)
    if (request.measures.data[i] < 0 || request.measures.data[i] >= request.kernels->measure_count) throw std::invalid_argument("no such measure");
  if (request.observations.size && request.observations.size != request.rows.size) throw std::invalid_argument("one observation for each row");
  if (request.observations.size && request.observed.size != request.rows.size * request.columns)
    throw std::invalid_argument("no room for what is observed");
  if (request.tallies.size != request.rows.size * request.measures.size) throw std::invalid_argument("the tallies must hold rows x measures numbers");
  const std::int64_t prepare_scalars = request.kernels->updates[0].scalars;
  for (std::int64_t i = 0; i < request.rows.size; ++i) {
    const Row& row = request.rows.data[i];
    if (!row.active) continue;
    if (row.dtype < 0 || row.dtype >= kDtypes) refuse(i, "unknown dtype");
    if (row.mover < 1 || row.mover >= request.movers.size) refuse(i, "unknown kernel");
    if (row.length < 0 || row.length > std::numeric_limits<std::int64_t>::max() / 16) refuse(i, "impossible length");
    const Mover& mover = request.movers.data[row.mover];
    if (mover.states > kMaxStates) refuse(i, "too many states");
    if (request.update) {
      if (row.scalars < 0 || row.scalars > request.scalars.size - mover.scalars) refuse(i, "scalars out of range");
      if (row.prepare < -1 || (row.prepare >= 0 && row.prepare > request.scalars.size - prepare_scalars))
        refuse(i, "scalars of the preparation out of range");
    }
    if (row.length == 0) continue;
    const std::int64_t alignment = bytes_of(row.dtype) - 1;
    bool p_strided = false;
    bool g_strided = false;
    if (row.layout != -1) {
      if (row.layout < 0 || row.layout > request.layouts.size - 3) refuse(i, "layout out of range");
      const std::int64_t* layout = request.layouts.data + row.layout;
      const std::int64_t room = request.layouts.size - row.layout;
      const NamedRows named(layout);
      const char* fault = named.is_named() ? fault_of(named, row.length, room) : fault_of(layout, row.length, room);
      if (fault) refuse(i, fault);
      p_strided = named.is_named() ? !named.contiguous() : layout[1] != 0;
      g_strided = !named.is_named() && layout[2] != 0;
    }
    if (!row.parameter || !row.gradient) refuse(i, "null address");
    if (!p_strided && (row.parameter & alignment)) refuse(i, "misaligned parameter");
    if (!g_strided && (row.gradient & alignment)) refuse(i, "misaligned gradient");
    for (std::int64_t s = 0; s < mover.states; ++s)
      if (!row.states[s] || (row.states[s] & alignment)) refuse(i, "null or misaligned state");
  }
}

// Rows [first, last) whole, or elements [begin, end) of the one row first.
struct Task {
  std::int64_t first, last, begin, end;
};

class Loop {
 public:
  // Checks and allocates; run() then cannot fail.
  explicit Loop(const Request& request) : request_(request) {
    check(request);
    partials_at_.reserve(static_cast<std::size_t>(request.rows.size) + 1);
    std::int64_t chunks = 0;
    std::int64_t first = 0;
    std::int64_t cost = 0;
    for (std::int64_t i = 0; i < request.rows.size; ++i) {
      partials_at_.push_back(chunks);
      const Row& row = request.rows.data[i];
      const std::int64_t length = row.active ? row.length : 0;
      work_ += length + kRowCost;
      if (length > kChunk) {
        if (first < i) tasks_.push_back({first, i, 0, 0});
        for (std::int64_t begin = 0; begin < length; begin += kChunk) tasks_.push_back({i, i, begin, std::min(begin + kChunk, length)});
        first = i + 1;
        cost = 0;
      } else {
        cost += length + kRowCost;
        if (cost >= kChunk) {
          tasks_.push_back({first, i + 1, 0, 0});
          first = i + 1;
          cost = 0;
        }
      }
      chunks += length > kChunk ? (length + kChunk - 1) / kChunk : 1;
    }
    partials_at_.push_back(chunks);
    if (first < request.rows.size) tasks_.push_back({first, request.rows.size, 0, 0});
    partials_.resize(static_cast<std::size_t>(chunks * request.measures.size));
    for (std::int64_t m = 0; m < request.measures.size; ++m)
      if (request.measures.data[m] == 0)
        norm_ = m;
      else
        measure_parameter_ = request.update;
    looked_into_.resize(static_cast<std::size_t>(request.observations.size ? chunks * request.columns : 0));
    std::int64_t slots = 0;
    for (std::int64_t i = 0; i < request.observations.size; ++i)
      if (request.observations.data[i].observer) slots = std::max(slots, request.observations.data[i].observer->code().slots);
    for (std::int64_t k = 1; k < request.movers.size; ++k)
      if (const Mover& mover = request.movers.data[k]; !mover.printed) slots = std::max({slots, mover.plain.slots, mover.measured.slots});
    if (request.observations.size) slots_at_ = sizeof(Sample) / sizeof(double);
    room_ = slots_at_ + static_cast<std::size_t>(slots * kSlot);
    scratch_.resize(room_ * static_cast<std::size_t>(request.threads) + 8);
  }

  void run() noexcept {
    const std::int64_t useful = std::max<std::int64_t>(1, work_ / kPerThread);
    const int threads = static_cast<int>(std::min<std::int64_t>({request_.threads, useful, static_cast<std::int64_t>(tasks_.size())}));
    // Each thread has a stretch of its own, which memory serves best, and when done helps with those of the others.
    const auto count = tasks_.size();
    const auto stretches = static_cast<std::size_t>(threads);
    struct alignas(64) Stretch {
      std::atomic<std::size_t> next{0};
      std::size_t begin = 0;
      std::size_t end = 0;
    };
    std::array<Stretch, kMaxThreads> stretch;
    for (std::size_t s = 0; s < stretches; ++s) {
      stretch[s].next = stretch[s].begin = count * s / stretches;
      stretch[s].end = count * (s + 1) / stretches;
    }
    std::atomic<std::size_t> arrived{0};
    Pool::instance().run(request_.team && threads > 1 ? request_.threads : threads, request_.team, [&]() noexcept {
      const std::size_t own = arrived.fetch_add(1);
      double* const scratch = aligned(scratch_.data()) + own * room_;
      for (std::size_t s = 0; s < stretches; ++s) {
        Stretch& mine = stretch[(own + s) % stretches];
        // What only measures leaves the beginning for the end, so that the update that follows begins with what is still in the cache. It
        // goes forward all the same: memory is read almost twice as fast that way as in pieces that go back.
        const std::size_t size = mine.end - mine.begin;
        const std::size_t turn = request_.update || size <= kLeftForUpdate ? 0 : kLeftForUpdate;
        for (std::size_t i; (i = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.end;) {
          const std::size_t at = i - mine.begin + turn;
          do_task(tasks_[mine.begin + (at < size ? at : at - size)], scratch);
        }
      }
    });
    join_partials();
  }

 private:
  // A range of a row, and what is found out about it.
  struct Part {
    const Row& row;
    const Mover& mover;
    bool prepared;
    double* partials;
    const Observation* observation;  // null: nobody looks
    Sample* sample;
    double* slots;
  };

  // Where the elements of a block lie, dense.
  struct Place {
    char* gradient;
    char* parameter;
    char* states[kMaxStates];
  };

  void do_task(const Task& task, double* scratch) noexcept {
    if (task.first == task.last) return do_range(task.first, task.begin, task.end, scratch);
    for (std::int64_t i = task.first; i < task.last; ++i)
      if (request_.rows.data[i].active) do_range(i, 0, request_.rows.data[i].length, scratch);
  }

  void do_range(std::int64_t index, std::int64_t begin, std::int64_t end, double* scratch) noexcept {
    const Row& row = request_.rows.data[index];
    const Mover& mover = request_.movers.data[row.mover];
    const std::int64_t chunk = partials_at_[static_cast<std::size_t>(index)] + begin / kChunk;
    const bool watched = request_.update && request_.observations.size && request_.observations.data[index].observer;
    const Part part{row,
                    mover,
                    request_.update && row.prepare >= 0,
                    partials_.data() + chunk * request_.measures.size,
                    watched ? request_.observations.data + index : nullptr,
                    watched ? reinterpret_cast<Sample*>(scratch) : nullptr,
                    scratch + slots_at_};
    if (watched) part.sample->count = 0;
    const bool plain = request_.update && !part.prepared && row.layout < 0 && !measure_parameter_ && !watched;
    const std::int64_t stride = request_.measures.size == 0 ? end - begin : kBlock;  // nothing to join: all at once
    if (plain) {
      void* tensors[kMaxTensors];
      for (std::int64_t at = begin; at < end; at += stride) {
        const std::int64_t n = std::min(stride, end - at);
        point(part, at, address(row.gradient, row, at), address(row.parameter, row, at), tensors);
        measure_norm(row, tensors[0], n, part.partials);
        move(part, tensors, n, nullptr);
      }
      return;
    }
    if (row.layout >= 0 && NamedRows(request_.layouts.data + row.layout).is_named())
      do_named(part, begin, end);
    else
      for (std::int64_t at = begin; at < end; at += kBlock) do_block(part, at, std::min(kBlock, end - at));
    if (!watched) return;
    part.sample->finish(3 + mover.states, bytes_of(row.dtype));
    void* tensors[kMaxTensors];
    for (int k = 0; k < kMaxTensors; ++k) tensors[k] = part.sample->values[k];
    request_.kernels->look[row.dtype](part.observation->observer->code(), tensors, request_.scalars.data + part.observation->scalars,
                                      part.sample->count, part.slots, looked_into_.data() + chunk * request_.columns);
  }

  // The step of n elements that lie dense: of the gradient as given and as the rule sees it, the parameter, and the states. With lanes, the
  // measures are joined there.
  void move(const Part& part, void* const* tensors, std::int64_t n, void* lanes) noexcept {
    const Mover& mover = part.mover;
    const std::int64_t dtype = part.row.dtype;
    const double* const scalars = request_.scalars.data + part.row.scalars;
    if (!mover.printed)
      request_.kernels->take[dtype](lanes ? mover.measured : mover.plain, tensors, 3 + mover.states, scalars, n, part.slots, lanes);
    else if (lanes)
      mover.printed->run_measured[dtype](tensors + 1, tensors[0], scalars, n, lanes);
    else
      mover.printed->run[dtype](tensors + 1, scalars, n);
  }

  // Measures a block and, if asked to, looks into its step and takes it.
  void step(const Part& part, const Place& place, std::int64_t begin, std::int64_t n) noexcept {
    alignas(64) char prepared_gradient[kBlock * 8];
    const Row& row = part.row;
    measure_norm(row, place.gradient, n, part.partials);
    if (!request_.update) return;
    void* tensors[kMaxTensors] = {place.gradient, place.gradient, place.parameter};
    std::copy_n(place.states, part.mover.states, tensors + 3);
    if (part.prepared) {
      void* both[3] = {place.gradient, place.parameter, prepared_gradient};
      request_.kernels->updates[0].run[row.dtype](both, request_.scalars.data + row.prepare, n);
      tensors[1] = prepared_gradient;
    }
    const std::int64_t how_many = 3 + part.mover.states;
    alignas(64) char lanes[kMaxMeasures * kLanes * 8];
    if (measure_parameter_) std::memset(lanes, 0, static_cast<std::size_t>((request_.kernels->measure_count - 1) * kLanes * bytes_of(row.dtype)));
    const auto run = [&](std::int64_t first, std::int64_t last) {
      if (first == last) return;
      void* here[kMaxTensors];
      for (std::int64_t k = 0; k < how_many; ++k) here[k] = static_cast<char*>(tensors[k]) + first * bytes_of(row.dtype);
      move(part, here, last - first, measure_parameter_ ? lanes : nullptr);
    };
    std::int64_t done = 0;
    if (part.observation) {
      // Half-way, so that the processor has fetched what is looked into as it fetches all the rest.
      const std::int64_t piece = piece_of(row.length);
      done = place_in_block(begin / kBlock, piece, n);
      run(0, done);
      part.sample->take(tensors, how_many, bytes_of(row.dtype), done, std::min(piece, n - done));
    }
    run(done, n);
    if (measure_parameter_) join_lanes(row, lanes, part.partials);
  }

  void do_block(const Part& part, std::int64_t begin, std::int64_t n) noexcept {
    alignas(64) char fetched_gradient[kBlock * 8];
    alignas(64) char fetched_parameter[kBlock * 8];
    const Row& row = part.row;
    const std::int64_t bytes = bytes_of(row.dtype);
    Place place{address(row.gradient, row, begin), address(row.parameter, row, begin), {}};
    for (std::int64_t s = 0; s < part.mover.states; ++s) place.states[s] = address(row.states[s], row, begin);
    Strided p_at{};
    bool p_strided = false;
    if (row.layout >= 0) {
      const std::int64_t* layout = request_.layouts.data + row.layout;
      const std::int64_t dimensions = layout[0];
      p_at = {dimensions, layout + 3, layout + 3 + dimensions};
      p_strided = layout[1] != 0;
      if (layout[2]) {
        const Strided g_at{dimensions, layout + 3, layout + 3 + 2 * dimensions};
        copy_strided<true>(bytes, address(row.gradient, row, 0), g_at, begin, n, fetched_gradient);
        place.gradient = fetched_gradient;
      }
      if (p_strided) {
        copy_strided<true>(bytes, address(row.parameter, row, 0), p_at, begin, n, fetched_parameter);
        place.parameter = fetched_parameter;
      }
    }
    step(part, place, begin, n);
    if (request_.update && p_strided) copy_strided<false>(bytes, address(row.parameter, row, 0), p_at, begin, n, place.parameter);
  }

  // Elements [begin, end) of the rows that the gradient names. Blocks are those of the gradient, so that measures are joined as elsewhere.
  void do_named(const Part& part, std::int64_t begin, std::int64_t end) noexcept {
    const Row& row = part.row;
    const NamedRows named(request_.layouts.data + row.layout);
    const bool in_place = named.contiguous() && !measure_parameter_ && !part.observation;
    for (std::int64_t at = begin; at < end; at += kBlock) {
      const std::int64_t n = std::min(kBlock, end - at);
      if (request_.update && !in_place) {
        do_gathered(part, named, at, n);
        continue;
      }
      measure_norm(row, address(row.gradient, row, at), n, part.partials);
      if (request_.update) do_in_place(part, named, at, at + n);
    }
  }

  // Each named row where it lies. That is a call for each row, which costs less than to copy even the shortest.
  void do_in_place(const Part& part, const NamedRows& named, std::int64_t begin, std::int64_t end) noexcept {
    alignas(64) char prepared_gradient[kBlock * 8];
    const Row& row = part.row;
    const std::int64_t width = named.width();
    const std::int64_t* rows = named.rows();
    void* tensors[kMaxTensors];
    std::int64_t k = begin / width;
    std::int64_t within = begin % width;
    for (std::int64_t at = begin; at < end; ++k, within = 0) {
      const std::int64_t n = std::min(width - within, end - at);
      if (k + kAheadInTable < named.named()) send_to_row(row, part.mover, rows[k + kAheadInTable] * width, std::min(width, kBlock / 4));
      const std::int64_t place = rows[k] * width + within;
      char* gradient = address(row.gradient, row, at);
      char* parameter = address(row.parameter, row, place);
      if (part.prepared) {
        void* both[3] = {gradient, parameter, prepared_gradient};
        request_.kernels->updates[0].run[row.dtype](both, request_.scalars.data + row.prepare, n);
        gradient = prepared_gradient;
      }
      point(part, place, gradient, parameter, tensors);
      move(part, tensors, n, nullptr);
      at += n;
    }
  }

  static void send_to_row(const Row& row, const Mover& mover, std::int64_t place, std::int64_t elements) noexcept {
#if defined(__GNUC__) || defined(__clang__)
    const std::int64_t bytes = elements * bytes_of(row.dtype);
    for (std::int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(address(row.parameter, row, place) + at, 1);
      for (std::int64_t s = 0; s < mover.states; ++s) __builtin_prefetch(address(row.states[s], row, place) + at, 1);
    }
#else
    (void)row, (void)mover, (void)place, (void)elements;
#endif
  }

  // A block of named rows gathered from the parameter and the states, stepped there, and put back.
  void do_gathered(const Part& part, const NamedRows& named, std::int64_t begin, std::int64_t n) noexcept {
    alignas(64) char parameter[kBlock * 8];
    alignas(64) char states[kMaxStates][kBlock * 8];
    const Row& row = part.row;
    Place place{address(row.gradient, row, begin), parameter, {}};
    copy_named<true>(row, named, row.parameter, false, begin, n, parameter);
    for (std::int64_t s = 0; s < part.mover.states; ++s) {
      place.states[s] = states[s];
      copy_named<true>(row, named, row.states[s], true, begin, n, states[s]);
    }
    step(part, place, begin, n);
    copy_named<false>(row, named, row.parameter, false, begin, n, parameter);
    for (std::int64_t s = 0; s < part.mover.states; ++s) copy_named<false>(row, named, row.states[s], true, begin, n, states[s]);
  }

  // Copies elements [begin, begin + n) of the named rows between a tensor and a dense block.
  template <bool kFetch>
  static void copy_named(const Row& row, const NamedRows& named, std::int64_t base, bool state, std::int64_t begin, std::int64_t n,
                         char* dense) noexcept {
    const std::int64_t bytes = bytes_of(row.dtype);
    const std::int64_t width = named.width();
    std::int64_t k = begin / width;
    std::int64_t within = begin % width;
    while (n > 0) {
      const std::int64_t run = std::min(width - within, n);
      if (named.contiguous()) {
        char* place = address(base, row, named.rows()[k] * width + within);
        const auto length = static_cast<std::size_t>(run * bytes);
        kFetch ? std::memcpy(dense, place, length) : std::memcpy(place, dense, length);
      } else {
        const std::int64_t* strides = named.strides(state);
        char* place = address(base, row, 0) + named.rows()[k] * strides[0];
        copy_strided<kFetch>(bytes, place, {named.dimensions(), named.shape(), strides + 1}, within, run, dense);
      }
      dense += run * bytes;
      n -= run;
      within = 0;
      ++k;
    }
  }

  void measure_norm(const Row& row, const void* gradient, std::int64_t n, double* partials) noexcept {
    if (norm_ < 0) return;
    partials[norm_] = joined(request_.kernels->measures[0].is_max, partials[norm_], request_.kernels->norm[row.dtype](gradient, n));
  }

  // A block's lanes of the measures that were taken on the way of its update.
  void join_lanes(const Row& row, char* lanes, double* partials) noexcept {
    for (std::int64_t m = 0; m < request_.measures.size; ++m) {
      const std::int64_t which = request_.measures.data[m];
      if (which == 0) continue;
      const bool is_max = request_.kernels->measures[which].is_max;
      partials[m] = joined(is_max, partials[m], request_.kernels->fold[row.dtype](lanes + (which - 1) * kLanes * bytes_of(row.dtype), is_max));
    }
  }

  // Chunks in their order, so that the result does not depend on which thread took which.
  void join_partials() noexcept {
    const std::int64_t measures = request_.measures.size;
    for (std::int64_t i = 0; i < request_.rows.size; ++i) {
      const std::int64_t first = partials_at_[static_cast<std::size_t>(i)];
      const std::int64_t last = partials_at_[static_cast<std::size_t>(i) + 1];
      for (std::int64_t m = 0; m < measures; ++m) {
        double total = 0;
        for (std::int64_t c = first; c < last; ++c)
          total = joined(request_.kernels->measures[request_.measures.data[m]].is_max, total, partials_[static_cast<std::size_t>(c * measures + m)]);
        request_.tallies.data[i * measures + m] = total;
      }
      if (!request_.observations.size || !request_.observations.data[i].observer) continue;
      const Code code = request_.observations.data[i].observer->code();
      for (std::int64_t k = 0; k < code.output_count; ++k) {
        const Output& output = code.outputs[k];
        for (std::int64_t column = output.column; column < output.column + output.width(); ++column) {
          double total = 0;
          for (std::int64_t c = first; c < last; ++c)
            total = joined(output.join == Output::kLargest, total, looked_into_[static_cast<std::size_t>(c * request_.columns + column)]);
          request_.observed.data[i * request_.columns + column] = total;
        }
      }
    }
  }

  static double joined(bool is_max, double a, double b) noexcept {
    if (!is_max) return a + b;
    return (a > b || a != a) ? a : b;
  }

  static double* aligned(double* pointer) noexcept { return reinterpret_cast<double*>((reinterpret_cast<std::uintptr_t>(pointer) + 63) / 64 * 64); }

  static char* address(std::int64_t base, const Row& row, std::int64_t element) noexcept {
    return reinterpret_cast<char*>(static_cast<std::uintptr_t>(base)) + element * bytes_of(row.dtype);
  }

  static void point(const Part& part, std::int64_t begin, char* gradient, char* parameter, void** tensors) noexcept {
    tensors[0] = tensors[1] = gradient;
    tensors[2] = parameter;
    for (std::int64_t s = 0; s < part.mover.states; ++s) tensors[3 + s] = address(part.row.states[s], part.row, begin);
  }

  const Request& request_;
  std::vector<Task> tasks_;
  std::vector<std::int64_t> partials_at_;  // where each row's partial tallies start, in chunks
  std::vector<double> partials_;
  std::vector<double> looked_into_;  // the same, of who looks inside
  std::vector<double> scratch_;      // a piece for each thread
  std::size_t room_ = 0;             // its size
  std::size_t slots_at_ = 0;         // where in it the interpreter's slots begin
  std::int64_t work_ = 0;
  std::int64_t norm_ = -1;          // where the norm stands among the measures, if it is one of them
  bool measure_parameter_ = false;  // whether there are others, which are taken on the way of an update
};

}  // namespace openadam
