// A lowered program as numbers: what the interpreter runs. `language/code.py` writes it.
#pragma once

#include <cstdint>

namespace openadam {

constexpr std::int64_t kStrip = 256;         // elements that an instruction is run over at a time
constexpr std::int64_t kSlot = kStrip + 48;  // from one slot to the next: not all at one place of a page, where they would drive each other out
constexpr int kLanes = 16;
constexpr std::int64_t kOctaves = 64;  // counted from 2^kLowest on; the first holds all that is smaller, too, and the last all that is larger
constexpr std::int64_t kLowest = -48;
constexpr std::int64_t kMaxStates = 4;
constexpr std::int64_t kMaxTensors = 3 + kMaxStates;  // the gradient as given, as the rule sees it, the parameter, the states
constexpr std::int64_t kMaxOutputs = 96;
constexpr std::int64_t kMaxSlots = 96;
constexpr std::int64_t kMaxColumns = 1024;

struct Operand {
  enum Kind : std::int32_t { kSlot, kTensor, kScalar, kTiny, kKinds };  // kTiny: the smallest normal number
  std::int32_t kind;
  std::int32_t index;
};

struct Instruction {
  enum Operation : std::int32_t {
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kNegative,
    kAbsolute,
    kRoot,
    kLess,
    kLessEqual,
    kEqual,
    kWhere,
    kFlush,           // a number below the smallest normal one is 0
    kQuotient,        // a / b, 0 where b is
    kBlend,           // a * b + c * d of scalars a and c
    kScaleAdd,        // a * b + c
    kSubtractScaled,  // c - a * b
    kCopy,
    kJoin,
    kOperations
  };
  std::int32_t operation;
  Operand target;       // a slot, or a tensor that is written; of a join, which output
  Operand operands[4];  // those that an operation does not have are of slot 0
};

// How a value is joined over the elements of a tensor.
struct Output {
  enum Join : std::int32_t { kSum, kLargest, kCounts, kJoins };  // kCounts: how many elements there are of each octave
  std::int32_t join;
  std::int32_t column;  // of the tallies; the first of kOctaves
  std::int64_t width() const { return join == kCounts ? kOctaves : 1; }
};

struct Code {
  const Instruction* instructions;
  std::int64_t count;
  const Output* outputs;
  std::int64_t output_count;
  std::int64_t slots;
};

// Of n elements of tensors whose memory is worked on in whole vectors, with what lies behind the last element: joins what the outputs are to the
// tallies.
using Look = void (*)(const Code& code, void* const* tensors, const double* scalars, std::int64_t n, void* scratch, double* tallies);

// Of n elements of tensors, of which nothing behind the last is touched: writes what is to be written, and joins what the outputs are to kLanes lanes
// for each. Elements begin at lane 0.
using Take = void (*)(const Code& code, void* const* tensors, std::int64_t count, const double* scalars, std::int64_t n, void* scratch, void* joined);

// An operation on the scalars of a step, in float64; leaves have the index of what they are.
struct ScalarInstruction {
  enum Operation : std::int32_t {
    kConstant,
    kHyperparameter,
    kMemory,
    kStep,
    kGradientScale,
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kPower,
    kNegative,
    kAbsolute,
    kRoot,
    kExp,
    kExpm1,
    kLog,
    kSign,
    kMaximum,
    kMinimum,
    kLess,
    kLessEqual,
    kEqual,
    kWhere,
    kOperations
  };
  std::int32_t operation;
  std::int32_t arguments[3];
};

}  // namespace openadam
