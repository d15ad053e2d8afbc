"""openadam: the Adam optimizer family for Python, written once, fast and exact, and never a black box."""

import importlib as _importlib
import typing as _typing

from . import _interpreter as _interpreter  # first: it refuses what would hang
from . import errors, measures, rules, schedules
from ._version import __version__ as __version__
from .arrays.optimizer import Optimizer, StepReport
from .errors import *  # noqa: F403
from .errors import __all__ as _errors
from .family import MEMBERS, SGD, Adagrad, Adam, AdaMax, AdamW, AMSGrad, Momentum, NAdam, NAdamW, RAdam, RAdamW, RMSProp
from .language.expression import Expression, Namespace, exp, log, maximum, minimum, sign, sqrt, where
from .language.rule import Step, rule
from .measures import Measure
from .row_sparse import Rows
from .schedules import Cosine, Linear, WarmUp
from .views.show import show
from .views.trace import trace

__all__ = [
    "MEMBERS",
    "SGD",
    "AMSGrad",
    "AdaMax",
    "Adagrad",
    "Adam",
    "AdamW",
    "Cosine",
    "Expression",
    "Linear",
    "Measure",
    "Momentum",
    "NAdam",
    "NAdamW",
    "Namespace",
    "Optimizer",
    "RAdam",
    "RAdamW",
    "RMSProp",
    "Rows",
    "Step",
    "StepReport",
    "WarmUp",
    "check",
    "compile",
    "errors",
    "exp",
    "log",
    "maximum",
    "measures",
    "minimum",
    "rule",
    "rules",
    "schedules",
    "show",
    "sign",
    "sqrt",
    "trace",
    "where",
    *_errors,
]


if _typing.TYPE_CHECKING:
    from . import record as record
    from .checking import check as check
    from .compiling import compile_rule as compile


def __getattr__(name: str) -> object:
    if name == "record":  # who records nothing needs no database
        return _importlib.import_module(".record", __name__)
    if name == "check":
        return _importlib.import_module(".checking", __name__).check
    if name == "compile":
        return _importlib.import_module(".compiling", __name__).compile_rule
    if name == "torch":
        raise AttributeError("openadam.torch is there once it is imported: import openadam.torch, or from openadam.torch import AdamW")
    for known in MEMBERS.values():
        if known.__name__.lower() == name.lower():
            raise AttributeError(f"openadam has no {name!r}: over arrays it is openadam.{known.__name__}; torch's spelling is that of openadam.torch")
    raise AttributeError(f"module 'openadam' has no attribute {name!r}")
