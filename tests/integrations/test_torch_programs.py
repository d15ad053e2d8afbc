"""Programs that people write in plain PyTorch around an optimizer, with openadam.torch.AdamW and with torch.optim.AdamW."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from peers import OURS, SETTINGS, TORCHS, Run, agree, both, network, same, steps_of, teacher
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

EPOCHS, BATCHES = 3, 8


def batches(**keywords):
    return DataLoader(TensorDataset(*teacher()), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(9), **keywords)


def warm(optimizer):
    parts = [LinearLR(optimizer, start_factor=0.2, total_iters=4), CosineAnnealingLR(optimizer, T_max=EPOCHS * BATCHES - 4)]
    return SequentialLR(optimizer, parts, milestones=[4])


def cycle(optimizer):
    return OneCycleLR(optimizer, max_lr=0.02, total_steps=EPOCHS * BATCHES + 1)


def fitted(make, scheduler=warm, *, model=None, forward=None, loader=None, after=lambda: None, settings=None):
    """The plain loop."""
    model = model or network()
    optimizer = make(model.named_parameters(), **SETTINGS, **(settings or {}))
    schedule = scheduler(optimizer)
    run = Run(model, optimizer)
    forward = forward or model
    for _ in range(EPOCHS):
        for x, y in loader or batches():
            optimizer.zero_grad()
            loss = mse_loss(forward(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            after()
            run.losses.append(loss.item())
            run.rates.append((schedule.get_last_lr(), optimizer.param_groups[0]["betas"]))
    run.counts = {"scheduler": schedule.last_epoch}
    return run


@pytest.mark.parametrize("scheduler", [warm, cycle])
def test_the_plain_loop(scheduler):
    ours, torchs = both(fitted, scheduler)
    agree(ours, torchs)
    assert set(steps_of(ours.optimizer)) == {float(EPOCHS * BATCHES)}


# --- torch.compile ----------------------------------------------------------------------------------------------------------------


def test_a_compiled_model_trains():
    def run(make):
        torch._dynamo.reset()
        model = network()
        return fitted(make, model=model, forward=torch.compile(model))

    ours, torchs = both(run)
    agree(ours, torchs)
    agree(ours, fitted(TORCHS), rtol=1e-4)  # inductor's kernels round otherwise than eager ones


def test_an_optimizer_over_the_compiled_model_itself_resumes_in_the_plain_one():
    torch._dynamo.reset()
    compiled = torch.compile(network())
    first = fitted(OURS, model=compiled)
    plain = network()
    plain.load_state_dict(compiled._orig_mod.state_dict())
    optimizer = OURS(plain.parameters(), **SETTINGS)
    optimizer.load_state_dict(first.optimizer.state_dict())
    assert steps_of(optimizer) == steps_of(first.optimizer)
    x, y = teacher()
    before = mse_loss(plain(x), y)
    before.backward()
    optimizer.step()
    assert mse_loss(plain(x), y) < 1.1 * before


def test_a_whole_training_step_under_compile():
    def run(make):
        torch._dynamo.reset()
        model = network()
        optimizer = make(model.parameters(), **SETTINGS)
        found = Run(model, optimizer)

        @torch.compile(backend="eager")
        def step(x, y):
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(EPOCHS):
            found.losses += [step(x, y).item() for x, y in batches()]
        return found

    ours, torchs = both(run)
    agree(ours, torchs)
    assert not ours.optimizer.param_groups[0]["capturable"]


# --- workers ----------------------------------------------------------------------------------------------------------------------


class Stepping(Dataset):
    """Data for which every example takes a step of an optimizer of its own: in the worker, after a fork."""

    def __init__(self, threads):
        self.threads = threads
        self.x, self.y = teacher()
        self.optimizer, self.weight = self.made()
        self.moved()

    def made(self):
        weight = torch.nn.Parameter(torch.ones(100_000))
        return OURS([weight], lr=0.1, threads=self.threads), weight

    def moved(self):
        self.weight.grad = torch.ones_like(self.weight)
        self.optimizer.step()
        return self.weight[-1].item()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], os.getpid(), self.moved(), float(self.optimizer.state[self.weight]["step"])


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_forked_after_a_step_and_stepping_themselves(threads):
    def run(make):
        data = Stepping(threads)
        model = network()
        optimizer = make(model.parameters(), **SETTINGS)
        found, seen = Run(model, optimizer), {}
        for _ in range(EPOCHS):  # the workers of the second epoch are forked after the steps of the first
            for x, y, process, moved, step in DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork"):
                optimizer.zero_grad()
                loss = mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                found.losses.append(loss.item())
                for worker, number, where in zip(process.tolist(), step.tolist(), moved.tolist(), strict=True):
                    seen.setdefault(worker, []).append((number, where))
        assert len(seen) == 2 * EPOCHS
        assert os.getpid() not in seen
        for steps in seen.values():
            assert [number for number, _ in steps] == [float(2 + k) for k in range(32)]  # each goes on from the step before the fork
            assert [where for _, where in steps] == pytest.approx([1 - 0.1 * (2 + k) for k in range(32)], abs=0.05)
        assert steps_of(data.optimizer) == [1.0]
        return found

    agree(*both(run))


def test_workers_that_only_load():
    ours, torchs = both(lambda make: fitted(make, loader=batches(num_workers=2, persistent_workers=True, multiprocessing_context="fork")))
    agree(ours, torchs)


# --- memory savers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def run(make):
        model = network()
        first, rest = model[:2], model[2:]
        return fitted(make, model=model, forward=lambda x: checkpoint(lambda z: rest(first(z)), x.requires_grad_(reentrant), use_reentrant=reentrant))

    ours, torchs = both(run)
    agree(ours, torchs)
    agree(ours, fitted(TORCHS))


@pytest.mark.parametrize("sets", [True, False])
def test_a_step_in_the_backward_pass(sets):
    """One optimizer for each parameter, stepped as soon as its gradient is there; the gradient is freed at once."""

    def run(make):
        model = network()
        optimizers = {p: make([p], **SETTINGS) for p in model.parameters()}
        schedules = [cycle(optimizer) for optimizer in optimizers.values()]

        def take(p):
            optimizers[p].step()
            optimizers[p].zero_grad(set_to_none=sets)

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(take)
        found = Run(model, next(iter(optimizers.values())))
        for _ in range(EPOCHS):
            for x, y in batches():
                loss = mse_loss(model(x), y)
                loss.backward()
                for schedule in schedules:
                    schedule.step()
                assert all(p.grad is None if sets else not p.grad.any() for p in model.parameters())
                found.losses.append(loss.item())
                found.rates.append(schedules[0].get_last_lr())
        found.counts = {"steps": [steps_of(optimizer) for optimizer in optimizers.values()]}
        return found

    ours, torchs = both(run)
    agree(ours, torchs)
    assert ours.losses == fitted(OURS, cycle).losses  # to the bit: how tensors are cut into optimizers changes nothing


def test_accumulation_over_batches_in_place():
    def run(make):
        model = network()
        optimizer = make(model.parameters(), **SETTINGS)
        found = Run(model, optimizer)
        for _ in range(EPOCHS):
            for k, (x, y) in enumerate(batches()):
                loss = mse_loss(model(x), y)
                (loss / 4).backward()
                if k % 4 == 3:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=False)
                found.losses.append(loss.item())
        return found

    ours, torchs = both(run)
    agree(ours, torchs, falls=False)
    assert set(steps_of(ours.optimizer)) == {EPOCHS * BATCHES / 4}


# --- averages of the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [None, 0.9])
def test_an_averaged_model(average):
    averages = []

    def run(make):
        model = network()
        mean = AveragedModel(model, **({} if average is None else {"multi_avg_fn": get_ema_multi_avg_fn(average)}))
        averages.append(mean)
        found = fitted(
            make, lambda optimizer: SWALR(optimizer, swa_lr=0.02, anneal_epochs=5), model=model, after=lambda: mean.update_parameters(model)
        )
        update_bn(batches(), mean)
        return found

    ours, torchs = both(run)
    agree(ours, torchs)
    mine, theirs = averages
    assert int(mine.n_averaged) == int(theirs.n_averaged) == EPOCHS * BATCHES
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    x, y = teacher()
    assert mse_loss(mine(x), y) < mse_loss(network()(x), y)


# --- parts of a model, and other tasks for one optimizer ----------------------------------------------------------------------------


def test_a_model_that_is_thawed_layer_by_layer():
    def run(make):
        model = network()
        model[0].requires_grad_(False)
        optimizer = make(model[3].parameters(), **SETTINGS)
        found = Run(model, optimizer)
        for epoch in range(EPOCHS):
            if epoch == 1:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
            for x, y in batches():
                optimizer.zero_grad()
                loss = mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                found.losses.append(loss.item())
        return found

    ours, torchs = both(run)
    agree(ours, torchs)
    assert set(steps_of(ours.optimizer)) == {float(EPOCHS * BATCHES), float((EPOCHS - 1) * BATCHES)}


def test_weights_under_a_parametrization_and_tied():
    def run(make):
        model = network()
        torch.nn.utils.parametrizations.weight_norm(model[0])
        model.append(torch.nn.Linear(1, 32, bias=False))
        model[4].weight = torch.nn.Parameter(torch.ones(32, 1))
        model.append(torch.nn.Linear(32, 1, bias=False))
        tied = model[5]
        tied.weight = model[3].weight
        return fitted(make, model=model)

    agree(*both(run))


def test_a_recurrent_network_with_shared_flat_weights():
    """cuDNN-style flat storage: LSTM weights, and a sequence loss cut off by detach."""

    def run(make):
        torch.manual_seed(0)
        cell, out = torch.nn.LSTM(4, 16, num_layers=2, batch_first=True), torch.nn.Linear(16, 1)
        model = torch.nn.ModuleList([cell, out])
        optimizer = make(model.parameters(), **SETTINGS)
        found, state = Run(model, optimizer), None
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            x = torch.randn(8, 10, 4, generator=generator)
            hidden, state = cell(x, state)
            state = tuple(each.detach() for each in state)
            optimizer.zero_grad()
            loss = mse_loss(out(hidden), x.cumsum(1)[..., :1].tanh())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.losses.append(loss.item())
        return found

    agree(*both(run))


def test_channels_last_convolutions():
    def run(make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 1),
        ).to(memory_format=torch.channels_last)
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(memory_format=torch.channels_last)
        y = x.mean((1, 2, 3))[:, None]
        optimizer = make(model.parameters(), **SETTINGS)
        found = Run(model, optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            loss = mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            found.losses.append(loss.item())
        return found

    agree(*both(run))


# --- resuming ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [warm, cycle])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, scheduler, compiled):
    """Saved and loaded as the tutorials do it, with weights_only, into objects made anew."""

    def begin():
        torch._dynamo.reset()
        model = network()
        optimizer = OURS(model.named_parameters(), **SETTINGS)
        return Run(model, optimizer), scheduler(optimizer), torch.compile(model, backend="aot_eager") if compiled else model

    def go_on(run, schedule, forward, start, stop):
        x, y = teacher()
        for k in range(start, stop):
            run.optimizer.zero_grad()
            loss = mse_loss(forward(x[k :: EPOCHS * BATCHES]), y[k :: EPOCHS * BATCHES])
            loss.backward()
            run.optimizer.step()
            schedule.step()
            run.losses.append(loss.item())
            run.rates.append(schedule.get_last_lr())
        return run

    whole = go_on(*begin(), 0, 20)
    run, schedule, forward = begin()
    go_on(run, schedule, forward, 0, 10)
    torch.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "scheduler": schedule.state_dict()}, tmp_path / "half.pt")
    rest, schedule, forward = begin()
    found = torch.load(tmp_path / "half.pt", weights_only=True)
    rest.model.load_state_dict(found["model"])
    rest.optimizer.load_state_dict(found["optimizer"])
    schedule.load_state_dict(found["scheduler"])
    same(whole, go_on(rest, schedule, forward, 10, 20))


def test_a_copy_of_model_and_optimizer_goes_its_own_way():
    run = fitted(OURS)
    model, optimizer = copy.deepcopy((run.model, run.optimizer))
    before = [p.clone() for p in run.model.parameters()]
    x, y = teacher()
    mse_loss(model(x), y).backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))
    assert set(steps_of(optimizer)) == {EPOCHS * BATCHES + 1.0}
    assert set(steps_of(run.optimizer)) == {float(EPOCHS * BATCHES)}
