"""The study of handwritten digits: its data and network, that all optimizers meet the same conditions, and the sweep."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("sklearn")

from openadam.studies import demo_module, digits, rates
from openadam.views.compare import summarize

DATA = digits.load_data()


def train(optimizer="adam", lr=0.003, seed=0, epochs=2, **settings):
    return digits.train(optimizer, lr, seed, epochs, DATA, **settings)


def without_time(run):
    return dataclasses.replace(run, microseconds=0.0)


# --- data and network --------------------------------------------------------------------------------------------------


def test_split_is_stratified_and_uses_every_image_once():
    assert [len(part.digits) for part in DATA] == [1071, 362, 364]
    for part, share in zip(DATA, (0.6, 0.2, 0.2), strict=True):
        assert part.pixels.dtype == np.float32
        assert part.pixels.min() == 0
        assert part.pixels.max() == 1
        counts = np.bincount(part.digits)
        everywhere = np.bincount(np.concatenate([other.digits for other in DATA]))
        assert np.abs(counts - share * everywhere).max() < 2
    images = np.concatenate([part.pixels for part in DATA])
    original = demo_module("sklearn.datasets").load_digits().data / 16
    assert sorted(map(bytes, images)) == sorted(map(bytes, original.astype(np.float32)))


def test_gradients_are_those_of_the_loss():
    random = np.random.default_rng(3)
    weights = {name: weight.astype(np.float64) for name, weight in digits.initial_weights(random).items()}
    images = digits.Images(DATA.train.pixels[:7].astype(np.float64), DATA.train.digits[:7])
    found = digits.gradients(weights, images)
    for name, weight in weights.items():
        for index in random.integers(weight.size, size=5):
            losses = []
            for change in (1e-5, -1e-5):
                moved = {**weights, name: weight.copy()}
                moved[name].flat[index] += change
                losses.append(digits.evaluate(moved, images)[0])
            assert found[name].flat[index] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-7), name


def test_untrained_network_guesses():
    loss, accuracy = digits.evaluate(digits.initial_weights(np.random.default_rng(0)), DATA.test)
    assert loss == pytest.approx(math.log(10), abs=0.7)
    assert accuracy < 0.3


# --- runs --------------------------------------------------------------------------------------------------------------


def test_same_seed_same_run_and_another_seed_another():
    first, again, other = train(seed=0), train(seed=0), train(seed=1)
    assert without_time(first) == without_time(again)
    assert first.train_loss != other.train_loss


def test_all_optimizers_start_alike_and_see_the_same_batches(monkeypatch):
    seen: dict[tuple[str, int], list] = {}
    gradients = digits.gradients

    def spy(weights, images):
        batches.append(images.pixels.tobytes())
        return gradients(weights, images)

    monkeypatch.setattr(digits, "gradients", spy)
    starts = {}
    for seed in (0, 1):
        for optimizer, lr in digits.RATES.items():
            batches = seen[optimizer, seed] = []
            starts[optimizer, seed] = train(optimizer, lr, seed, epochs=1).train_loss[0]
    for seed in (0, 1):
        assert all(starts[optimizer, seed] == starts["sgd", seed] for optimizer in digits.RATES)
        assert all(seen[optimizer, seed] == seen["sgd", seed] for optimizer in digits.RATES)
    assert len(seen["sgd", 0]) == len(DATA.train.digits) // digits.BATCH
    assert starts["sgd", 0] != starts["sgd", 1]
    assert seen["sgd", 0] != seen["sgd", 1]


@pytest.mark.parametrize("optimizer", digits.RATES)
def test_every_optimizer_learns_at_its_rate(optimizer):
    run = train(optimizer, digits.RATES[optimizer], epochs=6)
    assert run.test_accuracy > 0.9
    assert run.train_loss[-1] < 0.4 < 2 < run.train_loss[0]
    assert run.diverged_at is None


def test_curves_end_at_the_last_step():
    run = train(epochs=1, every=10)
    assert run.steps == (0, 10, 20, 30, 33)
    assert len(run.train_loss) == len(run.validation_accuracy) == 5


def test_curves_do_not_change_the_run():
    assert train(every=7).test_loss == train(every=digits.NO_CURVES).test_loss


def test_divergence_is_reported():
    run = train("momentum", lr=1e20, epochs=1, every=10)
    assert 1 < run.diverged_at <= 33
    assert len(run.train_loss) == len(run.steps)
    assert math.isnan(run.train_loss[-1])
    assert math.isnan(run.test_loss)
    assert run.steps_to_target == math.inf
    (summary,) = summarize([run])
    assert summary.diverged == 1
    assert math.isnan(summary.train_loss)


def run_with(accuracies, **values):
    steps = tuple(range(0, 10 * len(accuracies), 10))
    made = digits.Run("adam", 0.1, 0, steps, (1.0,) * len(accuracies), tuple(accuracies), 1.0, 1.0, accuracies[-1], 5.0)
    return dataclasses.replace(made, **values)


@pytest.mark.parametrize(
    ("accuracies", "expected"), [((0.1, 0.95, 0.9), 10), ((0.1, 0.94, 0.96), 20), ((0.96,), 0), ((0.1, 0.949), math.inf), ((0.1, math.nan), math.inf)]
)
def test_steps_to_target(accuracies, expected):
    assert run_with(accuracies).steps_to_target == expected


def test_summary():
    reached, never = run_with((0.1, 0.96)), run_with((0.1, 0.9), microseconds=7.0)
    (summary,) = summarize([reached, never, reached])
    assert (summary.runs, summary.diverged, summary.microseconds, summary.steps_to_target) == (3, 0, 5.0, 10)
    assert summary.test_accuracy == pytest.approx(0.94)
    assert summary.test_accuracy_std == pytest.approx(0.06 / math.sqrt(3))
    assert summarize([reached, never])[0].steps_to_target == math.inf  # half is not more than half
    assert math.isnan(summarize([reached])[0].test_accuracy_std)


# --- the sweep ---------------------------------------------------------------------------------------------------------


def test_rates_are_half_decades():
    assert [rates.rate(k) for k in range(-4, 3)] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert {rates.rate(k) for k in rates.GRID} == {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3}
    assert set(digits.RATES.values()) <= {rates.rate(k) for k in rates.LIMITS}


@pytest.mark.parametrize(
    ("optimum", "tried"),
    [
        (-3, [-4, -3, -2]),  # within the grid
        (-7, [-8, -7, -6, -5, -4, -3, -2]),  # widened downwards
        (1, [-4, -3, -2, -1, 0, 1, 2]),  # and upwards
        (-99, list(range(rates.LIMITS[0], -1))),  # not for ever
        (99, list(range(-4, rates.LIMITS[-1] + 1))),
    ],
)
def test_search_widens_the_grid_until_the_best_is_within(optimum, tried):
    place = {rates.rate(k): k for k in rates.LIMITS}
    scores = rates.search(lambda lr: abs(place[lr] - optimum), grid=range(-4, -1))
    assert list(scores) == [rates.rate(k) for k in tried]
    assert rates.best(scores) == rates.rate(min(max(optimum, rates.LIMITS[0]), rates.LIMITS[-1]))


def test_search_never_chooses_what_diverged():
    scores = rates.search(lambda lr: math.nan if lr > 0.01 else 1.0 + (lr - 0.003) ** 2, grid=range(-8, 0))
    assert rates.best(scores) == 0.003
    assert scores[0.03] == math.inf


def test_a_tie_goes_to_the_smaller_rate():
    assert rates.best({0.1: 1.0, 0.01: 1.0, 0.001: 2.0}) == 0.01


def test_reduced_sweep_picks_the_best_of_a_tiny_grid():
    heard = []
    scores = digits.sweep("adam", 1, DATA, seeds=(1000, 1001), grid=range(-6, -3), on_run=heard.append)
    for lr in scores:
        assert scores[lr] == pytest.approx(np.mean([train("adam", lr, seed, epochs=1).validation_loss for seed in (1000, 1001)]))
    assert len(heard) == 2 * len(scores)
    assert rates.best(scores) == min(scores, key=scores.get)
    assert min(scores) < rates.best(scores) < max(scores)


def test_the_stated_rate_of_adam_is_what_its_sweep_finds():
    """In the same way as for the others, but only next to the optimum, which is far from close."""
    around = range(-6, -3)
    scores = digits.sweep("adam", digits.EPOCHS, DATA, grid=around)
    assert len(scores) == len(around)
    assert rates.best(scores) == digits.RATES["adam"]


def test_sweep_and_comparison_share_no_seed():
    assert not set(digits.SWEEP_SEEDS) & set(range(digits.SEEDS))


# --- the comparison ----------------------------------------------------------------------------------------------------


def test_comparison_goes_seed_by_seed():
    heard = []
    comparison = digits.Comparison(("adam", "sgd"), seeds=2, epochs=1)
    comparison.run(DATA, lambda stage, what: heard.append((stage, what)))
    assert [(run.seed, run.optimizer, run.lr) for run in comparison.runs] == [
        (0, "adam", 0.003),
        (0, "sgd", 1.0),
        (1, "adam", 0.003),
        (1, "sgd", 1.0),
    ]
    assert heard == [("seed 1 of 2", "Adam"), ("seed 1 of 2", "SGD"), ("seed 2 of 2", "Adam"), ("seed 2 of 2", "SGD")]
    assert comparison.planned == 4


def test_comparison_with_one_rate_for_all():
    comparison = digits.Comparison(("adam", "sgd"), seeds=1, epochs=1, lr=0.05)
    comparison.run(DATA)
    assert [run.lr for run in comparison.runs] == [0.05, 0.05]


def test_comparison_with_sweep_uses_what_it_found(monkeypatch):
    monkeypatch.setattr(digits, "sweep", lambda optimizer, epochs, data, on_run: {0.1: 2.0, 0.2: 1.0, 0.3: 3.0})
    comparison = digits.Comparison(("adam",), seeds=1, epochs=1, with_sweep=True)
    assert comparison.planned == 1 + len(rates.GRID) * len(digits.SWEEP_SEEDS)
    comparison.run(DATA)
    assert [run.lr for run in comparison.runs] == [0.2]
    assert comparison.planned == 1 + 3 * len(digits.SWEEP_SEEDS)


def test_interrupted_comparison_keeps_finished_runs(monkeypatch):
    started = []

    def interrupted(optimizer, *arguments, **settings):
        started.append(optimizer)
        if len(started) == 4:
            raise KeyboardInterrupt
        return run_with((0.1, 0.96), optimizer=optimizer)

    monkeypatch.setattr(digits, "train", interrupted)
    comparison = digits.Comparison(("adam", "sgd"), seeds=5)
    with pytest.raises(KeyboardInterrupt):
        comparison.run(DATA)
    assert [run.optimizer for run in comparison.runs] == ["adam", "sgd", "adam"]


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"needs sklearn.*pip install 'openadam\[demo\]'"):
        demo_module("sklearn")
