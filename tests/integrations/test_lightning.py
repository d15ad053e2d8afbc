"""Lightning's Trainer with openadam.torch.AdamW, beside torch.optim.AdamW."""

from __future__ import annotations

import lightning.pytorch as lightning
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from peers import HALF_RTOL, OURS, RTOL, SETTINGS, TORCHS, Run, agree, both, network, same, steps_of, teacher
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

import openadam

BATCHES = 8  # of an epoch


class Learner(lightning.LightningModule):
    """A network that notes what happens to it."""

    def __init__(self, optimizer=OURS, scheduler=None, **settings):
        super().__init__()
        self.network = network()
        self.of = (optimizer, {**SETTINGS, **settings}, scheduler)
        self.losses, self.rates, self.returned = [], [], []
        self.forwards = 0

    def training_step(self, batch, index):
        x, y = batch
        self.forwards += 1
        loss = mse_loss(self.network(x), y)
        self.losses.append(loss.item())
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, *_):
        self.rates.append((self.optimizers().param_groups[0]["lr"], self.optimizers().param_groups[0]["betas"]))

    def configure_optimizers(self):
        make, settings, scheduler = self.of
        optimizer = make(self.parameters(), **settings)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler(optimizer)}


def batches(**keywords):
    generator = torch.Generator().manual_seed(7)
    return DataLoader(TensorDataset(*teacher()), batch_size=8, shuffle=True, generator=generator, **keywords)


def trainer(**keywords):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **{"devices": 1, "max_epochs": 3, **quiet, **keywords})


def fitted(optimizer, scheduler=None, *, resume=None, settings=None, learner=Learner, **keywords):
    """A run: what the learner and the trainer have seen."""
    model = learner(optimizer, scheduler, **(settings or {}))
    fit = trainer(**keywords)
    fit.fit(model, batches(), ckpt_path=resume, **({"weights_only": True} if resume else {}))
    found = model.optimizers().optimizer
    counts = {"global_step": fit.global_step, "forwards": model.forwards, "epoch": fit.current_epoch}
    for k, config in enumerate(fit.lr_scheduler_configs):
        counts[f"scheduler {k}"] = config.scheduler.last_epoch
    run = Run(model, found, model.losses, model.rates, counts)
    run.trainer = fit
    return run


def cycle(optimizer):
    return {"scheduler": OneCycleLR(optimizer, max_lr=0.02, total_steps=3 * BATCHES + 1), "interval": "step"}


def cosine(optimizer):
    return {"scheduler": CosineAnnealingLR(optimizer, T_max=3), "interval": "epoch"}


def plateau(optimizer):
    return {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.5), "interval": "epoch", "monitor": "loss"}


@pytest.mark.parametrize("scheduler", [None, cycle, cosine, plateau])
def test_the_course_is_that_of_torch(scheduler):
    ours, torchs = both(fitted, scheduler)
    agree(ours, torchs)
    assert ours.counts["global_step"] == 3 * BATCHES
    assert set(steps_of(ours.optimizer)) == {3.0 * BATCHES}


@pytest.mark.parametrize(
    "keywords",
    [
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 3},  # the last step of an epoch has fewer
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"callbacks": lambda: StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1)},
        {"callbacks": EMAWeightAveraging},
    ],
    ids=["every 2", "every 3", "clip norm", "clip value", "every 2, clip norm", "averaging", "moving average"],
)
def test_what_the_trainer_does_to_gradients_and_steps_is_honoured(keywords):
    def run(optimizer):
        return fitted(optimizer, cosine, **{key: [value()] if callable(value) else value for key, value in keywords.items()})

    ours, torchs = both(run)
    agree(ours, torchs)
    every = keywords.get("accumulate_grad_batches", 1)
    assert ours.counts["global_step"] == 3 * -(-BATCHES // every)
    if "callbacks" not in keywords:
        assert set(steps_of(ours.optimizer)) == {float(ours.counts["global_step"])}


def test_clip_norm_does_what_the_trainers_clipping_does():
    ours = fitted(OURS, cycle, settings={"clip_norm": 0.1})
    agree(ours, fitted(TORCHS, cycle, gradient_clip_val=0.1))
    assert ours.optimizer.last_step.clip_factor < 1


class Watched(Learner):
    """Hands over the closure by hand and keeps what comes back."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        before = self.forwards
        self.returned.append(optimizer.step(closure=optimizer_closure))
        assert self.forwards == before + 1


def test_the_closure_is_called_once_and_its_loss_returned():
    ours, torchs = both(fitted, cycle, learner=Watched)
    agree(ours, torchs)
    assert [float(loss) for loss in ours.model.returned] == ours.losses
    assert ours.counts["forwards"] == 3 * BATCHES


class Skipping(Learner):
    """Leaves out every third batch: its training_step returns None."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return None if index % 3 == 2 else loss


def test_a_batch_without_a_loss_takes_no_step_for_the_worse():
    ours, torchs = both(fitted, learner=Skipping)
    agree(ours, torchs)


class Manual(Learner):
    """Two optimizers, stepped by hand in turn."""

    automatic_optimization = False

    def configure_optimizers(self):
        make, settings, _ = self.of
        layers = list(self.network.children())
        return make(layers[0].parameters(), **settings), make([*layers[1].parameters(), *layers[3].parameters()], **settings)

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        optimizer = self.optimizers()[index % 2]
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()

    def on_train_batch_end(self, *_):
        pass


class Adversaries(Manual):
    """The loop of a GAN: one optimizer's parameters are frozen while the other's learn."""

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = Learner.training_step(self, batch, index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize("learner", [Manual, Adversaries])
def test_manual_optimization_with_two_optimizers(learner):
    runs = []
    for make in (OURS, TORCHS):
        model = learner(make)
        fit = trainer()
        fit.fit(model, batches())
        first, second = (wrapped.optimizer for wrapped in model.optimizers())
        runs.append(Run(model, first, model.losses, [], {"global_step": fit.global_step, "second": steps_of(second)}))
    agree(*runs)


# --- resuming ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [None, cycle])
@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, scheduler, every):
    class Ordered(Learner):
        def train_dataloader(self):  # of every epoch the same order, whichever trainer asks
            return DataLoader(TensorDataset(*teacher()), batch_size=8)

    def run(epochs, resume=None):
        model = Ordered(OURS, scheduler)
        fit = trainer(max_epochs=epochs, accumulate_grad_batches=every)
        fit.fit(model, ckpt_path=resume, **({"weights_only": True} if resume else {}))
        found = Run(model, model.optimizers().optimizer, model.losses, model.rates, {"global_step": fit.global_step})
        return found, fit

    whole, _ = run(3)
    _, first = run(2)
    first.save_checkpoint(tmp_path / "two.ckpt")
    rest, _ = run(3, tmp_path / "two.ckpt")
    same(whole, rest)
    assert whole.counts == rest.counts
    assert len(rest.losses) == BATCHES


def test_a_run_goes_over_between_torch_and_ours_and_back(tmp_path):
    whole = fitted(TORCHS, cycle)
    for before, after in [(TORCHS, OURS), (OURS, TORCHS)]:
        first = fitted(before, cycle, max_epochs=1)
        first.trainer.save_checkpoint(tmp_path / "one.ckpt")
        rest = fitted(after, cycle, resume=tmp_path / "one.ckpt")
        assert isinstance(rest.optimizer, after)
        assert len(rest.losses) == 2 * BATCHES
        assert rest.rates == whole.rates[BATCHES:]
        assert steps_of(rest.optimizer) == steps_of(whole.optimizer)
        assert rest.counts["global_step"] == whole.counts["global_step"]


# --- beside the Trainer -----------------------------------------------------------------------------------------------------------


def test_the_search_for_a_rate_finds_what_it_finds_with_torch():
    found = []
    for make in (OURS, TORCHS):
        model = Learner(make)
        model.lr = SETTINGS["lr"]
        search = Tuner(trainer()).lr_find(model, batches(), num_training=20, early_stop_threshold=None, update_attr=False)
        found.append((search.suggestion(), *search.results["loss"]))
    assert found[0] == pytest.approx(found[1], rel=RTOL)


def test_fabric(tmp_path):
    def run(make, resume=False, epochs=2):
        fabric = Fabric(accelerator="cpu", devices=1)
        model = network()
        model, optimizer = fabric.setup(model, make(model.parameters(), **SETTINGS))
        schedule = CosineAnnealingLR(optimizer, T_max=2 * BATCHES)
        found = Run(model, optimizer.optimizer)
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        if resume:
            fabric.load(tmp_path / f"{make.__module__}.ckpt", state)
        for epoch in range(epochs):
            for x, y in fabric.setup_dataloaders(DataLoader(TensorDataset(*teacher()), batch_size=8)):
                optimizer.zero_grad()
                loss = mse_loss(model(x), y)
                fabric.backward(loss)
                fabric.clip_gradients(model, optimizer, max_norm=0.5)
                optimizer.step()
                schedule.step()
                found.losses.append(loss.item())
                found.rates.append(schedule.get_last_lr())
            if not resume and epoch == 0:
                fabric.save(tmp_path / f"{make.__module__}.ckpt", state)
        return found

    ours, torchs = both(run)
    agree(ours, torchs)
    same(ours, run(OURS, resume=True, epochs=1))


def test_two_processes(tmp_path):
    for make in (OURS, TORCHS):
        model = Learner(make, cycle)
        fit = trainer(devices=2, strategy="ddp_fork")
        fit.fit(model, batches())
        torch.save(model.state_dict(), tmp_path / make.__module__)
    ours, torchs = (torch.load(tmp_path / make.__module__, weights_only=True) for make in (OURS, TORCHS))
    assert any(not torch.equal(a, b) for a, b in zip(ours.values(), network().state_dict().values(), strict=True))
    assert all(torch.allclose(ours[name], value, rtol=1e-4, atol=1e-6) for name, value in torchs.items())


# --- refused and skipped steps ----------------------------------------------------------------------------------------------------


class Poisoned(Learner):
    """One batch whose loss is not finite."""

    def training_step(self, batch, index):
        x, y = batch
        return super().training_step((x, y * float("nan") if self.forwards == 5 else y), index)


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_model_intact():
    model = Poisoned()
    with pytest.raises(openadam.NonFiniteGradientError, match="step 6"):
        trainer().fit(model, batches())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_skipped_steps_are_counted_and_the_run_goes_on():
    run = fitted(OURS, settings={"nonfinite": "skip"}, learner=Poisoned)
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())
    assert set(steps_of(run.optimizer)) == {3.0 * BATCHES - 1}
    assert run.losses[-1] < run.losses[0]


# --- mixed precision --------------------------------------------------------------------------------------------------------------


def half(scale=2.0**10):
    """What Lightning uses on a GPU, on the CPU: autocast in float16, and a GradScaler."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000))


def test_the_course_under_a_gradient_scaler_is_that_of_torch():
    def run(optimizer):
        return fitted(optimizer, cosine, plugins=[half()])

    agree(*both(run), rtol=HALF_RTOL)


def test_clipping_under_a_gradient_scaler_is_for_clip_norm():
    with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
        fitted(OURS, plugins=[half()], gradient_clip_val=0.1)
    ours = fitted(OURS, cosine, plugins=[half()], settings={"clip_norm": 0.1})
    agree(ours, fitted(TORCHS, cosine, plugins=[half()], gradient_clip_val=0.1), rtol=HALF_RTOL)
    assert 0 < ours.optimizer.last_step.grad_norm < 100  # of the gradients unscaled


def test_an_overflow_skips_the_step_and_shows():
    class Watching(Learner):
        def on_train_batch_end(self, *_):
            optimizer = self.optimizers().optimizer
            self.returned.append((optimizer.last_step.skipped, optimizer.last_step.step) if isinstance(optimizer, OURS) else None)

    ours, torchs = both(lambda make: fitted(make, plugins=[half(2.0**24)], learner=Watching))
    agree(ours, torchs, rtol=HALF_RTOL)
    skipped = [skipped for skipped, _ in ours.model.returned]
    assert skipped[0]
    assert not skipped[-1]
    assert set(steps_of(ours.optimizer)) == {float(skipped.count(False))}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_train(precision):
    class Cast(Learner):
        def training_step(self, batch, index):
            return super().training_step([x.to(next(self.parameters()).dtype) for x in batch], index)

    ours, torchs = both(lambda make: fitted(make, precision=precision, learner=Cast))
    # In bf16-true ours keep their averages in float32, torch's in bfloat16.
    agree(ours, torchs, rtol={"bf16-mixed": 0.05, "bf16-true": 0.5, "64-true": 1e-10}[precision])


@pytest.mark.parametrize("optimizer", [OURS, TORCHS])
def test_a_training_is_recorded(optimizer, tmp_path):
    """By a callback, ours from inside and torch's from outside; the run is the run without it."""
    from openadam import record
    from openadam.torch.callbacks import for_lightning

    found = []
    for callbacks in ([], [for_lightning(tmp_path / "run.oadam")]):
        lightning.seed_everything(0, verbose=False)
        learner = Learner(optimizer)
        trainer(callbacks=callbacks).fit(learner, batches())
        found.append(learner)
    assert found[0].losses == found[1].losses
    (track,) = record.load(tmp_path / "run.oadam").tracks.values()
    assert track.scalar("loss")["mean"] == pytest.approx(found[1].losses, rel=1e-6)
    assert [event.text for event in track.events] == [f"epoch {k} ended" for k in range(3)]
    assert len(track.measure("0", "disagree")) == len(found[1].losses)
