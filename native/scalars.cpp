// The generated scalar programs. Compiled without builtin mathematics: the C library answers at run time, as it answers Python, and the
// compiler, which may know a digit better, does not.
#include "scalars.hpp"

#include <math.h>

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

}  // namespace openadam
