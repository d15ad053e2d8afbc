"""openadam for PyTorch: the classes of ``torch.optim``, with another step. Change the import and nothing else.

Each is a subclass of torch's class of the same name: the same signature, defaults, errors, groups, states, hooks and checkpoints. What
comes on top is keyword-only (`clip_norm`, `nonfinite`, `no_decay`, `threads`, …) and described at `Host`.
"""

from __future__ import annotations

try:
    import torch
except ImportError as error:
    raise ImportError("openadam.torch needs PyTorch: install it with `pip install 'openadam[torch]'`") from error

from . import members
from .host import Host
from .observing import observe as observe
from .own import Optimizer

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam", "RMSprop", "SparseAdam"]


class Adam(Host, torch.optim.Adam):
    """``torch.optim.Adam`` with the step of openadam. Kingma and Ba, 2015, Algorithm 1; ``amsgrad=True``: Reddi et al., 2018.

    Weight decay joins the gradient (L2). For arguments see `torch.optim.Adam` and `Host`.

    >>> import torch
    >>> from openadam.torch import Adam
    >>> p = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = Adam([p], lr=0.1)
    >>> (p**2).sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([ 0.9000, -1.9000])
    >>> optimizer.last_step.step, round(optimizer.last_step.grad_norm, 4)
    (1, 4.4721)
    """

    member = members.ADAM


class AdamW(Host, torch.optim.AdamW):
    """``torch.optim.AdamW`` with the step of openadam. Loshchilov and Hutter, 2019.

    Weight decay shrinks the parameter by ``lr * weight_decay``. For arguments see `torch.optim.AdamW` and `Host`.

    >>> import torch
    >>> from openadam.torch import AdamW
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = AdamW(model.named_parameters(), lr=1e-3, clip_norm=1.0, no_decay=["bias"])
    >>> model(torch.tensor([1.0, float("nan")])).sum().backward()
    >>> optimizer.step()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    openadam.errors.NonFiniteGradientError: the gradient of parameter 'weight' is not finite at step 1: nan at flat index 1, ...
    """

    member = members.ADAM


class NAdam(Host, torch.optim.NAdam):
    """``torch.optim.NAdam`` with the step of openadam. Dozat, 2016. For arguments see `torch.optim.NAdam` and `Host`.

    >>> import torch
    >>> from openadam.torch import NAdam
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> NAdam([p], lr=0.1, decoupled_weight_decay=True).step()
    >>> p.detach() < 1
    tensor([True])
    """

    member = members.NADAM


class RAdam(Host, torch.optim.RAdam):
    """``torch.optim.RAdam`` with the step of openadam. Liu et al., 2020. For arguments see `torch.optim.RAdam` and `Host`.

    >>> import torch
    >>> from openadam.torch import RAdam
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> RAdam([p], lr=0.1).step()  # the first steps are not rectified: lr * g
    >>> p.detach()
    tensor([0.8000])
    """

    member = members.RADAM


class Adamax(Host, torch.optim.Adamax):
    """``torch.optim.Adamax`` with the step of openadam. Kingma and Ba, 2015, Algorithm 2. For arguments see `torch.optim.Adamax` and `Host`.

    >>> import torch
    >>> from openadam.torch import Adamax
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> Adamax([p], lr=0.1).step()
    >>> p.detach()
    tensor([0.9000])
    """

    member = members.ADAMAX


class RMSprop(Host, torch.optim.RMSprop):
    """``torch.optim.RMSprop`` with the step of openadam. Hinton, 2012; centered: Graves, 2013. For arguments see `torch.optim.RMSprop` and `Host`.

    >>> import torch
    >>> from openadam.torch import RMSprop
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> RMSprop([p], lr=0.01).step()  # lr / sqrt(1 - alpha)
    >>> p.detach()
    tensor([0.9000])
    """

    member = members.RMSPROP


class Adagrad(Host, torch.optim.Adagrad):
    """``torch.optim.Adagrad`` with the step of openadam. Duchi et al., 2011. For arguments see `torch.optim.Adagrad` and `Host`.

    Of a sparse gradient only the rows that it names are read and written; it goes without weight decay, as in torch.

    >>> import torch
    >>> from openadam.torch import Adagrad
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> Adagrad([p], lr=0.1).step()
    >>> p.detach()
    tensor([0.9000])
    """

    member = members.ADAGRAD


class SGD(Host, torch.optim.SGD):
    """``torch.optim.SGD`` with the step of openadam: plain, with momentum, dampened, or Nesterov's. For arguments see `torch.optim.SGD` and `Host`.

    Of a sparse gradient only the rows that it names are read and written, unless there is momentum: a velocity goes on moving what it has
    moved, so that all rows are stepped. It goes without weight decay, as in torch.

    >>> import torch
    >>> from openadam.torch import SGD
    >>> p = torch.tensor([1.0], requires_grad=True)
    >>> p.grad = torch.tensor([2.0])
    >>> SGD([p], lr=0.1, momentum=0.9).step()
    >>> p.detach()
    tensor([0.8000])
    """

    member = members.SGD


class SparseAdam(Host, torch.optim.SparseAdam):
    """``torch.optim.SparseAdam`` with the step of openadam: Adam over the rows that a sparse gradient names.

    Gradients are COO tensors, as ``torch.nn.Embedding(..., sparse=True)`` makes them; those of a row that is named twice are added. Only the
    named rows of the parameter and of its moments are read and written; the number of the step counts for the whole parameter, also
    where no row is named. Kingma and Ba, 2015, in the form of section 2 (eps-hat). For arguments see `torch.optim.SparseAdam` and `Host`;
    there is no weight decay, so ``no_decay`` is refused.

    >>> import torch
    >>> from openadam.torch import SparseAdam
    >>> table = torch.nn.Embedding(5, 2, sparse=True)
    >>> _ = torch.nn.init.ones_(table.weight)
    >>> optimizer = SparseAdam(table.parameters(), lr=0.25)
    >>> (3 * table(torch.tensor([1, 3, 1]))).sum().backward()
    >>> optimizer.step()
    >>> table.weight.detach()
    tensor([[1.0000, 1.0000],
            [0.7500, 0.7500],
            [1.0000, 1.0000],
            [0.7500, 0.7500],
            [1.0000, 1.0000]])
    >>> optimizer.last_step.grad_norm  # of the sums: the square root of 2 * 6**2 + 2 * 3**2
    9.486832980505138
    """

    member = members.SPARSE_ADAM
