"""How neutral.py searches a learning rate: pure bookkeeping of rates tried and of the PSNR that each ended with."""

from dataclasses import dataclass, field
from statistics import mean


@dataclass(frozen=True)
class Range:
    """Which factors of a recipe's learning rate are tried, all of them powers of two, as their exponents.

    First those from ``-start`` to ``start``; then, while the best is the lowest or highest, one more beyond it, up to
    ``limit``.
    """

    start: int
    limit: int


@dataclass
class Search:
    """One contender's search."""

    first: float
    """The recipe's learning rate, which the factors multiply."""

    psnrs: dict[int, list[float]] = field(default_factory=dict)
    """Final PSNRs (dB), one an input of the search, by exponent of the factor."""

    def lr(self, exponent: int) -> float:
        """The learning rate of a factor."""
        return self.first * 2.0**exponent

    def best(self) -> int:
        """The exponent of the highest mean final PSNR, of equal ones the lowest; 0 where nothing was searched."""
        return max(sorted(self.psnrs), key=lambda exponent: mean(self.psnrs[exponent]), default=0)

    def untried(self, allowed: Range) -> list[int]:
        """The exponents to try next; none left: the best lies inside, or at the limit."""
        if not self.psnrs:
            return list(range(-allowed.start, allowed.start + 1))
        beyond = {min(self.psnrs): min(self.psnrs) - 1, max(self.psnrs): max(self.psnrs) + 1}
        following = beyond.get(self.best())
        return [] if following is None or abs(following) > allowed.limit else [following]

    def open(self) -> bool:
        """Whether the best is the lowest or highest rate tried: a better one may lie beyond."""
        return len(self.psnrs) > 1 and self.best() in (min(self.psnrs), max(self.psnrs))
