// A program that looks inside a step: its code, checked, and its scalars.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "code.hpp"

namespace openadam {

// The values of scalar instructions, one after the other; compiled without builtin mathematics, as the printed scalars are.
void evaluate_scalars(const ScalarInstruction* instructions, std::int64_t count, const double* constants, const double* h, const double* s, double t,
                      double gradient_scale, double* values);

class Observer {
 public:
  Observer() = default;

  // From the numbers that language/code.py prints; refuses what would read or write where it must not.
  Observer(const std::vector<std::int64_t>& instructions, const std::vector<std::int64_t>& outputs, std::int64_t slots,
           const std::vector<std::int64_t>& scalars, std::vector<double> constants, std::vector<std::int64_t> roots,
           std::vector<double> hyperparameters, std::int64_t inputs, std::int64_t memory, std::int64_t columns)
      : constants_(std::move(constants)), roots_(std::move(roots)), hyperparameters_(std::move(hyperparameters)), slots_(slots) {
    const auto require = [](bool sound) {
      if (!sound) throw std::invalid_argument("the code of an observer is damaged");
    };
    require(slots >= 1 && slots <= kMaxSlots && instructions.size() % 8 == 0 && outputs.size() % 2 == 0 && scalars.size() % 4 == 0);
    const auto operand = [&](std::int64_t kind, std::int64_t index) {
      const std::int64_t bounds[] = {slots, inputs, static_cast<std::int64_t>(roots_.size()), 1};
      require(kind >= 0 && kind < Operand::kKinds && index >= 0 && index < bounds[kind]);
      return Operand{static_cast<std::int32_t>(kind), static_cast<std::int32_t>(index)};
    };
    for (std::size_t k = 0; k < instructions.size(); k += 8) {
      const std::int64_t* each = instructions.data() + k;
      const std::int64_t targets = each[0] == Instruction::kJoin ? static_cast<std::int64_t>(outputs.size() / 2) : slots;
      require(each[0] >= 0 && each[0] < Instruction::kOperations && each[1] >= 0 && each[1] < targets);
      instructions_.push_back({static_cast<std::int32_t>(each[0]),
                               static_cast<std::int32_t>(each[1]),
                               {operand(each[2], each[3]), operand(each[4], each[5]), operand(each[6], each[7])}});
    }
    for (std::size_t k = 0; k < outputs.size(); k += 2) {
      require(outputs[k] >= 0 && outputs[k] < Output::kJoins && outputs[k + 1] >= 0 && outputs[k + 1] < columns);
      outputs_.push_back({static_cast<std::int32_t>(outputs[k]), static_cast<std::int32_t>(outputs[k + 1])});
      require(outputs_.back().column + outputs_.back().width() <= columns);
    }
    require(static_cast<std::int64_t>(outputs_.size()) <= kMaxOutputs);
    for (std::size_t k = 0; k < scalars.size(); k += 4) {
      const std::int64_t* each = scalars.data() + k;
      const auto done = static_cast<std::int64_t>(k / 4);
      const std::int64_t bounds[] = {static_cast<std::int64_t>(constants_.size()), static_cast<std::int64_t>(hyperparameters_.size()), memory};
      require(each[0] >= 0 && each[0] < ScalarInstruction::kOperations);
      for (int a = 1; a < 4; ++a)
        require(each[a] >= 0 && (each[0] <= ScalarInstruction::kMemory ? a > 1 || each[a] < bounds[each[0]] : each[a] <= done));
      if (each[0] > ScalarInstruction::kGradientScale)
        for (int a = 1; a < 4; ++a) require(each[a] < done);  // nothing that comes later
      scalars_.push_back({static_cast<std::int32_t>(each[0]),
                          {static_cast<std::int32_t>(each[1]), static_cast<std::int32_t>(each[2]), static_cast<std::int32_t>(each[3])}});
    }
    for (const std::int64_t root : roots_) require(root >= 0 && root < static_cast<std::int64_t>(scalars_.size()));
    values_.resize(scalars_.size());
  }

  bool empty() const { return outputs_.empty(); }

  Code code() const {
    return {instructions_.data(), static_cast<std::int64_t>(instructions_.size()), outputs_.data(), static_cast<std::int64_t>(outputs_.size()),
            slots_};
  }

  // Adds the scalars of a step at the end of a list.
  void scalars_of_step(const double* memory, double t, double gradient_scale, std::vector<double>& list) {
    evaluate_scalars(scalars_.data(), static_cast<std::int64_t>(scalars_.size()), constants_.data(), hyperparameters_.data(), memory, t,
                     gradient_scale, values_.data());
    for (const std::int64_t root : roots_) list.push_back(values_[static_cast<std::size_t>(root)]);
  }

 private:
  std::vector<Instruction> instructions_;
  std::vector<Output> outputs_;
  std::vector<ScalarInstruction> scalars_;
  std::vector<double> constants_;
  std::vector<std::int64_t> roots_;
  std::vector<double> hyperparameters_;
  std::vector<double> values_;
  std::int64_t slots_ = 1;
};

}  // namespace openadam
