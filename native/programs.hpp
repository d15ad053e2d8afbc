// Lowered programs as numbers from outside: checked, so that the interpreter can run them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "code.hpp"

namespace openadam {

// The values of scalar instructions, one after the other; compiled without builtin mathematics, as the printed scalars are.
void evaluate_scalars(const ScalarInstruction* instructions, std::int64_t count, const double* constants, const double* h, const double* s, double t,
                      double gradient_scale, double* values);

inline void require_sound(bool sound) {
  if (!sound) throw std::invalid_argument("the code of a program is damaged");
}

// What a program computes once a step.
class ScalarCode {
 public:
  ScalarCode() = default;

  // From the numbers that language/code.py prints; refuses what would read where it must not.
  ScalarCode(const std::vector<std::int64_t>& instructions, std::vector<double> constants, std::vector<std::int64_t> roots,
             std::int64_t hyperparameters, std::int64_t memory)
      : constants_(std::move(constants)), roots_(std::move(roots)), hyperparameters_(hyperparameters) {
    require_sound(instructions.size() % 4 == 0 && hyperparameters >= 0 && memory >= 0);
    const std::int64_t bounds[] = {static_cast<std::int64_t>(constants_.size()), hyperparameters, memory};
    for (std::size_t k = 0; k < instructions.size(); k += 4) {
      const std::int64_t* each = instructions.data() + k;
      const auto done = static_cast<std::int64_t>(k / 4);
      require_sound(each[0] >= 0 && each[0] < ScalarInstruction::kOperations);
      for (int a = 1; a < 4; ++a)
        require_sound(each[a] >= 0 && (each[0] <= ScalarInstruction::kMemory ? a > 1 || each[a] < bounds[each[0]] : each[a] <= done));
      if (each[0] > ScalarInstruction::kGradientScale)
        for (int a = 1; a < 4; ++a) require_sound(each[a] < done);  // nothing that comes later
      instructions_.push_back({static_cast<std::int32_t>(each[0]),
                               {static_cast<std::int32_t>(each[1]), static_cast<std::int32_t>(each[2]), static_cast<std::int32_t>(each[3])}});
    }
    for (const std::int64_t root : roots_) require_sound(root >= 0 && root < static_cast<std::int64_t>(instructions_.size()));
    values_.resize(instructions_.size());
  }

  std::int64_t outputs() const { return static_cast<std::int64_t>(roots_.size()); }
  std::int64_t hyperparameters() const { return hyperparameters_; }

  // Adds the scalars of a step at the end of a list.
  void of_step(const double* hyperparameters, const double* memory, double t, double gradient_scale, std::vector<double>& list) {
    evaluate_scalars(instructions_.data(), static_cast<std::int64_t>(instructions_.size()), constants_.data(), hyperparameters, memory, t,
                     gradient_scale, values_.data());
    for (const std::int64_t root : roots_) list.push_back(values_[static_cast<std::size_t>(root)]);
  }

 private:
  std::vector<ScalarInstruction> instructions_;
  std::vector<double> constants_;
  std::vector<std::int64_t> roots_;
  std::vector<double> values_;
  std::int64_t hyperparameters_ = 0;
};

// What it computes of each element.
class ElementCode {
 public:
  ElementCode() = default;

  // From the numbers that language/code.py prints; refuses what would read or write where it must not. Tensors that are written are those from
  // `written` on.
  ElementCode(const std::vector<std::int64_t>& instructions, const std::vector<std::int64_t>& outputs, std::int64_t slots, std::int64_t tensors,
              std::int64_t written, std::int64_t scalars, std::int64_t columns)
      : slots_(slots) {
    require_sound(slots >= 1 && slots <= kMaxSlots && instructions.size() % 11 == 0 && outputs.size() % 2 == 0);
    const auto output_count = static_cast<std::int64_t>(outputs.size() / 2);
    require_sound(output_count <= kMaxOutputs);
    const auto operand = [&](const std::int64_t* pair) {
      const std::int64_t bounds[] = {slots, tensors, scalars, 1};
      require_sound(pair[0] >= 0 && pair[0] < Operand::kKinds && pair[1] >= 0 && pair[1] < bounds[pair[0]]);
      return Operand{static_cast<std::int32_t>(pair[0]), static_cast<std::int32_t>(pair[1])};
    };
    for (std::size_t k = 0; k < instructions.size(); k += 11) {
      const std::int64_t* each = instructions.data() + k;
      require_sound(each[0] >= 0 && each[0] < Instruction::kOperations);
      const auto is_scalar = [&](int a) { return each[a] == Operand::kScalar || each[a] == Operand::kTiny; };
      if (each[0] == Instruction::kBlend) require_sound(is_scalar(3) && !is_scalar(5) && is_scalar(7) && !is_scalar(9));
      if (each[0] == Instruction::kScaleAdd || each[0] == Instruction::kSubtractScaled) require_sound(!is_scalar(5) && !is_scalar(7));
      if (each[0] == Instruction::kJoin)
        require_sound(each[1] == Operand::kSlot && each[2] >= 0 && each[2] < output_count);
      else
        require_sound(each[1] == Operand::kSlot ? each[2] >= 0 && each[2] < slots
                                                : each[1] == Operand::kTensor && each[2] >= written && each[2] < tensors);
      instructions_.push_back({static_cast<std::int32_t>(each[0]),
                               {static_cast<std::int32_t>(each[1]), static_cast<std::int32_t>(each[2])},
                               {operand(each + 3), operand(each + 5), operand(each + 7), operand(each + 9)}});
    }
    for (std::size_t k = 0; k < outputs.size(); k += 2) {
      require_sound(outputs[k] >= 0 && outputs[k] < Output::kJoins && outputs[k + 1] >= 0 && outputs[k + 1] < columns);
      outputs_.push_back({static_cast<std::int32_t>(outputs[k]), static_cast<std::int32_t>(outputs[k + 1])});
      require_sound(outputs_.back().column + outputs_.back().width() <= columns);
    }
  }

  bool empty() const { return instructions_.empty(); }

  Code code() const {
    return {instructions_.data(), static_cast<std::int64_t>(instructions_.size()), outputs_.data(), static_cast<std::int64_t>(outputs_.size()),
            slots_};
  }

 private:
  std::vector<Instruction> instructions_;
  std::vector<Output> outputs_;
  std::int64_t slots_ = 1;
};

// Looks inside a step.
struct Observer {
  ElementCode elements;
  ScalarCode scalars;
  std::vector<double> hyperparameters;

  bool empty() const { return elements.empty(); }
  Code code() const { return elements.code(); }
};

// Takes a step, and takes all measures but the norm on its way if it is to; the scalar states after the step are the last of its scalars.
struct Interpreted {
  ElementCode plain;
  ElementCode measured;
  ScalarCode scalars;
};

}  // namespace openadam
