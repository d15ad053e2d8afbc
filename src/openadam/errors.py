"""The named errors: each says which tensor or setting, what was found and what to do, and leaves everything as it was."""

from __future__ import annotations

__all__ = [
    "AliasError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "ConcurrentStepError",
    "ExplanationError",
    "GradientDtypeError",
    "GradientError",
    "GradientShapeError",
    "HyperparameterError",
    "HyperparameterWarning",
    "NativeMissingWarning",
    "NonFiniteGradientError",
    "NonFiniteStateError",
    "OpenAdamError",
    "ParameterDtypeError",
    "ParameterError",
    "RecordError",
    "RecordFormatError",
    "RuleError",
    "SparseGradientError",
    "TooManySkipsError",
    "UnknownHyperparameterError",
]


class OpenAdamError(Exception):
    """The base of every error of this package."""


class RuleError(OpenAdamError, TypeError):
    """A rule uses something that the language of update rules lacks; the message names the line."""


class HyperparameterError(OpenAdamError, ValueError):
    """A hyperparameter is out of its range or not a number."""


class UnknownHyperparameterError(OpenAdamError, TypeError):
    """A keyword is no hyperparameter or option of this optimizer; the message suggests one that is."""


class ParameterError(OpenAdamError, ValueError):
    """The parameters cannot be optimized as they are: none, given twice, or not writeable."""


class ParameterDtypeError(OpenAdamError, TypeError):
    """A parameter is not an array of a supported dtype."""


class AliasError(OpenAdamError, ValueError):
    """Two tensors that must be apart share memory, or a tensor overlaps itself."""


class GradientError(OpenAdamError, RuntimeError):
    """The gradients cannot be used; nothing was changed."""


class GradientShapeError(GradientError):
    """A gradient's shape is not its parameter's; gradients are never broadcast."""


class GradientDtypeError(GradientError, TypeError):
    """A gradient's dtype cannot be turned into its parameter's without loss."""


class SparseGradientError(GradientError):
    """A gradient is sparse."""


class NonFiniteGradientError(GradientError):
    """A gradient holds NaN or infinity.

    Attributes:
        parameter: Name of the first tensor concerned.
        index: Flat index (C order) of the first such element in it.
        value: That element.
        count: Non-finite elements in this tensor.
        step: The step that was refused, from 1.
        others: In how many other tensors there are such elements.
        tensors: How many took part in the step; 0 where that was not told.
    """

    process: int | None = None
    """The rank of the process that found it, where the parameters are spread over several; the index is then that in its part."""

    def __init__(self, parameter: str, index: int, value: float, count: int, step: int, others: int = 0, tensors: int = 0) -> None:
        super().__init__(parameter, index, value, count, step, others, tensors)
        self.parameter, self.index, self.value, self.count, self.step = parameter, index, value, count, step
        self.others, self.tensors = others, tensors

    def __str__(self) -> str:
        return f"{self.what}; nothing was changed (nonfinite='skip' skips such steps, 'propagate' lets them through)"

    @property
    def what(self) -> str:
        """What was found, without what to do about it."""
        where = "" if self.process is None else f" of the part that process {self.process} holds"
        others = f", and others in {self.others} more of {self.tensors}" if self.others else ""
        return (
            f"the gradient of parameter {self.parameter!r} is not finite at step {self.step}: {self.value} at flat index "
            f"{self.index}{where}, {self.count} non-finite in this tensor{others}"
        )


class NonFiniteStateError(GradientError):
    """A finite gradient is so large that the optimizer's state would not be finite."""


class TooManySkipsError(GradientError):
    """One step after another was skipped because of gradients that are not finite, more than ``max_skips`` in a row.

    Attributes:
        step: The step that could not be taken all the while, from 1.
        count: How many were skipped in a row before this one.
        limit: ``max_skips``.
        reason: What is wrong this time.
    """

    def __init__(self, step: int, count: int, limit: int, reason: str) -> None:
        super().__init__(step, count, limit, reason)
        self.step, self.count, self.limit, self.reason = step, count, limit, reason

    def __str__(self) -> str:
        return f"step {self.step} has been skipped {self.count} times in a row, max_skips is {self.limit}, and it would be again: {self.reason}"


class ConcurrentStepError(OpenAdamError, RuntimeError):
    """An optimizer was used while a step of its own was running."""


class ExplanationError(OpenAdamError, ValueError):
    """A coordinate cannot be explained: there is none at this index, it was not followed, or the last step did not move it."""


class CheckpointError(OpenAdamError, ValueError):
    """A state or file cannot be loaded; the optimizer is unchanged."""


class CheckpointCorruptError(CheckpointError):
    """The contents are damaged or impossible: truncated, a wrong checksum, a negative second moment."""


class CheckpointVersionError(CheckpointError):
    """The contents were written by a newer, incompatible version."""


class CheckpointMismatchError(CheckpointError):
    """The contents belong to another optimizer, or to other parameters."""


class RecordError(OpenAdamError, ValueError):
    """A recording cannot be made or read as asked: its path, an option, or a name that is not in it."""


class RecordFormatError(RecordError):
    """A file is no recording, is damaged, or was written by a newer version."""


class HyperparameterWarning(UserWarning):
    """A hyperparameter is allowed but hardly meant."""


class NativeMissingWarning(UserWarning):
    """There are no native kernels, or none can be compiled of a rule of one's own; steps run on what is slower, with the same bits."""
