"""Seeded faults that the test suite must catch; `make mutants` builds each one and runs the tests against it.

Each mutant is one small edit, of the kind that people make: eps in the wrong place, a tail off by one, a correction forgotten.
The sources are copied, edited, built and tested apart from the working tree. Every mutant must make a test fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMERICS = ("test_witnesses.py", "test_oracle.py", "test_numerics.py", "test_properties.py", "test_contract.py")
NATIVE = ("test_native.py", "test_contract.py")


@dataclass(frozen=True)
class Mutant:
    """One edit of one file, and the tests that are expected to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = NUMERICS


RULES, PROGRAM, LOOP = "src/openadam/rules.py", "src/openadam/language/program.py", "native/loop.hpp"
STEP, ENGINE, ARRAYS, MEMORY = "src/openadam/step.py", "src/openadam/engine.py", "src/openadam/arrays/table.py", "src/openadam/memory.py"
EVALUATION, NOTATION = "src/openadam/language/arrays.py", "src/openadam/language/notation.py"
TABLE, SCALARS, TENSORS, FRAMEWORK = "native/table.cpp", "src/openadam/language/cpp.py", "native/tensors.cpp", "native/framework.hpp"
HOST, ROWS, ROW_TABLE, LOADING, SHARDS = (f"src/openadam/torch/{name}.py" for name in ("host", "rows", "table", "loading", "shards"))
SPARSE = ("test_row_sparse.py", "test_torch_sparse.py")
HISTORY, RECORDER, TRACK, LAYOUT, SESSION, ALARMS = (
    f"src/openadam/record/{name}.py" for name in ("history", "recorder", "track", "layout", "session", "alarms")
)
RECORD = ("test_record.py",)
FRAME, RATES, ANSWERS = "src/openadam/studies/frame.py", "src/openadam/studies/rates.py", "src/openadam/practice/model.py"
STUDIES, PRACTICE, INSIDE = ("test_studies.py",), ("test_practice.py",), ("test_inside.py",)
TORCH = ("test_tensors.py", "test_torch_memory.py", "test_torch.py", "test_torch_faults.py", "test_torch_checkpoints.py")

MUTANTS = (
    Mutant("eps inside the root", RULES, "    return sqrt(v_hat) + eps\n", "    return sqrt(v_hat + eps)\n"),
    Mutant("first moment uncorrected", RULES, "        return Step(m / denominator(v, h.eps, epsilon), m=m, v=v)\n    m_hat = m / (1 - h.beta1**h.t)",
           "        return Step(m / denominator(v, h.eps, epsilon), m=m, v=v)\n    m_hat = m / 1"),
    Mutant("betas swapped", RULES, "return h.beta1 * s.m + (1 - h.beta1) * g", "return h.beta2 * s.m + (1 - h.beta2) * g"),
    Mutant("second moment of |g|", RULES, "return h.beta2 * s.v + (1 - h.beta2) * g**2", "return h.beta2 * s.v + (1 - h.beta2) * abs(g)"),
    Mutant("decay with the wrong sign", RULES, "p - (h.lr * h.decoupled_decay) * p", "p + (h.lr * h.decoupled_decay) * p"),
    Mutant("decay without the learning rate", RULES, "p - (h.lr * h.decoupled_decay) * p", "p - h.decoupled_decay * p"),
    Mutant("coupled decay forgotten", RULES, "bounded + h.coupled_decay * p)", "bounded)"),
    Mutant("AMSGrad forgets the maximum", RULES, "    v_max = maximum(s.v_max, v)\n    v_hat = v_max", "    v_max = maximum(0 * s.v_max, v)\n    v_hat = v_max"),
    Mutant("Nesterov without its factor", RULES, "g + h.momentum * m if form", "g + m if form"),
    Mutant("first gradient dampened", RULES, "entering = where(h.t == 1, 1, 1 - h.dampening)", "entering = 1 - h.dampening"),
    Mutant("RAdam's threshold", RULES, "where(rho > 5, rectified, m_hat)", "where(rho > 6, rectified, m_hat)"),
    Mutant("NAdam looks at the same step", RULES, "0.96 ** ((h.t + 1) * h.momentum_decay)", "0.96 ** (h.t * h.momentum_decay)"),
    Mutant("clipping that also scales up", RULES, "    return 1.0 if factor >= 1.0 else factor", "    return factor"),
    Mutant("centered variance below zero", RULES, "maximum(spread - states[\"g_mean\"] ** 2, 0)", "spread - states[\"g_mean\"] ** 2"),
    Mutant("bias correction that cancels", PROGRAM, 'if a.operation == "constant" and a.value == 1.0 and b.operation == "power":', "if False:", ("test_numerics.py", "test_language.py")),
    Mutant("quotient without its guard", PROGRAM, 'return self.intern("where", self.intern("equal", b, zero), zero, self.intern("divide", a, b))', 'return self.intern("divide", a, b)'),
    Mutant("subnormal states kept", PROGRAM, 'return self.intern("where", self.intern("less", self.intern("absolute", state), tiny), self.constant(0.0), state)', "return state",
           ("test_numerics.py", "test_language.py", "test_native.py")),
    Mutant("maximum that loses NaN", PROGRAM, 'return self.intern("where", self.intern("equal", a, a), chosen, a)', "return chosen", ("test_language.py", "test_numerics.py", "test_contract.py")),
    Mutant("tail off by one", "src/openadam/language/cpp.py", "for (std::int64_t i = 0; i < n; ++i) {", "for (std::int64_t i = 0; i < n - 1; ++i) {", NATIVE),
    Mutant("last element of a chunk lost", LOOP, "std::min(begin + kChunk, length)", "std::min(begin + kChunk, length - 1)", NATIVE),
    Mutant("states not advanced with the block", LOOP, "tensors[3 + s] = address(part.row.states[s], part.row, begin)", "tensors[3 + s] = address(part.row.states[s], part.row, 0)", NATIVE),
    Mutant("chunks joined without the last", LOOP, "const std::int64_t last = partials_at_[static_cast<std::size_t>(i) + 1];", "const std::int64_t last = partials_at_[static_cast<std::size_t>(i) + 1] - 1;", NATIVE),
    Mutant("a lane forgotten", "native/kernels.cpp", "for (int width = kLanes / 2;", "for (int width = kLanes / 4;", NATIVE),
    Mutant("contraction allowed", "native/CMakeLists.txt", "-fno-trapping-math -ffp-contract=off", "-fno-trapping-math -ffp-contract=fast", NATIVE),
    Mutant("strided carry lost", "native/formats.hpp", "      ++index[d - 1];\n", "", NATIVE),
    Mutant("gradient's strides for the parameter", LOOP, "p_at = {dimensions, layout + 3, layout + 3 + dimensions};", "p_at = {dimensions, layout + 3, layout + 3 + 2 * dimensions};", NATIVE),
    Mutant("counters not committed", TABLE, "    item.count.set(item.t);\n", "", NATIVE),
    Mutant("scalar states not committed", TABLE, "item.memory[k].set(item.after[k]);", "item.memory[k].set(item.memory[k].get());", ("test_contract.py", "test_native.py")),
    Mutant("scalars of another step", TABLE, "update.t != item.t || ", "", ("test_native.py", "test_contract.py")),
    Mutant("scalars of another row's states", TABLE, " || std::memcmp(update.memory, memory, sizeof(memory)) != 0", "", ("test_torch_memory.py", "test_native.py")),
    Mutant("scalars printed with another order", SCALARS, '"subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "power"', '"subtract": "{1} - {0}", "multiply": "{} * {}", "divide": "{} / {}", "power"', NATIVE),
    Mutant("flush-to-zero while stepping", "native/threads.hpp", "_mm_setcsr(0x1F80)", "_mm_setcsr(0x9FC0)", ("test_native.py", "test_numerics.py")),
    Mutant("caller's floating-point mode lost", "native/threads.hpp", "~IeeeMode() { _mm_setcsr(saved_); }", "~IeeeMode() {}", ("test_native.py", "test_package.py")),
    Mutant("table not checked", LOOP, "    check(request);\n", "", ("test_native.py",)),
    Mutant("maximize forgotten", TABLE, "update.maximize ? -factor : factor", "factor"),
    Mutant("maximize forgotten by the reference", ENGINE, '-factor if self.values["maximize"] else factor', "factor"),
    Mutant("a refused gradient trusted the next time", TABLE, "if (!doubtful && suspects.empty() && (news || fresh)) trust();", "trust();", ("test_inputs.py", "test_tensors.py")),
    Mutant("what is no longer written still protected", TABLE, "if (suspects.empty() || fresh) break;", "break;", ("test_tensors.py",)),
    Mutant("overlaps not seen again when memory moves", TABLE, "fresh = rows_[i].active && !as_seen(i)", "fresh = rows_[i].active && !items_[i].trusted", ("test_tensors.py", "test_torch_memory.py")),
    Mutant("alias check left out", ARRAYS, "            self._refuse_alias(suspects)\n", "            pass\n", ("test_inputs.py",)),
    Mutant("runs of one element only", MEMORY, "            length *= rest.pop(0)[1]\n", "            rest.pop(0)\n", ("test_memory.py",)),
    Mutant("only neighbours compared", MEMORY, "reach = np.maximum.accumulate(ends)", "reach = ends", ("test_memory.py",)),
    Mutant("non-finite gradients let through", STEP, "                if bad is not None and self.nonfinite == \"raise\":\n                    raise bad\n", "", ("test_inputs.py", "test_contract.py")),
    Mutant("a tensor without gradient stepped", TENSORS, "      if (gradient.is_none()) continue;\n", "      if (gradient.is_none()) table.activate(i, 1);\n", ("test_tensors.py",)),
    Mutant("torch's negated views taken as they lie", FRAMEWORK, "    if (word<std::int64_t>(parts->description + anatomy_->flags) & anatomy_->marks) return false;\n", "", TORCH),
    Mutant("a view taken for its whole storage", FRAMEWORK, "static_cast<std::uintptr_t>(parts.memory + known.offset)", "static_cast<std::uintptr_t>(parts.memory)", TORCH),
    Mutant("a storage that has become too small", FRAMEWORK, "parts->end = parts->memory + word<std::int64_t>(parts->storage + anatomy_->size);", "parts->end = std::numeric_limits<std::int64_t>::max();", ("test_torch_moves.py", "test_torch_memory.py")),
    Mutant("a description known by its first words", FRAMEWORK, "      b = mix(b, at + 8);\n      c = mix(c, at + 16);\n      d = mix(d, at + 24);\n", "", ("test_torch_moves.py",)),
    Mutant("states of other strides taken as they lie", TENSORS, "    if (!is_dense_in(order, states[s])) return false;\n", "", TORCH),
    Mutant("another parameter in the row's place", TENSORS, "i >= rows || table.item(i).identity != reinterpret_cast<std::uintptr_t>(parameter)", "i >= rows", TORCH),
    Mutant("a counter at the end of float32", TENSORS, "number.type == Number::kSingle ? kMostSingleSteps : kMostSteps", "kMostSteps", TORCH),
    Mutant("states shown before the step is certain", ROW_TABLE, "        doubtful, suspects = self.table.settle()", "        self.register()\n        doubtful, suspects = self.table.settle()", TORCH),
    Mutant("tensors held after the step", ROW_TABLE, "            self.table.forget()\n", "            pass\n", ("test_torch_memory.py",)),
    Mutant("autograd not told", ROW_TABLE, "                engines.native().tell_active(self.table, torch._C._increment_version)\n", "                pass\n", TORCH),
    Mutant("autograd told of the first parameters only", TENSORS, "begin < rows; begin += kAtATime", "begin < rows; begin += rows", ("test_tensors.py",)),
    Mutant("odd rows computed when others are written", ROW_TABLE, "            if not all(map(is_memory, (*reached.targets, reached.gradient))):", "            if False:", ("test_torch_odd.py",)),
    Mutant("16-bit states", ROWS, "dtype = torch.float32 if local.dtype in (torch.bfloat16, torch.float16) else local.dtype", "dtype = local.dtype", TORCH),
    Mutant("found_inf of exactly one", HOST, "found_inf is not None and _number(found_inf) != 0", "found_inf is not None and _number(found_inf) == 1", TORCH),
    Mutant("closure without gradients", HOST, "            with torch.enable_grad():\n                result = closure()", "            result = closure()", TORCH),
    Mutant("a smaller state loaded", LOADING, "    if tuple(value.shape) != tuple(p.shape):", "    if False:", TORCH),
    Mutant("names overlooked", LOADING, "    if not named:\n", "    if True:\n", TORCH),
    Mutant("loaded states shared", LOADING, "    copied = torch.empty_like(like, dtype=value.dtype, requires_grad=False, memory_format=torch.preserve_format).copy_(local)\n",
           "    copied = local\n", TORCH),
    Mutant("each shard clipped for itself", SHARDS, "math.hypot(*column) if key in spread else norms[key]", "norms[key]", ("test_torch_distributed.py",)),
    Mutant("a choice written over what it chooses from", EVALUATION, 'if operation != "where" or (each == operands[2] and each not in operands[:2])', "if True", ("test_language.py", "test_own_rules.py", "test_native.py")),
    Mutant("the gradient prepared for the first block only", EVALUATION, '            if each is not program:\n                given["g"] = made[0]\n', '            if each is not program and not start:\n                given["g"] = made[0]\n', ("test_native.py", "test_contract.py", "test_language.py")),
    Mutant("chunks measured without the last", ENGINE, 'for start in range(0, arrays["g"].size, PIECE):', 'for start in range(0, arrays["g"].size - 1, PIECE):', ("test_native.py", "test_contract.py")),
    Mutant("skips counted over good steps", STEP, "return count if after == self.steps else 0", "return count", ("test_settings.py",)),
    Mutant("giving up that goes on counting", STEP, "            self.latest_skips = [taken, 0]\n", "", ("test_settings.py",)),
    Mutant("a schedule that gives way to a number", "src/openadam/arrays/states.py", "        elif callable(own[name]):\n", "        elif False:\n", ("test_settings.py",)),
    Mutant("the end of a name for a step", NOTATION, "return name[-1].isdigit() or any", "return any", ("test_trace.py",)),
    Mutant("one symbol for two names", NOTATION, "    return bool(twins) and", "    return False and", ("test_trace.py",)),
    Mutant("negative second moment accepted", "src/openadam/arrays/states.py", "(value < 0).any()", "False", ("test_checkpoint.py",)),
    Mutant("a named row at the place of another", LOOP, "const std::int64_t place = rows[k] * width + within;",
           "const std::int64_t place = rows[k > 0 ? k - 1 : 0] * width + within;", SPARSE),
    Mutant("a named row behind the last", LOOP, "return before < named.count() ? nullptr", "return before <= named.count() ? nullptr", SPARSE),
    Mutant("named rows in any order", LOOP, "if (named.rows()[k] <= before) return", "if (named.rows()[k] < 0) return", SPARSE),
    Mutant("gathered rows that run over", LOOP, "const std::int64_t run = std::min(width - within, n);", "const std::int64_t run = std::min(width, n);", SPARSE),
    Mutant("a row named twice has its last value", "native/row_sums.cpp", "sum[i] += value[i];", "sum[i] = value[i];", SPARSE),
    Mutant("values added in another order", "native/row_sums.cpp",
           "for (const Named& each : named) sorted[begins[static_cast<std::size_t>((each.row >> shift) & kMask)]++] = each;",
           "for (auto each = named.rbegin(); each != named.rend(); ++each) sorted[begins[static_cast<std::size_t>((each->row >> shift) & kMask)]++] = *each;", SPARSE),
    Mutant("an index one too large", "src/openadam/row_sparse.py", "if low < 0 or high >= count:", "if low < 0 or high > count:", SPARSE),
    Mutant("rows that are not named unguarded", TABLE, "row.states[s] + elements(row) * bytes_of(row.dtype)", "row.states[s] + row.length * bytes_of(row.dtype)", SPARSE),
    Mutant("more values trusted as fewer", TABLE, "      mix(row.length);\n", "", SPARSE),
    Mutant("a dense step over as many elements as the lazy one before", "native/arrays.cpp", "  row.length = table.item(i).elements;\n  row.layout = -1;\n", "  row.layout = -1;\n", SPARSE),
    Mutant("dense gradients of SparseAdam", ROW_TABLE, 'if self.member.sparse == "required" and', "if False and", SPARSE),
    Mutant("decay beside sparse gradients", ROWS, '        if self.update.values["weight_decay"] != 0:\n', "        if False:\n", SPARSE),
    Mutant("a step without rows not counted", ENGINE, "writes.append((row.numbers, numbers, ...))", "writes.append((row.numbers, numbers if p.size else row.numbers, ...))", SPARSE),
    Mutant("a reset that fills what it can", HOST, "or not can_be_filled(tensor)", "or tensor.is_inference()", ("test_reset.py",)),
    Mutant("steps begun anew with the moments", HOST, "if moments and steps and not self.member.made_at_once:", "if moments and not self.member.made_at_once:", ("test_reset.py",)),
    Mutant("an interval of the normal distribution", FRAME, '.t.ppf(0.975, len(effects) - 1)', ".norm.ppf(0.975)", STUDIES),
    Mutant("an interval of one side", FRAME, "ppf(0.975,", "ppf(0.95,", STUDIES),
    Mutant("seeds not paired", FRAME, "a, b = mine[seed], other[seed]", "a, b = mine[seed], other[min(other)]", STUDIES),
    Mutant("not seen as within noise", FRAME, 'verdict = "seen" if above == (claim.direction == "above") else "not seen"', 'verdict = "seen" if above == (claim.direction == "above") else verdict', STUDIES),
    Mutant("what is not finite counted", FRAME, "if math.isfinite(a) and math.isfinite(b) and", "if", STUDIES),
    Mutant("differences without a sign", FRAME, "effects.append(math.log(a / b) if ratio else a - b)", "effects.append(math.log(a / b) if ratio else abs(a - b))", STUDIES),
    Mutant("a line that was cut off kept", FRAME, "            os.truncate(path, len(content) - len(rest))\n", "            pass\n", STUDIES),
    Mutant("cells of another budget gone on with", FRAME, 'or {**found, "openadam": __version__} != header:', 'or False:', STUDIES),
    Mutant("a sweep that stops at its grid", RATES, "pending = [low - 1] if chosen == rate(low)", "pending = [] if chosen == rate(low)", ("test_digits.py",)),
    Mutant("a tolerance of the place, not of the step", "src/openadam/practice/runs.py", "step = abs(value - before)", "step = abs(value)", PRACTICE),
    Mutant("what the question prints accepted", ANSWERS, "any(part.meets(number, part.value) for part in numbers)", "False", PRACTICE),
    Mutant("any part right is right", ANSWERS, "        if all(right):\n", "        if any(right):\n", PRACTICE),
    Mutant("known mistakes not named", ANSWERS, "if (value := mistake.values[place]) is not None and", "if (value := None) is not None and", PRACTICE),
    Mutant("bounds that hold on one side only", FRAME, "above or high < -claim.bound, below and low > -claim.bound", "above, below", STUDIES),
    Mutant("strips that begin anew", "native/interpreter.hpp", "for (int k = 0; k < kLanes; ++k) lane[k] = joined[k];", "for (int k = 0; k < kLanes; ++k) lane[k] = 0;", INSIDE),
    Mutant("a slot freed too early", "src/openadam/language/code.py", "last[which] == place}", "last[which] >= place}", INSIDE),
    Mutant("looked at after the update", LOOP, "      run(0, done);\n", "      run(0, n);\n      return;\n", INSIDE),
    Mutant("looked into a block's end before its beginning", LOOP, "    run(done, n);\n", "    run(0, n);\n", INSIDE),
    Mutant("another piece of each block", LOOP, "static_cast<std::uint64_t>(kBlock / apart) >> 32)", "static_cast<std::uint64_t>(kBlock / apart - 1) >> 32)", INSIDE),
    Mutant("what is behind the last element is joined", "native/interpreter.hpp", "for (int k = 0; k < kLanes && i < size_; ++i, ++k)", "for (int k = 0; k < kLanes && i < whole_; ++i, ++k)", INSIDE),
    Mutant("the moments of before with the clock of now", "src/openadam/measures.py", '("scalar", "t"): h.t - 1}', '("scalar", "t"): h.t}', INSIDE),
    Mutant("a recording averages spikes away", HISTORY, "np.maximum(self.maximum[left], self.maximum[right])", "self.maximum[left]", RECORD),
    Mutant("a recording forgets its latest bucket", HISTORY, "self.dirty = min(self.dirty, at)", "self.dirty = min(self.dirty, at + 1)", RECORD),
    Mutant("a recording keeps the buckets that were joined", HISTORY, "self.dirty, self.stale = 0, True", "self.dirty = 0", RECORD),
    Mutant("a recording loses what a full disk refused", TRACK, "each.dirty = min(each.dirty, batch.dirty[stream])", "pass", RECORD),
    Mutant("a recording overwrites another program's database", LAYOUT, "if application != APPLICATION:", "if False:", RECORD),
    Mutant("a recording goes on in a forked child", RECORDER, "        each._abandon()\n", "        pass\n", RECORD),
    Mutant("a recording in a file that is gone", RECORDER, "            self._look_for_file()\n", "", RECORD),
    Mutant("a recording dumps at every alarm", TRACK, "(rest or doublings & (doublings - 1))", "False", RECORD),
    Mutant("a recording of an exception keeps no ring", TRACK, "step, text, always=always)", "step, text)", RECORD),
    Mutant("an alarm at each step that is bad", ALARMS, "waiting = bad & ~rows.open", "waiting = bad", ("test_alarms.py",)),
    Mutant("an alarm that is never over", ALARMS, "rows.open[k] &= ~(known[k] & (values[k] >= calm if each.below else values[k] <= calm))", "pass", ("test_alarms.py",)),
    Mutant("an alarm after one bad step", ALARMS, "rows.count_of[k] >= told(each.steps, x)", "rows.count_of[k] >= 1", ("test_alarms.py",)),
    Mutant("alarms of tensors that take turns mixed up", ALARMS, "            state.rows.put(which, rows)\n", "", ("test_alarms.py",)),
    Mutant("an alarm that keeps no ring", TRACK, 'self._keep_ring(step, f"alarm: {what}")', "pass", ("test_alarms.py", "test_record.py")),
    Mutant("the report names any tensor", "src/openadam/readings.py", "at = int(np.argmax(far))", "at = int(np.argmax(beyond))", ("test_alarms.py",)),
    Mutant("a recording is read as it was", SESSION, "known = max(0, len(rows) - 1) if", "known = len(rows) if", RECORD),
)  # fmt: skip


def build(tree: Path) -> None:
    """The native module of a copied tree, put beside its sources; unchanged parts are not compiled again."""
    cmake = shutil.which("cmake") or "cmake"
    configure = [cmake, "-S", "native", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in (configure, [cmake, "--build", "build"]):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the build failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    for module in (tree / "build").glob("_native*"):
        if module.suffix in (".so", ".pyd"):
            shutil.copy2(module, tree / "src" / "openadam" / module.name)


def survives(tree: Path, tests: tuple[str, ...]) -> bool:
    """Whether all of the tests pass on the tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "2", str(ROOT / "tests" / test)]
        if subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False, timeout=900).returncode:
            return False
    return True


def main() -> None:
    """Try every mutant; exit with 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the mutants whose names contain this")
    parser.add_argument("--first", type=int, default=1, help="begin with this one, after a run that was cut off")
    arguments = parser.parse_args()
    tree = ROOT / "build" / "mutants"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for part in ("src", "native"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    build(tree)
    chosen = [mutant for mutant in MUTANTS[arguments.first - 1 :] if arguments.only in mutant.name]
    everything = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    if not survives(tree, everything):
        raise SystemExit("the tests fail without any mutant")
    survivors = []
    for number, mutant in enumerate(chosen, 1):
        path = tree / mutant.file
        original = path.read_text()
        if original.count(mutant.old) != 1:
            raise SystemExit(f"mutant {mutant.name!r} is out of date: its text stands {original.count(mutant.old)} times in {mutant.file}")
        start = time.perf_counter()
        path.write_text(original.replace(mutant.old, mutant.new))
        try:
            build(tree)
            alive = survives(tree, mutant.tests)
        finally:
            path.write_text(original)
        if alive:
            survivors.append(mutant.name)
        print(f"{number:2}/{len(chosen)}  {'SURVIVED' if alive else 'killed  '}  {time.perf_counter() - start:5.0f} s  {mutant.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
