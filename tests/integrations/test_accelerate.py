"""Accelerate around openadam.torch.AdamW, beside torch.optim.AdamW."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import set_seed
from peers import OURS, SETTINGS, TORCHS, Run, agree, both, network, same, steps_of, teacher
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import openadam

EPOCHS, BATCHES = 4, 8


@pytest.fixture(autouse=True)
def alone():
    """Accelerate keeps its state in singletons."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def cycle(optimizer):
    return OneCycleLR(optimizer, max_lr=0.02, total_steps=EPOCHS * BATCHES + 1)


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, T_max=EPOCHS * BATCHES)


def fitted(make, scheduler=cycle, *, every=1, clip=None, start=None, save=None, epochs=EPOCHS, settings=None, **keywords):
    """A training loop as Accelerate's documentation writes it."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every, **keywords)
    set_seed(4)
    model = network()
    optimizer = make(model.parameters(), **SETTINGS, **(settings or {}))
    loader = DataLoader(TensorDataset(*teacher()), batch_size=8)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, scheduler(optimizer))
    assert isinstance(optimizer, AcceleratedOptimizer)
    if start:
        accelerator.load_state(start)
    run = Run(model, optimizer.optimizer)
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = mse_loss(model(x), y)
                accelerator.backward(loss)
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            run.losses.append(loss.item())
            run.rates.append((schedule.get_last_lr(), optimizer.param_groups[0]["betas"]))
    if save:
        accelerator.save_state(save)
    run.counts = {"scheduler": schedule.scheduler.last_epoch, "skipped": optimizer.step_was_skipped}
    return run


@pytest.mark.parametrize("scheduler", [cycle, cosine])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_course_is_that_of_torch(scheduler, every, clip):
    ours, torchs = both(fitted, scheduler, every=every, clip=clip)
    agree(ours, torchs)
    assert set(steps_of(ours.optimizer)) == {EPOCHS * BATCHES / every}


def test_clip_norm_does_what_accelerates_clipping_does():
    ours = fitted(OURS, settings={"clip_norm": 0.1})
    agree(ours, fitted(TORCHS, clip=0.1))
    assert ours.optimizer.last_step.clip_factor < 1


def test_bfloat16_autocast():
    agree(*both(fitted, mixed_precision="bf16"), rtol=0.05)


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, every):
    whole = fitted(OURS, every=every)
    fitted(OURS, every=every, epochs=EPOCHS // 2, save=tmp_path / "half")
    rest = fitted(OURS, every=every, epochs=EPOCHS // 2, start=tmp_path / "half")
    same(whole, rest)
    assert whole.counts == rest.counts


@pytest.mark.parametrize(("before", "after"), [(TORCHS, OURS), (OURS, TORCHS)])
def test_a_run_goes_over_from_one_to_the_other(tmp_path, before, after):
    whole = fitted(before)
    fitted(before, epochs=EPOCHS // 2, save=tmp_path / "half")
    rest = fitted(after, epochs=EPOCHS // 2, start=tmp_path / "half")
    assert rest.losses == pytest.approx(whole.losses[len(rest.losses) :], rel=1e-5)
    assert rest.rates == whole.rates[len(rest.rates) :]
    assert steps_of(rest.optimizer) == steps_of(whole.optimizer)


def in_one_of_two(folder):
    """What each process does: the same loop with both, on its share of the data."""
    torch.set_num_threads(1)
    ours, torchs = both(fitted, every=2, clip=0.5)
    agree(ours, torchs)
    assert len(ours.losses) == EPOCHS * BATCHES // 2
    torch.save(ours.model.state_dict(), f"{folder}/{PartialState().process_index}")


def test_two_processes(tmp_path):
    debug_launcher(in_one_of_two, args=(str(tmp_path),), num_processes=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_prepare_leaves_a_stepped_optimizer_as_it_is():
    model = network()
    optimizer = OURS(model.parameters(), **SETTINGS)
    x, y = teacher()
    for _ in range(3):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
    before = {index: {key: value.clone() for key, value in state.items()} for index, state in optimizer.state_dict()["state"].items()}
    prepared = Accelerator(cpu=True).prepare(optimizer)
    after = prepared.state_dict()["state"]
    assert all(torch.equal(after[index][key], value) for index, state in before.items() for key, value in state.items())
    prepared.train()
    prepared.eval()
    prepared.step()
    assert set(steps_of(optimizer)) == {4.0}
    prepared.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_closure_reaches_the_step():
    accelerator = Accelerator(cpu=True)
    model, calls = network(), []
    model, optimizer = accelerator.prepare(model, OURS(model.parameters(), **SETTINGS))
    x, y = teacher()

    def closure():
        calls.append(1)
        loss = mse_loss(model(x), y)
        accelerator.backward(loss)
        return loss

    optimizer.step(closure)
    assert len(calls) == 1


def test_a_refused_step_ends_the_run_and_says_which_tensor():
    accelerator = Accelerator(cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, OURS(model.named_parameters(), **SETTINGS))
    x, y = teacher()
    accelerator.backward(mse_loss(model(x), y * float("inf")))
    with pytest.raises(openadam.NonFiniteGradientError, match=r"'0\.weight'"):
        optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


# --- a gradient scaler, which Accelerate uses on accelerators only and is put in by hand here ---------------------------------------


def scaled(make, scale, batches=8, clip=None, overflow=None, **settings):
    """What Accelerate, the optimizer and the scaler say of each step."""
    Accelerator(cpu=True)
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = AcceleratedOptimizer(make(model.parameters(), **SETTINGS, **settings), scaler=scaler)
    x, y = teacher()
    losses, said, saw = [], [], []
    for k in range(batches):
        loss = 32 * mse_loss(model(x), y)
        if k == overflow:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(optimizer.optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        said.append(optimizer.step_was_skipped)
        saw.append(make is OURS and optimizer.optimizer.last_step.skipped)
    run = Run(model, optimizer.optimizer, losses, [], {"scale": scaler.get_scale()})
    return run, said, saw


def test_the_course_under_a_gradient_scaler_is_that_of_torch():
    agree(scaled(OURS, 1024.0)[0], scaled(TORCHS, 1024.0)[0], falls=False)
    clipped = scaled(TORCHS, 1024.0, clip=0.1)[0]
    agree(scaled(OURS, 1024.0, clip=0.1)[0], clipped, falls=False)
    agree(scaled(OURS, 1024.0, clip_norm=0.1)[0], clipped, falls=False)


@pytest.mark.parametrize(("scale", "overflow"), [(2.0**127, None), (1024.0, 0), (1024.0, 5)])
def test_last_step_tells_what_accelerate_cannot_see(scale, overflow):
    ours, said, saw = scaled(OURS, scale, overflow=overflow)
    torchs, skipped, _ = scaled(TORCHS, scale, overflow=overflow)
    if overflow is not None:
        assert ours.losses.pop(overflow) == torchs.losses.pop(overflow) == float("inf")
    agree(ours, torchs, falls=False)
    assert saw == skipped  # torch's AdamW is not called for a skipped step, which is what Accelerate looks for
    assert any(skipped)
    assert not any(said)  # ours is called, and skips by itself; so is torch.optim.AdamW(fused=True)
    assert set(steps_of(ours.optimizer)) == {float(skipped.count(False))} == {float(ours.optimizer.last_step.step)}
