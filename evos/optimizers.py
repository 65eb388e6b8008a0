"""Optimizers for fields by name, and averages of the weights that they leave behind.

All take Adam's learning rates: Muon's steps are scaled to the size of Adam's, SOAP and schedule-free take Adam's step
in other coordinates or at another point.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from evos.config import check_choice
from evos.errors import InputError

SOAP_LARGEST_SIDE = 1024
"""Sides of a weight matrix that are longer (a hash table's) are not preconditioned: an eigenbasis costs their cube."""


CLIP_MEMORY = 0.98
"""Decay per step of the running mean that gradients are clipped against; AdaGC's."""

POLISH_ITERATIONS = 10
"""Iterations of L-BFGS in a step; several, because each step begins by repeating the last evaluation."""
POLISH_HISTORY = 50
"""Updates that L-BFGS remembers; each takes the memory of two copies of the weights."""


class JointOptimizer:
    """Several optimizers, each with parameters of its own, used as one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of each part."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        for part, its_state in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its_state)


def adam(module: nn.Module, lr: float) -> Optimizer:
    """Adam, in one kernel where the weights are real."""
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters, lr=lr, fused=not has_complex_weights(module))


def muon(module: nn.Module, lr: float) -> JointOptimizer | Optimizer:
    """Muon (Jordan, 2024) for the matrices from hidden to hidden features, Adam for all other weights.

    Its orthogonal steps have the root mean square of Adam's (``match_rms_adamw``, arXiv 2502.16982), so that one
    learning rate serves both; no weight decay. The Newton-Schulz iteration is torch's, in bfloat16.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError("optimizer", f"muon with torch {torch.__version__}", "adam, or torch 2.9 or later")
    hidden = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)][1:-1]
    if not hidden:
        return adam(module, lr)
    chosen = {id(weight) for weight in hidden}
    others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    return JointOptimizer(
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=lr, fused=True),
    )


def soap(module: nn.Module, lr: float) -> Optimizer:
    """SOAP (Vyas et al., ICLR 2025): Adam in the eigenbasis of Shampoo's preconditioner, renewed every tenth step.

    As in the released code its first step only gathers statistics. No weight decay.
    """
    build = from_pytorch_optimizer("SOAP")
    return build(module.parameters(), lr=lr, weight_decay=0.0, max_precondition_dim=SOAP_LARGEST_SIDE)


def schedule_free(module: nn.Module, lr: float) -> Optimizer:
    """Schedule-free AdamW (Defazio et al., NeurIPS 2024), no weight decay; see ``evaluation_weights``."""
    return from_pytorch_optimizer("ScheduleFreeAdamW")(module.parameters(), lr=lr)


def polisher(module: nn.Module) -> Optimizer:
    """L-BFGS with a strong-Wolfe line search; the loss must be deterministic."""
    return torch.optim.LBFGS(
        module.parameters(), max_iter=POLISH_ITERATIONS, history_size=POLISH_HISTORY, line_search_fn="strong_wolfe"
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, float], JointOptimizer | Optimizer]] = {
    "adam": adam,
    "muon": muon,
    "soap": soap,
    "schedule_free": schedule_free,
}


def build_optimizer(name: str, module: nn.Module, lr: float) -> JointOptimizer | Optimizer:
    """An optimizer of all weights of a module.

    Args:
        name: key in OPTIMIZERS.
        module: what is trained; its nn.Linear layers but the first and the last hold the hidden matrices.
        lr: Adam's learning rate, above 0.

    Raises:
        InputError: unknown name, complex weights with any but adam, or a package that is missing or too old.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if name != "adam" and has_complex_weights(module):
        raise InputError("optimizer", name, "adam where weights are complex, as WIRE's are")
    return OPTIMIZERS[name](module, lr)


def has_complex_weights(module: nn.Module) -> bool:
    """Whether a module has complex weights, for which there is only Adam, in several kernels."""
    return any(parameter.is_complex() for parameter in module.parameters())


def from_pytorch_optimizer(name: str) -> Callable[..., Optimizer]:
    """An optimizer class of the package pytorch-optimizer, which takes seconds to import."""
    try:
        import pytorch_optimizer
    except ImportError:
        allowed = 'adam or muon, or the package pytorch-optimizer: pip install -c constraints.txt -e ".[regress]"'
        raise InputError("optimizer", f"{name} without its package", allowed) from None
    return getattr(pytorch_optimizer, name)


# ---- clipping ------------------------------------------------------------------------------------------------


class RunningClip:
    """Clips gradients to a multiple of the running mean of their norm.

    AdaGC (Wang et al., 2025, arXiv 2502.11034) with one norm over all weights. Batches from where the error is largest
    have a gradient many times the usual norm now and then; Adam, whose denominators remember the usual one, turns it
    into a step that undoes hundreds.

    ``mean`` is the state: the exponential average of the clipped norms, 0 before the first step. Gradients that are not
    finite are left so, for the run to stop at, and leave the mean as it was.
    """

    def __init__(self, ratio: float, device: torch.device | str) -> None:
        """``ratio``: at least 1; with 1 the mean can only fall."""
        self.ratio, self.mean = ratio, torch.zeros((), device=device)

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip the gradients of a step in place, without a host wait; the first step's are left as they are."""
        parameters = list(parameters)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # torch makes a Python float of max_norm, for which the host would wait: so the norm is given in limits.
        nn.utils.clip_grads_with_norm_(parameters, 1.0, self.in_limits(norm))

    @torch.no_grad()
    def rows(self, gradients: Float[Tensor, "M N"]) -> None:
        """Clip the gradients of M networks in place, each row by itself against a mean of its own."""
        norm = torch.linalg.vector_norm(gradients, dim=1)
        gradients.mul_(clip_factor(self.in_limits(norm))[:, None])

    def in_limits(self, norm: Tensor) -> Tensor:
        """The norms in multiples of what they are clipped to; the mean takes them in."""
        usual = torch.where(self.mean == 0, norm, self.mean)
        limit = self.ratio * usual
        self.mean = torch.where(norm.isfinite(), usual.lerp(norm.minimum(limit), 1 - CLIP_MEMORY), self.mean)
        return norm / limit.clamp(min=torch.finfo(norm.dtype).tiny)


def clip_factor(norm: Tensor) -> Tensor:
    """What ``torch.nn.utils.clip_grads_with_norm_`` multiplies gradients of a norm by, for a limit of 1."""
    return (1 / (norm + 1e-6)).clamp(max=1)


# ---- averages ------------------------------------------------------------------------------------------------


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float, step: int) -> None:
    """Bring an exponential average of the weights from step - 1 to ``step``, counted from 1.

    It is the sum of decay^(step - i) w_i over the steps i, divided by the sum of these factors: unlike the average of
    torch.optim.swa_utils it is not biased to the initial weights, and the host doesn't wait for a count on the device.

    Args:
        average: changed in place; what it holds before the first step does not matter.
        weights: those that ``step`` left behind.
        decay: in (0, 1).
    """
    newest = (1 - decay) / (1 - decay**step)
    for mine, weight in zip(average, weights, strict=True):
        mine.lerp_(weight, newest)


@contextmanager
def evaluation_weights(
    module: nn.Module, optimizer: JointOptimizer | Optimizer, average: Iterable[Tensor] | None = None
) -> Iterator[bool]:
    """A context in which a module has the weights that are evaluated; afterwards the trained ones, bit for bit.

    Yields whether the two differ. Those evaluated are ``average`` where given, the average that a schedule-free
    optimizer keeps, or else the trained weights. (The optimizer's own way back from eval() to train() rounds:
    evaluating would change the training.)
    """
    own: Any = optimizer if hasattr(optimizer, "eval") else None
    if average is None and own is None:
        yield False
        return
    trained = [weight.detach().clone() for weight in module.parameters()]
    if own is not None:
        own.eval()
    if average is not None:
        replace_weights(module, average)
    try:
        yield True
    finally:
        if own is not None:
            own.train()
        replace_weights(module, trained)


@torch.no_grad()
def replace_weights(module: nn.Module, weights: Iterable[Tensor]) -> None:
    """Copy weights, in the order of ``module.parameters()``, into a module."""
    for mine, weight in zip(module.parameters(), weights, strict=True):
        mine.copy_(weight)
