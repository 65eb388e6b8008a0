"""NINT: teaching guided by the neural tangent kernel (CVPR 2026, arXiv 2511.15487), as a setting of EVOS.

A cell's score is the norm of its row of K g, the tangent kernel K = J Jᵀ times the loss's gradient g by the field's
values. As Jᵀ g is the loss's gradient by the parameters, the row is how the field would change there along that
gradient: one forward pass with tangents (``evos.derivatives.parameter_jvp``), no kernel.

What is here: key steps train on every cell and score it, and until the next one the batch is the cells of highest score
and a uniform draw among the others. That is EVOS with update fitness, without crossover. Shares and interval are those
of the released code, which differs from this in that it ranks by error in the steps between, evaluating every cell in
each of them, and lets the kernel's part in favour of the error's fade within the first 30 steps.
"""

from dataclasses import dataclass
from typing import ClassVar

from evos.selection.evolutionary import EvosConfig


@dataclass(frozen=True)
class NintConfig(EvosConfig):
    """Options of NINT: EVOS' own with the defaults of NINT."""

    name: ClassVar[str] = "nint"

    fitness: str = "update"
    crossover: str = "none"
    direction: str = "gradient"
    mutation_share: float = 0.7
    key_schedule: str = "fixed"
    key_interval: float | None = 10.0
