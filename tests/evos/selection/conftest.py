"""Every strategy, built and driven the same way, and the slow reference of the crossover."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from evos.selection import (
    EgraConfig,
    ErrorConfig,
    EvosConfig,
    ExpansiveConfig,
    Feedback,
    FullConfig,
    IntConfig,
    NintConfig,
    Pool,
    Selection,
    Selector,
    SelectorConfig,
    SoftConfig,
    TileErrorConfig,
    TilesConfig,
    UniformConfig,
    build_selector,
)

EVERY_FOURTH = {"key_interval": 4.0, "key_interval_end": 4.0}
STRATEGIES: dict[str, SelectorConfig] = {
    "full": FullConfig(),
    "uniform": UniformConfig(keep_ratio=0.3, keep_schedule="step"),
    "egra": EgraConfig(keep_ratio=0.3),
    "expansive": ExpansiveConfig(keep_ratio=0.3),
    "soft": SoftConfig(keep_ratio=0.3, uniform_ratio=0.2, restart_ratio=0.2),
    "int": IntConfig(keep_ratio=0.3, variant="dense2", keep_schedule="linear"),
    "evos": EvosConfig(keep_ratio=0.3, **EVERY_FOURTH),
    "evos add": EvosConfig(keep_ratio=0.3, crossover="add", mutation_schedule="linear", **EVERY_FOURTH),
    "nint": NintConfig(keep_ratio=0.3, key_interval=4.0),
    "error": ErrorConfig(keep_ratio=0.3),
    "tiles": TilesConfig(keep_ratio=0.3, rank_interval=4, warmup_steps=2),
    "tile_error": TileErrorConfig(keep_ratio=0.3, odds_interval=4),
}


@dataclass
class Training:
    """A selector in training on random residuals that change from step to step."""

    config: SelectorConfig
    pool: Pool
    device: torch.device
    seed: int = 0
    rank: int = 0
    steps: int = 12
    selector: Selector = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.signal = torch.rand(self.pool.rows, self.pool.cells, 3, generator=generator).to(self.device)
        self.selector = build_selector(
            self.config,
            self.pool,
            total_steps=self.steps,
            device=self.device,
            seed=self.seed,
            rank=self.rank,
            target=self.signal,
        )

    def residuals(self, step: int) -> Tensor:
        return (self.signal - 0.5) * math.cos(step)

    def step(self, step: int, rows: Tensor | None = None) -> Selection:
        """Select, weigh and observe; odd steps know the loss's gradient in space, even ones don't."""
        residuals = self.residuals(step)
        selection = self.selector.select(step, rows, evaluate=lambda rows: residuals[rows])
        live = selection.gather(residuals) if self.pool.rows > 1 else selection.gather(residuals[0])
        selection = self.selector.weigh(selection, live)
        grad = 0.01 * live[..., :1].expand(*live.shape[:2], len(self.pool.shape))
        update = live.flip(1) if selection.is_key and "update" in self.selector.needs else None
        self.selector.observe(selection, Feedback(live, coord_grad=grad if step % 2 else None, update=update))
        return selection

    def run(self, first: int = 1) -> list[Selection]:
        return [self.step(step) for step in range(first, self.steps + 1)]


@pytest.fixture(params=STRATEGIES)
def strategy(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def train(device) -> Callable[..., Training]:
    """train(name or config, pool, seed=..., rank=..., steps=..., on=another device) -> Training."""

    def build(config: str | SelectorConfig, pool: Pool | None = None, on: torch.device = device, **kwargs) -> Training:
        config = STRATEGIES[config] if isinstance(config, str) else config
        return Training(config, Pool(2, (6, 7)) if pool is None else pool, on, **kwargs)

    return build


def reference_offspring(low: Sequence[float], high: Sequence[float], n: int) -> set[int]:
    """The paper's crossover with sets and loops."""
    by_low = sorted(range(len(low)), key=lambda cell: (-low[cell], cell))
    by_high = sorted(range(len(high)), key=lambda cell: (-high[cell], cell))
    low_parents, high_parents = set(by_low[:n]), set(by_high[:n])
    offspring = low_parents & high_parents
    places = n - len(offspring)
    mean_low, mean_high = sum(low) / len(low), sum(high) / len(high)
    from_low = int(places * (mean_low / (mean_low + mean_high))) if places else 0
    offspring.update([cell for cell in by_low if cell in low_parents - high_parents][:from_low])
    offspring.update([cell for cell in by_high if cell in high_parents - low_parents][: places - from_low])
    return offspring


@pytest.fixture(scope="session")
def slow_offspring() -> Callable[[Sequence[float], Sequence[float], int], set[int]]:
    return reference_offspring


@pytest.fixture(scope="session")
def p_value() -> Callable[..., float]:
    """p_value(draws "T M", cells): chance of a choice so uneven where T times M cells are drawn without replacement."""
    from scipy.stats import chi2

    def chance(draws: Tensor, cells: Sequence[int]) -> float:
        times, drawn = draws.shape
        counts = torch.bincount(draws.flatten().cpu(), minlength=max(cells) + 1)[list(cells)].double()
        assert counts.sum() == draws.numel(), "a draw from outside the cells"
        expected = times * drawn / len(cells)
        spread = expected * (1 - drawn / len(cells)) * len(cells) / (len(cells) - 1)
        return float(chi2.sf(float((counts - expected).square().sum() / spread), len(cells) - 1))

    return chance
