"""Recordings in the tools that people train with: callbacks for Lightning's Trainer and for that of Hugging Face's transformers.

Both record all that their trainer optimizes with: ours from inside, optimizers of torch from outside, which is slower; and mark the epochs.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from ..extras import module
from .observing import Observation, observe

__all__ = ["for_lightning", "for_transformers"]


class _Handles:
    """The optimizers of one training."""

    def __init__(self, record: Any) -> None:
        self.record = record
        self.handles: list[Observation] = []

    def begin(self, optimizers: Any) -> None:
        self.handles = [observe(getattr(optimizer, "optimizer", optimizer), self.record) for optimizer in optimizers]  # some are wrapped

    def loss(self, value: Any) -> None:
        for handle in self.handles:
            handle.loss = value

    def mark(self, text: str) -> None:
        for handle in self.handles:
            handle.mark(text)

    def failed(self, error: BaseException) -> None:
        for handle in self.handles:
            handle.failed(error)

    def end(self) -> None:
        for handle in self.handles:
            handle.close()
        self.handles = []


def for_lightning(record: Any) -> Any:
    """A callback for ``lightning.Trainer(callbacks=[…])`` that records the training.

    Args:
        record: A path, or an `openadam.record.Recorder`.

    Raises:
        ImportError: Lightning is not installed.

    >>> trainer = lightning.Trainer(callbacks=[openadam.torch.callbacks.for_lightning("run.oadam")])  # doctest: +SKIP
    """
    name = "lightning.pytorch.callbacks" if importlib.util.find_spec("lightning") else "pytorch_lightning.callbacks"
    callback: Any = module(name, "integrations").Callback
    own = _Handles(record)

    class Record(callback):  # type: ignore[misc]
        """Records the optimizers of a training."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            own.begin(trainer.optimizers)

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            own.loss(loss.detach())

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            own.mark(f"epoch {trainer.current_epoch} ended")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            own.failed(exception)
            own.end()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            own.end()

    return Record()


def for_transformers(record: Any) -> Any:
    """A callback for ``transformers.Trainer(callbacks=[…])`` that records the training. Losses are those that the trainer logs.

    Args:
        record: A path, or an `openadam.record.Recorder`.

    Raises:
        ImportError: transformers is not installed.

    >>> trainer = Trainer(model, arguments, callbacks=[openadam.torch.callbacks.for_transformers("run.oadam")])  # doctest: +SKIP
    """
    callback: Any = module("transformers", "integrations").TrainerCallback
    own = _Handles(record)

    class Record(callback):  # type: ignore[misc]
        """Records the optimizer of a training."""

        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            own.begin([optimizer] if optimizer is not None else [])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                own.loss(logs["loss"])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            own.mark(f"epoch {state.epoch:g} ended")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            own.end()

    return Record()
