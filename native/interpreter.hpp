// Any lowered program, instruction by instruction over strips that stay in the L1 cache: the same bits as a printed kernel. Included once per
// instruction set, in an anonymous namespace.

using openadam::kSlot;
using openadam::kStrip;

// An operand that differs from element to element, and one that does not.
template <class T>
struct Many {
  const T* values;
  T operator[](std::int64_t i) const { return values[i]; }
};
template <class T>
struct One {
  T value;
  T operator[](std::int64_t) const { return value; }
};

template <class T>
class Interpreter {
 public:
  // Lanes are those of the outputs, tallies where those are that count octaves.
  Interpreter(const openadam::Code& code, void* const* tensors, const double* scalars, void* scratch, T (*lanes)[kLanes], double* tallies)
      : code_(code), tensors_(tensors), scalars_(scalars), slots_(static_cast<T*>(scratch)), lanes_(lanes), tallies_(tallies) {}

  void run(std::int64_t n) {
    for (begin_ = 0; begin_ < n; begin_ += kStrip) {
      size_ = n - begin_ < kStrip ? n - begin_ : kStrip;
      whole_ = (size_ + kLanes - 1) / kLanes * kLanes;
      for (std::int64_t k = 0; k < code_.count; ++k) step(code_.instructions[k]);
    }
  }

 private:
  template <bool kMax, class Value>
  void join(Value value, T* joined) const {
    T lane[kLanes];
    for (int k = 0; k < kLanes; ++k) lane[k] = joined[k];
    std::int64_t i = 0;
    for (; i + kLanes <= size_; i += kLanes)
      for (int k = 0; k < kLanes; ++k) lane[k] = kMax ? largest(lane[k], value[i + k]) : lane[k] + value[i + k];
    for (int k = 0; k < kLanes && i < size_; ++i, ++k) lane[k] = kMax ? largest(lane[k], value[i]) : lane[k] + value[i];
    for (int k = 0; k < kLanes; ++k) joined[k] = lane[k];
  }

  // Adds an element to the octave that it is in, by the exponent in its bits.
  template <class Value>
  void count(Value value, double* counts) const {
    for (std::int64_t i = 0; i < size_; ++i) {
      const std::int64_t octave = exponent(value[i]) - openadam::kLowest;
      ++counts[octave < 0 ? 0 : octave >= openadam::kOctaves ? openadam::kOctaves - 1 : octave];
    }
  }

  // Calls f with what an operand stands for.
  template <class F>
  void with(const openadam::Operand& operand, F f) const {
    switch (operand.kind) {
      case openadam::Operand::kSlot:
        return f(Many<T>{slots_ + operand.index * kSlot});
      case openadam::Operand::kTensor:
        return f(Many<T>{static_cast<const T*>(tensors_[operand.index]) + begin_});
      case openadam::Operand::kScalar:
        return f(One<T>{static_cast<T>(scalars_[operand.index])});
      default:
        return f(One<T>{smallest_normal<T>});
    }
  }

  // In whole vectors, which need no loop for what is left: what lies behind the last element is worked on too, and joined by nobody. A target
  // is one of the operands, or apart from all.
  template <class F>
  void each(F f) const {
    const std::uint64_t n = static_cast<std::uint64_t>(whole_) / kLanes * kLanes;  // as the compiler can see
    INDEPENDENT
    for (std::uint64_t i = 0; i < n; ++i) f(static_cast<std::int64_t>(i));
  }

  const T* many(const openadam::Operand& operand) const {
    return operand.kind == openadam::Operand::kSlot ? slots_ + operand.index * kSlot : static_cast<const T*>(tensors_[operand.index]) + begin_;
  }
  T one_of(const openadam::Operand& operand) const {
    return operand.kind == openadam::Operand::kScalar ? static_cast<T>(scalars_[operand.index]) : smallest_normal<T>;
  }

  // Of two sums of a product, which is what first and second moments are.
  void blend(const openadam::Instruction& instruction) const {
    T* const target = place(instruction.target);
    const T a = one_of(instruction.operands[0]);
    const T* const b = many(instruction.operands[1]);
    const T c = one_of(instruction.operands[2]);
    const T* const d = many(instruction.operands[3]);
    each([=](std::int64_t i) { target[i] = a * b[i] + c * d[i]; });
  }

  template <class F>
  void scaled(const openadam::Instruction& instruction, F f) const {
    T* const target = place(instruction.target);
    const T* const b = many(instruction.operands[1]);
    const T* const c = many(instruction.operands[2]);
    with(instruction.operands[0], [=, this](auto a) { each([=](std::int64_t i) { target[i] = f(a[i] * b[i], c[i]); }); });
  }

  T* place(const openadam::Operand& target) const {
    return target.kind == openadam::Operand::kSlot ? slots_ + target.index * kSlot : static_cast<T*>(tensors_[target.index]) + begin_;
  }

  template <class F>
  void one(const openadam::Instruction& instruction, F f) const {
    T* const target = place(instruction.target);
    with(instruction.operands[0], [=, this](auto a) { each([=](std::int64_t i) { target[i] = f(a[i]); }); });
  }

  template <class F>
  void two(const openadam::Instruction& instruction, F f) const {
    T* const target = place(instruction.target);
    with(instruction.operands[0],
         [&](auto a) { with(instruction.operands[1], [=, this](auto b) { each([=](std::int64_t i) { target[i] = f(a[i], b[i]); }); }); });
  }

  void choose(const openadam::Instruction& instruction) const {
    T* const target = place(instruction.target);
    with(instruction.operands[0], [&](auto condition) {
      with(instruction.operands[1], [&](auto a) {
        with(instruction.operands[2], [=, this](auto b) { each([=](std::int64_t i) { target[i] = condition[i] != T(0) ? a[i] : b[i]; }); });
      });
    });
  }

  void step(const openadam::Instruction& instruction) const {
    using openadam::Instruction;
    switch (instruction.operation) {
      case Instruction::kAdd:
        return two(instruction, [](T a, T b) { return a + b; });
      case Instruction::kSubtract:
        return two(instruction, [](T a, T b) { return a - b; });
      case Instruction::kMultiply:
        return two(instruction, [](T a, T b) { return a * b; });
      case Instruction::kDivide:
        return two(instruction, [](T a, T b) { return a / b; });
      case Instruction::kNegative:
        return one(instruction, [](T a) { return -a; });
      case Instruction::kAbsolute:
        return one(instruction, [](T a) { return absolute(a); });
      case Instruction::kRoot:
        return one(instruction, [](T a) { return root(a); });
      case Instruction::kLess:
        return two(instruction, [](T a, T b) { return a < b ? T(1) : T(0); });
      case Instruction::kLessEqual:
        return two(instruction, [](T a, T b) { return a <= b ? T(1) : T(0); });
      case Instruction::kEqual:
        return two(instruction, [](T a, T b) { return a == b ? T(1) : T(0); });
      case Instruction::kWhere:
        return choose(instruction);
      case Instruction::kFlush:
        return one(instruction, [](T a) { return absolute(a) < smallest_normal<T> ? T(0) : a; });
      case Instruction::kQuotient:
        return two(instruction, [](T a, T b) { return b == T(0) ? T(0) : a / b; });
      case Instruction::kBlend:
        return blend(instruction);
      case Instruction::kScaleAdd:
        return scaled(instruction, [](T product, T c) { return product + c; });
      case Instruction::kSubtractScaled:
        return scaled(instruction, [](T product, T c) { return c - product; });
      case Instruction::kCopy:
        return one(instruction, [](T a) { return a; });
      default:
        return with(instruction.operands[0], [&](auto value) {
          const auto k = instruction.target.index;
          const openadam::Output& output = code_.outputs[k];
          if (output.join == openadam::Output::kCounts) return count(value, tallies_ + output.column);
          output.join == openadam::Output::kLargest ? join<true>(value, lanes_[k]) : join<false>(value, lanes_[k]);
        });
    }
  }

  const openadam::Code& code_;
  void* const* tensors_;
  const double* scalars_;
  T* slots_;
  T (*lanes_)[kLanes];
  double* tallies_;
  std::int64_t begin_ = 0;
  std::int64_t size_ = 0;
  std::int64_t whole_ = 0;
};

template <class T>
void look(const openadam::Code& code, void* const* tensors, const double* scalars, std::int64_t n, void* scratch, double* tallies) {
  alignas(64) T lanes[openadam::kMaxOutputs][kLanes] = {};
  Interpreter<T>(code, tensors, scalars, scratch, lanes, tallies).run(n);
  for (std::int64_t k = 0; k < code.output_count; ++k) {
    const openadam::Output& output = code.outputs[k];
    if (output.join == openadam::Output::kCounts) continue;
    const bool is_max = output.join == openadam::Output::kLargest;
    const double folded = fold_lanes<T>(lanes[k], is_max);
    double& tally = tallies[output.column];
    tally = is_max ? largest(tally, folded) : sum(tally, folded);
  }
}

template <class T>
void take(const openadam::Code& code, void* const* tensors, std::int64_t count, const double* scalars, std::int64_t n, void* scratch, void* joined) {
  T(*const lanes)[kLanes] = static_cast<T(*)[kLanes]>(joined);
  const std::int64_t direct = n % kLanes == 0 ? n : n / kStrip * kStrip;
  Interpreter<T>(code, tensors, scalars, scratch, lanes, nullptr).run(direct);
  if (direct == n) return;
  // The last strip has no whole number of vectors, so it is worked on in memory of its own.
  alignas(64) T last[openadam::kMaxTensors][kStrip];
  void* here[openadam::kMaxTensors];
  const std::int64_t left = n - direct;
  const std::int64_t padded = (left + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t k = 0; k < count; ++k) {
    here[k] = last[k];
    const T* const from = static_cast<const T*>(tensors[k]) + direct;
    for (std::int64_t i = 0; i < left; ++i) last[k][i] = from[i];
    for (std::int64_t i = left; i < padded; ++i) last[k][i] = 0;
  }
  Interpreter<T>(code, here, scalars, scratch, lanes, nullptr).run(left);
  for (std::int64_t k = 2; k < count; ++k) {  // the gradient is not written
    T* const to = static_cast<T*>(tensors[k]) + direct;
    for (std::int64_t i = 0; i < left; ++i) to[i] = last[k][i];
  }
}
