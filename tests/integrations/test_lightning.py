"""Lightning's Trainer with openadam.torch.AdamW, beside torch.optim.AdamW."""

from __future__ import annotations

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from peers import HALF_RTOL, OURS, SETTINGS, TORCHS, Run, agree, both, network, same, steps_of, teacher
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
        self.log("loss", loss, on_epoch=True)
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
    return lightning.Trainer(accelerator="cpu", devices=1, **{"max_epochs": 3, **quiet, **keywords})


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
        {"callbacks": "averaging"},
    ],
    ids=str,
)
def test_what_the_trainer_does_to_gradients_and_steps_is_honoured(keywords):
    def run(optimizer):
        mine = dict(keywords)
        if "callbacks" in mine:
            mine["callbacks"] = [StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1)]
        return fitted(optimizer, cosine, **mine)

    ours, torchs = both(run)
    agree(ours, torchs)
    every = keywords.get("accumulate_grad_batches", 1)
    if "callbacks" not in keywords:
        assert ours.counts["global_step"] == 3 * -(-BATCHES // every)
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


def test_manual_optimization_with_two_optimizers():
    runs = []
    for make in (OURS, TORCHS):
        model = Manual(make)
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
