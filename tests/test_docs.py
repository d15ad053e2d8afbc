"""What README and CONTRIBUTING show is run: their Python, and their console sessions to the letter."""

import contextlib
import importlib.util
import io
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam

ROOT = Path(__file__).resolve().parent.parent


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_rule_that_the_readme_shows_is_the_rule():
    source, *_ = blocks("README.md", "python")
    namespace = {name: getattr(openadam, name) for name in ("rule", "Step", "sqrt")}
    exec(compile(source, "README.md", "exec"), namespace)
    shown, own = namespace["adam"].trace(), openadam.rules.adam.trace()
    assert openadam.rules.update_program(shown).digest == openadam.rules.update_program(own).digest


def test_the_use_that_the_readme_shows_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, source, _ = blocks("README.md", "python")
    output = io.StringIO()
    namespace: dict = {}
    with contextlib.redirect_stdout(output):
        exec(compile(source, "README.md", "exec"), namespace)
    assert np.allclose(namespace["w"], [1.0, -2.0, 0.5], atol=1e-2)
    assert (tmp_path / "run.safetensors").exists()


@pytest.mark.parametrize("document", ["README.md", "docs/migrating-from-torch.md"])
def test_what_is_shown_for_pytorch_works(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "\n".join(block for block in blocks(document, "python") if "torch" in block)
    output = io.StringIO()
    namespace: dict = {}
    with contextlib.redirect_stdout(output):
        exec(compile(source, document, "exec"), namespace)
    assert namespace["optimizer"].last_step.step in (1, 3)


@pytest.mark.parametrize("session", blocks("README.md", "console"), ids=lambda session: session.splitlines()[0][2:])
def test_console_sessions_are_true_to_the_letter(session, capsys):
    from openadam.cli import main

    command, _, expected = session.partition("\n")
    words = shlex.split(command.removeprefix("$ "))
    assert words[0] == "openadam"
    assert main(words[1:]) in (0, None)
    assert capsys.readouterr().out.strip() == expected.strip()


ROWS = re.findall(r"^\| .* \| `((?:openadam|python) [^`]+)` \| .* \|$", (ROOT / "docs/article.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", dict.fromkeys(ROWS))
def test_every_number_of_the_article_has_a_command_that_runs(command, capsys):
    from openadam.cli import main

    program, *words = shlex.split(command)
    if program == "openadam":
        assert main(words) == 0
        assert capsys.readouterr().out
    else:
        assert words[:3] == ["-m", "pytest", "tests/test_article.py"]
        assert f"def {words[-1]}(" in (ROOT / words[2]).read_text()


def test_the_commands_show_the_numbers(capsys):
    """The last numbers of the rows whose command prints them."""
    from openadam.cli import main

    assert len(ROWS) == 21
    shown = {}
    for command in ROWS:
        if command.startswith("openadam trace"):
            assert main(shlex.split(command)[1:]) == 0
            shown[command.removeprefix("openadam trace ")] = capsys.readouterr().out
    for arguments, number in {
        "--grads '20;-5;8' --beta1 0.8": "= 3.36",
        "--grads '1;0;0;0;0;0;0;0' --beta1 0.9": "m8 = 0.9*0.0531441 + (1 - 0.9)*0 = 0.04782969",
        "--grads '0.5;-0.3;0.8' --beta2 0.95": "= 0.04755625",
        "--grads '1;1;1;1;1' --beta1 0.9": "= 0.40951",
        "--grads '1e-6,1e-8' --lr 1": "(0.9900990099, 0.5)",
        "--grads 1 --lr 1 --option bias_correction=off": "= 3.16227",
        "--rule momentum --grads '20;-5;8' --momentum 0.8": "= 16.8",
        "--grads '100;-1;-1' --lr 1": "= 7.91",
        "--grads '100;-1;-1' --params 0.4 --lr 1": "= -1.768",
    }.items():
        assert number in shown[arguments], arguments


def test_the_worked_example_of_a_new_rule_is_true(tmp_path):
    """The rule of CONTRIBUTING.md, put where it says, is a rule that learns."""
    source, _row, _lion = blocks("CONTRIBUTING.md", "python")
    path = tmp_path / "yogi.py"
    path.write_text(source)  # tracing quotes the line, so the rule stands in a file
    namespace = {name: getattr(openadam, name) for name in ("rule", "Step", "sign")}
    namespace |= {name: getattr(openadam.rules, name) for name in ("EPSILON", "Expression", "Namespace", "first_moment", "denominator")}
    exec(compile(source, str(path), "exec"), namespace)
    w = np.array([1.0, -1.0])
    opt = openadam.Optimizer(w, rule=namespace["yogi"], lr=0.05, beta1=0.9, beta2=0.999, eps=1e-3)
    for _ in range(200):
        opt.step(2 * w)
    assert np.abs(w).max() < 0.05
    assert opt.state["0"]["v"].shape == (2,)


def test_the_rule_of_ones_own_that_contributing_shows_learns(tmp_path):
    *_, source = blocks("CONTRIBUTING.md", "python")
    path = tmp_path / "lion.py"
    path.write_text(source)
    namespace: dict = {}
    exec(compile(source, str(path), "exec"), namespace)
    assert np.abs(namespace["w"]).max() < 0.6  # from 2; the sign of an average overshoots and comes back


# --- the tutorial: its runs take minutes; here two of them begin, and what it quotes is what is said today --------------------

TUTORIAL = ROOT / "docs/tutorial-dead-transformer.md"
QUOTED = {block.partition("\n")[0][2:]: block.partition("\n")[2] for block in blocks("docs/tutorial-dead-transformer.md", "text")}


def test_the_runs_of_the_tutorial_begin_as_it_says(tmp_path):
    pytest.importorskip("torch")
    from openadam import record

    spec = importlib.util.spec_from_file_location("transformer", TUTORIAL.parent / "tutorial/transformer.py")
    assert spec is not None
    assert spec.loader is not None
    transformer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transformer)
    losses, findings = {}, {}
    for warm_up in (0, 100):
        path = tmp_path / f"{warm_up}.oadam"
        losses[warm_up] = transformer.train(transformer.Setting(warm_up=warm_up), seed=0, steps=30, path=path)
        findings[warm_up] = [finding for finding in record.load(path).diagnose() if finding.severity != "hint"]
    quoted = QUOTED["openadam doctor young.oadam"]
    assert {finding.id for finding in findings[0]} == {"D43"}
    assert all(
        f"{finding.tensor}, steps" in quoted and finding.first_step in range(4, 11) for finding in findings[0][:2]
    )  # 6 and 7 where it was printed
    assert findings[100] == []
    assert sum(losses[0][:25]) < sum(losses[100][:25])
    shown = [
        float(line.split()[-1]) for line in QUOTED["python tutorial/transformer.py --record young.oadam --steps 30"].split("\n") if " to " in line
    ]
    assert shown == pytest.approx([sum(losses[0][:25]) / 25, sum(losses[0][25:]) / 5], abs=0.05)


def test_the_tutorial_quotes_what_the_doctor_says_today():
    from openadam.record.diseases import RULES

    said = " ".join("\n".join(QUOTED.values()).split())
    for id in ("D43", "D27", "D38"):
        rule = RULES[id]
        assert f" {id}: {rule.title} " in said
        assert f"means: {rule.meaning} try: {rule.remedy} see: {rule.source}" in said
    assert "0 errors, 0 warnings" in QUOTED["openadam doctor cured.oadam"]


def test_the_commands_and_pictures_of_the_tutorial_are_there():
    for command in QUOTED:
        program, first, *_ = shlex.split(command)
        assert (program, first) == ("openadam", "doctor") or (program == "python" and (TUTORIAL.parent / first).is_file())
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TUTORIAL.read_text())
    assert len(pictures) == 2
    assert all(0 < (TUTORIAL.parent / picture).stat().st_size < 100_000 for picture in pictures)


def test_the_page_on_own_rules_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code: dict[str, Any] = {}
    page = tmp_path / "page.py"  # a rule is read from the file that it stands in
    page.write_text("\n\n".join(blocks("docs/own-rules.md", "python")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", openadam.errors.NativeMissingWarning)  # there may be no compiler here
        exec(compile(page.read_text(), str(page), "exec"), code)
    assert code["w"].tolist() == pytest.approx([0.98889, -1.98889], abs=1e-4)
    assert code["optimizer"].last_step.step == 1
