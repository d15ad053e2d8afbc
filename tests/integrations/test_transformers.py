"""The Trainer of Hugging Face's transformers with openadam.torch.AdamW, beside torch.optim.AdamW."""

from __future__ import annotations

import pytest
import torch
from peers import OURS, RTOL, SETTINGS, TORCHS, Run, agree, both, same, steps_of
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, get_cosine_schedule_with_warmup

import openadam

STEPS, WORDS, LENGTH = 12, 32, 12


class Counting(Dataset):
    """Sentences that count on from a random word."""

    def __init__(self):
        start = torch.randint(WORDS, (64, 1), generator=torch.Generator().manual_seed(11))
        self.sentences = (start + torch.arange(LENGTH)) % WORDS

    def __len__(self):
        return len(self.sentences)

    def __getitem__(self, index):
        return {"input_ids": self.sentences[index], "labels": self.sentences[index]}


def gpt():
    """Two layers, 32 wide; with the dropout that GPT-2 has, and with tied embeddings."""
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))


class Noting(TrainerCallback):
    def __init__(self):
        self.losses, self.rates = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.rates.append(logs["learning_rate"])


class Exact(Trainer):
    """The Trainer rounds what it logs; these are the losses themselves."""

    def compute_loss(self, *arguments, **keywords):
        found = super().compute_loss(*arguments, **keywords)
        self.exact.append(float(found.detach()))
        return found


def fitted(folder, make, way="class", *, resume=None, settings=None, model=None, scheduler=None, **keywords):
    """A run of the Trainer, with the optimizer given in one of the two ways it takes one."""
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=STEPS, save_steps=STEPS // 2, logging_steps=1,
        per_device_train_batch_size=8, weight_decay=SETTINGS["weight_decay"], **{"warmup_steps": 3, "lr_scheduler_type": "cosine", **keywords},
    )  # fmt: skip
    model = model or gpt()
    settings = {**SETTINGS, **(settings or {})}
    noting = Noting()
    if way == "class":
        given = {"optimizer_cls_and_kwargs": (make, settings)}
    else:
        optimizer = make(model.named_parameters(), **settings)
        given = {"optimizers": (optimizer, (scheduler or (lambda of: get_cosine_schedule_with_warmup(of, 3, STEPS)))(optimizer))}
    trainer = Exact(model=model, args=arguments, train_dataset=Counting(), callbacks=[noting], **given)
    trainer.exact = []
    trainer.train(resume_from_checkpoint=resume and str(resume))
    counts = {"global_step": trainer.state.global_step, "scheduler": trainer.lr_scheduler.last_epoch, "forwards": len(trainer.exact)}
    run = Run(model, trainer.optimizer.optimizer, trainer.exact, noting.rates, counts)
    run.trainer = trainer
    return run


@pytest.mark.parametrize("way", ["class", "instance"])
def test_the_course_is_that_of_torch(tmp_path, way):
    ours, torchs = fitted(tmp_path / "ours", OURS, way), fitted(tmp_path / "torch", TORCHS, way)
    agree(ours, torchs)
    assert ours.counts == {"global_step": STEPS, "scheduler": STEPS, "forwards": STEPS}
    assert set(steps_of(ours.optimizer)) == {float(STEPS)}


def test_it_makes_the_groups_for_decay_itself(tmp_path):
    run = fitted(tmp_path, OURS)
    decayed, others = run.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (SETTINGS["weight_decay"], 0.0)  # of TrainingArguments, not of the keywords
    by_hand = fitted(tmp_path, OURS, "instance", settings={"no_decay": lambda name, p: p.ndim < 2})
    assert by_hand.losses == pytest.approx(run.losses, rel=RTOL)


@pytest.mark.parametrize(
    "keywords",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
        {"max_grad_norm": 0.0},
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "cosine_with_restarts"},
        {"optim": "sgd"},  # what is given goes before it
    ],
    ids=str,
)
def test_what_the_trainer_is_asked_for_is_honoured(tmp_path, keywords):
    def run(make):
        return fitted(tmp_path / make.__module__, make, **keywords)

    ours, torchs = both(run)
    agree(ours, torchs)
    assert set(steps_of(ours.optimizer)) == {float(STEPS)} == {float(ours.counts["global_step"])}


def test_a_schedule_that_cycles_the_betas(tmp_path):
    def run(make):
        return fitted(tmp_path / make.__module__, make, "instance", scheduler=lambda of: OneCycleLR(of, max_lr=0.01, total_steps=STEPS + 1))

    ours, torchs = both(run)
    agree(ours, torchs)
    assert ours.optimizer.param_groups[0]["betas"] == torchs.optimizer.param_groups[0]["betas"] != SETTINGS["betas"]


def test_gradient_checkpointing(tmp_path):
    def run(make):
        model = gpt()
        model.gradient_checkpointing_enable()
        return fitted(tmp_path / make.__module__, make, model=model)

    agree(*both(run))


def test_clip_norm_does_what_the_trainers_clipping_does(tmp_path):
    ours = fitted(tmp_path / "ours", OURS, settings={"clip_norm": 0.1}, max_grad_norm=0.0)
    agree(ours, fitted(tmp_path / "torch", TORCHS, max_grad_norm=0.1))
    assert ours.optimizer.last_step.clip_factor < 1


def test_bfloat16_autocast(tmp_path):
    ours, torchs = both(lambda make: fitted(tmp_path / make.__module__, make, bf16=True))
    agree(ours, torchs, rtol=0.05)  # activations have 8 bits


# --- resuming ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["class", "instance"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, way, every):
    whole = fitted(tmp_path, OURS, way, gradient_accumulation_steps=every)
    rest = fitted(tmp_path, OURS, way, gradient_accumulation_steps=every, resume=tmp_path / f"checkpoint-{STEPS // 2}")
    assert len(rest.losses) == every * STEPS // 2
    rest.rates = rest.rates[-STEPS // 2 :]
    same(whole, rest)
    assert whole.counts["scheduler"] == rest.counts["scheduler"] == STEPS


def test_a_bfloat16_model_resumes_with_averages_as_wide_as_it_saved_them(tmp_path):
    """torch's load_state_dict would cast them to the parameters' bfloat16."""
    whole = fitted(tmp_path, OURS, model=gpt().to(torch.bfloat16))
    rest = fitted(tmp_path, OURS, model=gpt().to(torch.bfloat16), resume=tmp_path / f"checkpoint-{STEPS // 2}")
    assert {state["exp_avg_sq"].dtype for state in rest.optimizer.state.values()} == {torch.float32}
    same(whole, rest)
    assert sum(whole.losses[-3:]) < sum(whole.losses[:3])


@pytest.mark.parametrize(("before", "after"), [(TORCHS, OURS), (OURS, TORCHS)])
def test_a_run_goes_over_from_one_to_the_other(tmp_path, before, after):
    whole = fitted(tmp_path, before)
    rest = fitted(tmp_path, after, resume=tmp_path / f"checkpoint-{STEPS // 2}")
    assert isinstance(rest.optimizer, after)
    assert rest.losses == pytest.approx(whole.losses[STEPS // 2 :], rel=RTOL)
    assert steps_of(rest.optimizer) == steps_of(whole.optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fitted(tmp_path, OURS)
    torch.manual_seed(1)
    wider = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
    other = fitted(tmp_path / "wider", OURS, model=wider)
    with pytest.raises(openadam.CheckpointMismatchError, match="shape"):
        other.optimizer.load_state_dict(torch.load(tmp_path / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True))


# --- refused steps ----------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_model_intact(tmp_path):
    class Poisoning(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                model.transformer.h[1].mlp.c_fc.weight.grad[0, 0] = float("inf")

    model = gpt()
    optimizer = OURS(model.named_parameters(), **SETTINGS)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=STEPS)
    trainer = Trainer(model=model, args=arguments, train_dataset=Counting(), callbacks=[Poisoning()], optimizers=(optimizer, None))
    with pytest.raises(openadam.NonFiniteGradientError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight.* at step 5"):
        trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert set(steps_of(optimizer)) == {4.0}


def test_a_training_is_recorded(tmp_path):
    """By a callback, of whatever optimizer the Trainer makes."""
    from openadam import record
    from openadam.torch.callbacks import for_transformers

    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=STEPS, logging_steps=1, save_steps=1000
    )
    Trainer(gpt(), arguments, train_dataset=Counting(), callbacks=[for_transformers(tmp_path / "run.oadam")]).train()
    (track,) = record.load(tmp_path / "run.oadam").tracks.values()
    assert track.last_step == STEPS
    assert len(track.scalar("loss")) >= STEPS - 1
    assert any(len(track.measure(tensor, "disagree")) == STEPS for tensor in track.tensors)
