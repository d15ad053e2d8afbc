// The generated scalar programs. Compiled without builtin mathematics: the C library answers at run time, as it answers Python, and the
// compiler, which may know a digit better, does not.
#include "scalars.hpp"

#include <math.h>

#include "programs.hpp"

namespace {

inline double chosen(bool a_wins, double a, double b) { return a != a || b != b ? a + b : a_wins ? a : b; }
inline double maximum(double a, double b) { return chosen(a > b, a, b); }
inline double minimum(double a, double b) { return chosen(a < b, a, b); }
inline double sign(double x) { return x != x ? x : static_cast<double>((x > 0) - (x < 0)); }

#include "generated_scalars.hpp"

#define SCALAR_ROW(hyperparameters, function, outputs, states) {hyperparameters, function, outputs, states},
const openadam::ScalarProgram kPrograms[] = {SCALAR_PROGRAMS(SCALAR_ROW)};

}  // namespace

namespace openadam {

const ScalarProgram* scalar_programs() { return kPrograms; }

void evaluate_scalars(const ScalarInstruction* instructions, std::int64_t count, const double* constants, const double* h, const double* s, double t,
                      double gradient_scale, double* values) {
  using Scalar = ScalarInstruction;
  for (std::int64_t k = 0; k < count; ++k) {
    const Scalar& each = instructions[k];
    const double a = each.operation > Scalar::kGradientScale ? values[each.arguments[0]] : 0;
    const double b = each.operation > Scalar::kGradientScale ? values[each.arguments[1]] : 0;
    double& value = values[k];
    switch (each.operation) {
      case Scalar::kConstant:
        value = constants[each.arguments[0]];
        break;
      case Scalar::kHyperparameter:
        value = h[each.arguments[0]];
        break;
      case Scalar::kMemory:
        value = s[each.arguments[0]];
        break;
      case Scalar::kStep:
        value = t;
        break;
      case Scalar::kGradientScale:
        value = gradient_scale;
        break;
      case Scalar::kAdd:
        value = a + b;
        break;
      case Scalar::kSubtract:
        value = a - b;
        break;
      case Scalar::kMultiply:
        value = a * b;
        break;
      case Scalar::kDivide:
        value = a / b;
        break;
      case Scalar::kPower:
        value = pow(a, b);
        break;
      case Scalar::kNegative:
        value = -a;
        break;
      case Scalar::kAbsolute:
        value = fabs(a);
        break;
      case Scalar::kRoot:
        value = sqrt(a);
        break;
      case Scalar::kExp:
        value = exp(a);
        break;
      case Scalar::kExpm1:
        value = expm1(a);
        break;
      case Scalar::kLog:
        value = log(a);
        break;
      case Scalar::kSign:
        value = sign(a);
        break;
      case Scalar::kMaximum:
        value = maximum(a, b);
        break;
      case Scalar::kMinimum:
        value = minimum(a, b);
        break;
      case Scalar::kLess:
        value = a < b;
        break;
      case Scalar::kLessEqual:
        value = a <= b;
        break;
      case Scalar::kEqual:
        value = a == b;
        break;
      default:
        value = a != 0 ? b : values[each.arguments[2]];
    }
  }
}

}  // namespace openadam
