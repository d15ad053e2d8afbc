"""The command line: what it prints, where, its exit codes, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import openadam
from openadam import cli
from openadam.studies import digits

DEMO = ("rich", "sklearn", "matplotlib")
DIGITS = ("compare", "digits", "--epochs", "1", "--seeds", "2")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Files go to a directory of the test's own; the environment chooses nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("OPENADAM_ENGINE", "OPENADAM_ISA", "OPENADAM_NUM_THREADS", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        code = cli.main(arguments)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def demo():
    for module in DEMO:
        pytest.importorskip(module)


def start(code, **settings):
    """A Python process of its own, which Ctrl-C interrupts even where this one is deaf to it."""
    deaf = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    return subprocess.Popen([sys.executable, "-c", deaf + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def command(*arguments):
    return f"import sys; from openadam.cli import main; sys.exit(main({list(arguments)!r}))"


def spelt(value):
    """The name of a case: its command line; the expected results go without saying."""
    return ascii(" ".join(value))[1:50] if isinstance(value, list) else ""


def strict_json(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# --- help, usage, errors -----------------------------------------------------------------------------------------------


def test_version(run):
    assert run("--version") == (0, f"openadam {openadam.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], *([name] for name in cli.COMMANDS)], ids=spelt)
def test_help(run, arguments):
    code, out, err = run(*arguments, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: openadam", *arguments]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing; there are compare, study, trace"),
        (["lst"], "did you mean 'list'?"),
        (["frobnicate"], "there are compare, study, trace"),
        (["--versio"], "did you mean '--version'?"),
        (["list", "more"], "'more' is one too many"),
        (["compare"], "required: STUDY"),
        (["compare", "digit"], "did you mean 'digits'?"),
        (["compare", "digits", "--optimizers", "adam,adan"], "no optimizer 'adan'; did you mean 'adam'?"),
        (["compare", "digits", "--optimizers", "adam,"], "no optimizer ''"),
        (["compare", "digits", "--sed", "3"], "did you mean '--seeds'?"),
        (["compare", "digits", "--seeds", "0"], "'0' is not a whole number from 1 to 1000"),
        (["compare", "digits", "--epochs", "-1"], "'-1' is not a whole number"),
        (["compare", "digits", "--epochs", "9" * 5000], "is not a whole number"),
        (["compare", "digits", "--lr", "fast"], "'fast' is not a number"),
        (["compare", "digits", "--lr", "-0.1"], "lr=-0.1 is out of range"),
        (["compare", "digits", "--lr", "nan"], "lr=nan is out of range"),
        (["compare", "digits", "--lr", "1", "--sweep"], "not allowed with"),
        (["show"], "required: NAME"),
        (["trace", "--grads", "1", "--epsilon", "hat"], "no option '--epsilon'; it is an option of rules, --option epsilon=…"),
        (["trace", "--grads", "1", "--nesterov"], "no option '--nesterov'; it is a choice that rules have, --option form=nesterov"),
        (["trace", "--grads", "1", "--learning-rate", "1"], "no option '--learning-rate'; write --lr"),
        (["trace", "--grads", "1", "--alpha=1"], "no option '--alpha'; write --rho or --lr"),
        (["trace", "--gards", "1"], "no option '--gards'; did you mean '--grads'?"),
        (["trace", "--grads", "1", "--xyzzy"], "no option '--xyzzy' (see openadam trace --help)"),
        (["show", "adm"], "no rule 'adm'; did you mean 'adam'?"),
        (["show", "adam", "--as", "latx"], "did you mean 'latex'?"),
        (["show", "adam", "--option", "epsilon"], "not of the form NAME=VALUE"),
        (["show", "adam", "--option", "epsilon=insid"], "epsilon='insid' is none of"),
        (["show", "adam", "--option", "epsilo=inside"], "no option 'epsilo'"),
        (["show", "adam", "--option", "as_=c++"], "no rule has an option of this name"),
        (["show", "adam", "--option", "epsilon=1"], "epsilon=1.0 is none of"),
        (["show", "adam", "--option", "weight_decay=much"], "'much' is not a number"),
        (["show", "nowhere:rule"], "No module named 'nowhere'"),
        (["show", "math:pi"], "math:pi is of type float"),
        (["show", "math:p"], "has no attribute 'p'"),
        (["trace"], "required: --grads"),
        (["trace", "--grads", "1;x"], "'x' is not a number"),
        (["trace", "--grads", "1", "--beta1", "1.5"], "beta1=1.5 is out of range"),
        (["trace", "--grads", "1", "--beta", "0.5"], "did you mean '--beta"),
        (["trace", "--grads", "1", "--rule", "sgd", "--beta1", "0.5"], "'beta1'"),
        (["trace", "--grads", "1", "--params", "1,2"], "2 coordinates"),
        (["trace", "--grads", "1", "--params", "1;2"], "params"),
        (["trace", "--grads", "1", "--option", "coupling=coupled"], "no rule has an option of this name"),
        (["trace", "--grads", "1", "--option", "engine=native"], "'engine'"),
        (["trace", "--grads", "1", "--option", "psi=1"], "no hyperparameter or option 'psi'"),
        (["trace", "--grads", "1", "--option", "lr=-1"], "lr=-1.0 is out of range"),
        (["trace", "--grads", "1", "--coupling", "couple"], "did you mean 'coupled'?"),
        (["inspect"], "required: FILE"),
    ],
    ids=spelt,
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("openadam: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "missing"], "missing: No such file or directory"),
        (["inspect", "."], ".: "),
        (["inspect", "a\x1b[31m\nb"], r"a\x1b[31m\nb: No such file"),
        (["inspect", "a\udcff"], r"a\udcff: No such file"),
        (["inspect", "text"], "not an openadam checkpoint"),
        (["trace", "--grads", "1e200"], "not be finite"),
    ],
    ids=spelt,
)
def test_failure_is_one_line_and_exit_code_1(run, tmp_path, arguments, message):
    (tmp_path / "text").write_text("hello")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("openadam: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "openadam", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"openadam {openadam.__version__}\n", "")


def test_import_is_light():
    heavy = (*DEMO, "scipy", "torch", "safetensors")
    process = start(f"import sys, openadam.cli; print(*(name for name in {heavy!r} if name in sys.modules))")
    assert process.communicate(timeout=60) == ("\n", "")


def test_a_command_s_file_is_imported_when_it_is_named():
    names = [f"openadam.cli.{name}" for name in cli.COMMANDS]
    process = start(f"import sys; from openadam.cli import main; main(['list']); print(*(name for name in {names!r} if name in sys.modules))")
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "openadam.cli.list"


def test_closed_pipe_is_quiet():
    process = start(command("list"), env={**os.environ, "PYTHONUNBUFFERED": ""})
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_is_one_line(unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "openadam", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "openadam: error: No space left on device\n")


def test_closed_stderr_is_no_place_for_errors(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["lst"]) == 2
    assert capsys.readouterr().out == ""


# --- info, list, show, trace, inspect ----------------------------------------------------------------------------------


def test_info(run, monkeypatch):
    monkeypatch.setenv("OPENADAM_NUM_THREADS", "3")
    _, out, err = run("info")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    code, text, _ = run("info", "--json")
    facts = strict_json(text)
    assert code == 0
    assert err == ""
    assert list(shown) == ["openadam", "engine", "isa", "threads", "numpy", "python", "compiled"]
    assert (shown["openadam"], shown["threads"], shown["numpy"]) == (openadam.__version__, "3", np.__version__)
    assert list(facts) == ["version", "engine", "reason", "isa", "isas", "threads", "numpy", "python", "compiled"]
    assert facts["threads"] == 3
    assert shown["engine"] == f"{facts['engine']} ({facts['reason']})"
    if facts["engine"] == "native":
        assert facts["isa"] in facts["isas"]


def test_info_gives_the_reason_for_the_reference(run, monkeypatch):
    monkeypatch.setenv("OPENADAM_ENGINE", "reference")
    facts = strict_json(run("info", "--json")[1])
    assert (facts["engine"], facts["isa"], facts["reason"]) == ("reference", "numpy", "OPENADAM_ENGINE=reference is set")


def test_info_without_native_part():
    process = start("import sys; sys.modules['openadam._native'] = None; " + command("info", "--json"))
    out, err = process.communicate(timeout=60)
    facts = strict_json(out)
    assert (process.returncode, err) == (0, "")
    assert (facts["engine"], facts["isas"]) == ("reference", [])
    assert facts["reason"].startswith("the native part cannot be imported: ")


def test_warnings_are_one_line():
    process = start(command("info"), env={**os.environ, "OPENADAM_NUM_THREADS": "many"})
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "openadam: warning: OPENADAM_NUM_THREADS='many' is not a whole number from 1 to 64; ignored\n")


def test_list(run):
    code, out, err = run("list")
    members = strict_json(run("list", "--json")[1])
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(openadam.MEMBERS) == [member["name"] for member in members]
    (adamw,) = (line for line in out.splitlines() if line.startswith("adamw "))
    assert "decoupled" in adamw
    assert "lr=0.001 beta1=0.9 beta2=0.999 eps=1e-08 weight_decay=0.01" in adamw
    assert {member["name"]: member["defaults"] for member in members} == {name: dict(member.defaults) for name, member in openadam.MEMBERS.items()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adam"], "def adam("),
        (["AdamW"], "def adam("),
        (["adam", "--as", "latex"], r"\begin{aligned}"),
        (["adam", "--as", "c++"], "template <class T>"),
        (["adam", "--as", "latex", "--coupling", "decoupled"], r"\theta_t"),
        (["amsgrad", "--as", "c++", "--option", "maximum_of=corrected"], "amsgrad_corrected"),
        (["mine:halve"], "0.5 * g"),
        (["mine:halve", "--as", "latex"], "0.5 g_t"),
    ],
    ids=spelt,
)
def test_show(run, tmp_path, arguments, expected):
    write_rule(tmp_path)
    code, out, err = run("show", *arguments)
    assert (code, err) == (0, "")
    assert expected in out


def write_rule(directory, name="mine"):
    sys.modules.pop(name, None)
    lines = ["import openadam", "@openadam.rule(lr=1.0)", "def halve(g, s, h):", "    return openadam.Step(0.5 * g)"]
    (directory / f"{name}.py").write_text("\n".join(lines) + "\n")


def test_faulty_module_is_one_line(run, tmp_path):
    (tmp_path / "faulty.py").write_text("import openadam\n@openadam.rule\ndef bad(g, s, h):\n    return openadam.Step(g @ g)\n")
    code, _, err = run("show", "faulty:bad")
    assert code == 2
    assert "faulty.py:4: `return openadam.Step(g @ g)`: a rule is elementwise" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--rule", "sgd", "--grads", "2,-4", "--lr", "0.5"], (-1.0, 2.0)),
        (["--rule", "sgd", "--grads", "-4", "--params", "-1", "--lr=0.5"], 1.0),
        (["--rule", "SGD", "--grads", "-.5,1;2,-2", "--params", "-1,1", "--lr", "1"], (-2.5, 2.0)),
        (["--rule", "sgd", "--grads", "1", "--params", "10", "--lr", "1", "--weight_decay", "0.5"], 4.0),
        (["--rule", "sgd", "--grads", "1", "--params", "10", "--lr", "1", "--weight-decay", "0.5", "--coupling", "decoupled"], 4.0),
        (["--rule", "sgd", "--grads", "8", "--lr", "1", "--clip-value", "2", "--maximize"], 2.0),
        (["--rule", "momentum", "--grads", "1;1", "--lr", "1", "--momentum", "0.5", "--option", "form=nesterov"], -3.25),
        (["--rule", "mine:halve", "--grads", "8"], -4.0),
        (["--rule", "mine:halve", "--grads", "8", "--lr", "3", "--option", "lr=0.5"], -2.0),
    ],
    ids=spelt,
)
def test_trace(run, tmp_path, arguments, last):
    write_rule(tmp_path)
    code, out, err = run("trace", *arguments, "--as", "json")
    assert (code, err) == (0, "")
    found = strict_json(out)["steps"][-1]["lines"][-1]["value"]
    assert (tuple(found) if isinstance(found, list) else found) == last


@pytest.mark.parametrize(("form", "expected"), [("text", "step 2\n"), ("latex", r"\hat{m}"), ("json", '"steps"')])
def test_trace_forms(run, form, expected):
    code, out, _ = run("trace", "--grads", "20;-5", "--as", form)
    assert code == 0
    assert expected in out


@pytest.fixture
def checkpoint(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "run.safetensors"
    opt = openadam.AdamW({"w": np.ones((2, 3)), "b\x1b[31m": np.array(1.0)}, lr=0.5)
    opt.step({"w": np.ones((2, 3)), "b\x1b[31m": np.array(1.0)})
    opt.save(path)
    return path


def test_inspect(run, checkpoint):
    code, out, err = run("inspect", str(checkpoint))
    assert (code, err) == (0, "")
    assert "adam, decoupled weight decay" in out
    assert "2 parameters, weight_decay=0.01 lr=0.5" in out
    assert "parameters/w " in out
    assert "\x1b" not in out


def test_inspect_json(run, checkpoint):
    code, out, _ = run("inspect", str(checkpoint), "--json", "--verify")
    found = strict_json(out)
    assert code == 0
    assert (found["rule"], found["steps"], found["verified"]) == ("adam", 1, True)
    assert {"name": "parameters/w", "dtype": "float64", "shape": [2, 3], "bytes": 48} in found["tensors"]


def test_inspect_verify_finds_damage(run, checkpoint):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run("inspect", str(checkpoint))[0] == 0
    code, _, err = run("inspect", str(checkpoint), "--verify")
    assert code == 1
    assert "checksum" in err


# --- compare digits ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("demo")
def test_compare_prints_a_table_and_writes_a_picture(run, tmp_path):
    code, out, err = run(*DIGITS, "--optimizers", "Adam,sgd,adam")
    assert code == 0
    assert "Adam " in out
    assert "SGD " in out
    assert "Momentum" not in out
    assert "Each at the learning rate that a sweep (--sweep redoes it) chose for it" in out
    assert f"These rates were chosen for {digits.EPOCHS} epochs" in out
    assert "on this machine" in out
    assert out.endswith("\nCurves: openadam-digits.png\n")
    assert (tmp_path / "openadam-digits.png").read_bytes().startswith(b"\x89PNG")
    assert err.startswith("1 of 4 done (seed 1 of 2: SGD); about ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("demo")
def test_compare_json(run, tmp_path):
    picture = tmp_path / "a.svg"
    code, out, _ = run(*DIGITS, "--optimizers", "adam,sgd", "--json", "--output", str(picture))
    found = strict_json(out)
    assert code == 0
    assert list(found) == [
        "openadam", "study", "machine", "images", "layers", "batch", "epochs", "seeds", "target", "fair", "fairness", "interrupted",
        "optimizers", "sweep", "picture",
    ]  # fmt: skip
    assert (found["epochs"], found["seeds"], found["fair"], found["interrupted"], found["sweep"]) == (1, 2, False, False, {})
    assert found["images"] == {"train": 1071, "validation": 362, "test": 364}
    assert list(found["machine"]) == ["engine", "isa", "threads", "numpy", "python"]
    assert found["picture"] == str(picture)
    assert b"<svg" in picture.read_bytes()
    adam, sgd = found["optimizers"]
    assert list(adam) == [
        "optimizer", "lr", "runs", "diverged", "test_accuracy", "test_accuracy_std", "test_loss", "train_loss", "steps_to_target",
        "microseconds", "curves",
    ]  # fmt: skip
    assert list(adam["runs"][0]) == [
        "seed", "validation_loss", "test_loss", "test_accuracy", "microseconds", "diverged_at", "train_loss", "steps_to_target",
    ]  # fmt: skip
    assert (adam["optimizer"], adam["lr"], sgd["optimizer"], sgd["lr"]) == ("adam", 0.003, "sgd", 1.0)
    assert [entry["seed"] for entry in adam["runs"]] == [0, 1]
    assert adam["steps_to_target"] is None  # one epoch is too short
    assert adam["curves"]["steps"] == [0, 10, 20, 30, 33]
    assert adam["curves"]["train_loss"][-1] == pytest.approx(adam["train_loss"])
    assert 0.5 < adam["test_accuracy"] < 1


@pytest.mark.usefixtures("demo")
def test_compare_with_one_rate_is_not_called_fair(run):
    code, out, _ = run(*DIGITS, "--optimizers", "adam", "--lr", "0.02")
    assert code == 0
    assert "All at the learning rate 0.02: NOT a fair comparison." in out
    assert "chose" not in out


@pytest.mark.usefixtures("demo")
def test_compare_tells_divergence(run):
    code, out, _ = run(*DIGITS, "--optimizers", "momentum", "--lr", "1e20")
    assert code == 0
    assert "Momentum diverged in 2 of 2 runs" in out
    assert "diverged   diverged      never" in out
    (momentum,) = strict_json(run(*DIGITS, "--optimizers", "momentum", "--lr", "1e20", "--json")[1])["optimizers"]
    assert momentum["test_loss"] is None
    assert momentum["runs"][0]["diverged_at"] > 1


@pytest.mark.usefixtures("demo")
def test_compare_with_sweep(run, monkeypatch):
    found = {"adam": {0.001: 2.0, 0.003: 1.0, 0.01: 3.0}, "sgd": {0.1: 1.5, 0.3: 1.25, 1.0: float("inf")}}
    monkeypatch.setattr(digits, "sweep", lambda optimizer, epochs, data, on_run: found[optimizer])
    code, out, _ = run(*DIGITS, "--optimizers", "adam,sgd", "--sweep")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["0.001", "0.003", "0.01", "0.1", "0.3", "1"] in rows
    assert ["Adam", "2.000", "1.000*", "3.000"] in rows
    assert ["SGD", "1.500", "1.250*", "diverged"] in rows
    assert "* chosen. Without --sweep, other rates are used: SGD 1." in out
    assert "Each at the learning rate that the sweep above chose for it" in out
    report = strict_json(run(*DIGITS, "--optimizers", "adam,sgd", "--sweep", "--json")[1])
    assert [entry["lr"] for entry in report["optimizers"]] == [0.003, 0.3]
    assert report["sweep"]["sgd"] == {
        "chosen": 0.3,
        "validation_loss": [{"lr": 0.1, "mean": 1.5}, {"lr": 0.3, "mean": 1.25}, {"lr": 1.0, "mean": None}],
    }
    assert report["fair"] is True


@pytest.mark.usefixtures("demo")
def test_compare_without_a_stated_rate(run, monkeypatch):
    monkeypatch.delitem(digits.RATES, "adam")
    code, _, err = run(*DIGITS, "--optimizers", "adam,sgd")
    assert code == 2
    assert "no learning rate was chosen for adam yet; give --sweep, or one rate for all with --lr" in err


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted_comparison_keeps_finished_runs(run, monkeypatch, tmp_path, as_json):
    train, started = digits.train, []

    def interrupted(*arguments, **settings):
        started.append(arguments)
        if len(started) == 4:
            raise KeyboardInterrupt
        return train(*arguments, **settings)

    monkeypatch.setattr(digits, "train", interrupted)
    code, out, err = run(*DIGITS, "--optimizers", "adam,sgd", *(["--json"] if as_json else []))
    assert code == 130
    assert "openadam: interrupted; what is done follows\n" in err
    assert (tmp_path / "openadam-digits.png").exists() != as_json
    if as_json:
        report = strict_json(out)
        assert report["interrupted"] is True
        assert [len(entry["runs"]) for entry in report["optimizers"]] == [2, 1]
        assert report["optimizers"][1]["test_accuracy_std"] is None
    else:
        assert "Interrupted: these are 3 of 4 runs (Adam 2, SGD 1)." in out
        assert out.endswith("\nCurves: openadam-digits.png\n")


@pytest.mark.usefixtures("demo")
def test_interrupted_before_the_first_run(run, monkeypatch, tmp_path):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "train", interrupted)
    assert run(*DIGITS) == (130, "", "openadam: interrupted before the first run was done\n")
    code, out, _ = run(*DIGITS, "--json")
    assert code == 130
    assert strict_json(out)["optimizers"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("demo")
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_ctrl_c(tmp_path):
    process = start(command("compare", "digits", "--optimizers", "adam", "--epochs", "1", "--seeds", "1000"), cwd=tmp_path)
    assert process.stderr.readline().startswith("1 of 1000 done (seed 2 of 1000: Adam); about ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("openadam: interrupted; what is done follows\n")
    assert "of 1000 runs (Adam " in out
    assert (tmp_path / "openadam-digits.png").exists()


@pytest.mark.parametrize("module", DEMO)
def test_missing_extra_is_one_line(run, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = run(*DIGITS)
    assert (code, out) == (1, "")
    assert err.startswith(f"openadam: error: this needs {module}, ")
    assert err.endswith("pip install '.[demo]'\n")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("nowhere/a.png", 1, "nowhere: there is no such directory"),
        ("directory.png", 1, "directory.png: is a directory"),
        ("a.xyz", 2, "ends in .png, .pdf or .svg, not in '.xyz'"),
        ("a", 2, "ends in .png, .pdf or .svg, not in ''"),
        ("\x1b[31m/a.png", 1, r"\x1b[31m: there is no such directory"),
    ],
)
def test_output_is_checked_before_anything_runs(run, monkeypatch, tmp_path, output, code, message):
    (tmp_path / "directory.png").mkdir()
    monkeypatch.setattr(digits, "train", lambda *arguments: pytest.fail("it ran"))
    found, out, err = run(*DIGITS, "--picture", output)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("demo")
def test_control_characters_in_the_picture_s_name_are_escaped(run, tmp_path):
    code, out, _ = run(*DIGITS, "--optimizers", "sgd", "--output", "\x1b[31m.png")
    assert code == 0
    assert out.endswith("\nCurves: \\x1b[31m.png\n")
    assert (tmp_path / "\x1b[31m.png").exists()


@pytest.mark.usefixtures("demo")
def test_results_are_printed_even_if_the_picture_cannot_be_written(run, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    code, out, err = run(*DIGITS, "--optimizers", "sgd", "--json", "--picture", "openadam-digits.png")
    assert code == 1
    assert strict_json(out)["picture"] is None
    assert err.endswith("openadam: error: openadam-digits.png: No space left on device\n")


@pytest.mark.usefixtures("demo")
def test_json_draws_no_picture_unasked_and_nothing_replaces_a_file_of_others(run, tmp_path):
    other = tmp_path / "openadam-digits.png"
    other.write_bytes(b"mine")
    code, out, _ = run(*DIGITS, "--optimizers", "sgd", "--json")
    assert (code, strict_json(out)["picture"]) == (0, None)
    code, out, err = run(*DIGITS, "--optimizers", "sgd")
    assert (code, out) == (2, "")
    assert "was not drawn by this command; name another with --picture" in err
    assert other.read_bytes() == b"mine"
    other.unlink()
    for _ in range(2):  # our own is replaced
        assert run(*DIGITS, "--optimizers", "sgd")[0] == 0


@pytest.mark.usefixtures("demo")
def test_results_come_whatever_matplotlib_is_set_to(run, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"text.usetex": True}):
        assert run(*DIGITS, "--optimizers", "sgd")[0] == 0

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such\nbackend")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    code, out, err = run(*DIGITS, "--optimizers", "sgd")
    assert code == 1
    assert "SGD" in out
    assert err.endswith("openadam: error: the picture could not be drawn (ValueError: no such backend)\n")


def test_a_module_that_ends_the_program_is_said_to(run, tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('done')\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = run("trace", "--rule", "leaving:x", "--grads", "1")
    assert code == 2
    assert err == "openadam: error: leaving:x: the module ended the program, sys.exit('done')\n"


# --- narrow terminals --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("arguments", [["list"], ["info"], ["compare", "digits", "--epochs", "1", "--seeds", "2", "--sweep"]], ids=spelt)
def test_at_sixty_columns_nothing_is_cut(arguments, demo):
    import pty

    terminal, end = pty.openpty()
    settings = {"COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.Popen([sys.executable, "-c", command(*arguments)], stdout=end, stderr=subprocess.DEVNULL, env={**os.environ, **settings})
    os.close(end)
    out = b""
    try:
        while part := os.read(terminal, 4096):
            out += part
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert done.wait(60) == 0
    lines = re.sub(r"\x1b\[[\d;]*m|\r", "", out.decode()).split("\n")
    assert max(map(len, lines)) <= 60
    assert "…" not in out.decode()
    names = [openadam.MEMBERS[name].__name__ for name in digits.OPTIMIZERS] if arguments[0] == "compare" else []
    for name in names + ([*openadam.MEMBERS, "bias_correction=on"] if arguments == ["list"] else []):
        assert any(name in line.replace("*", " ").split() for line in lines), name
    if names:  # every heading and every number of the last column
        assert any(line.endswith("per ") for line in lines)
        assert sum(line[-4:].strip().isdecimal() for line in lines if line.strip().split(" ")[0] in names) == len(names)
