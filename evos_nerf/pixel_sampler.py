"""A nerfstudio pixel sampler driven by a selector: ``num_rays_per_batch`` tiles a step, a random pixel in each.

The pipeline (``EvosPipeline``) reports the residuals of the rays trained on; no ray is rendered for selection alone.
Evaluation calls ``sample`` without a step, which is nerfstudio's own uniform sampling.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from evos.config import check_choice, check_range
from evos.errors import InputError
from evos.selection import (
    SELECTORS,
    EgraConfig,
    ExpansiveConfig,
    Feedback,
    Pool,
    Selection,
    Selector,
    SelectorConfig,
    SoftConfig,
    TilesConfig,
    UniformConfig,
    build_selector,
)
from evos_nerf.half_precision import packed, unpacked
from evos_nerf.tiles import TileGrid, build_grid, tile_side

STEPS_AHEAD = 64
"""Maximum number of steps whose rays are drawn at once, where feedback in between would not change the odds."""

MAPS = ("evos_drawn", "evos_error")
"""Maps of each training image shown in TensorBoard and in the viewer; see EvosPixelSampler.tile_values."""

STRATEGIES = ("tiles", "uniform", "soft", "egra", "expansive")
"""The strategies that can choose rays; the others evaluate all pixels in some or all steps."""

HOST = "host"
"""Not a strategy: nerfstudio draws the rays as it does without EVOS, for comparison."""


@dataclass
class EvosPixelSamplerConfig(PixelSamplerConfig):
    """Options of the pixel sampler, with a group of options for each strategy."""

    _target: type = field(default_factory=lambda: EvosPixelSampler)
    """The class to instantiate."""

    selector: Literal["tiles", "uniform", "soft", "egra", "expansive", "host"] = "tiles"
    """Strategy that chooses the tiles of training rays: tiles is EVOS over tiles; host: nerfstudio's own sampler."""

    tiles: TilesConfig = field(default_factory=TilesConfig)
    """Options of EVOS over tiles."""

    uniform: UniformConfig = field(default_factory=UniformConfig)
    """Options of uniform; the rays of a step are drawn from keep_ratio of the tiles."""

    soft: SoftConfig = field(default_factory=SoftConfig)
    """Options of soft mining. The walking points are the rays, so keep_ratio has no effect."""

    egra: EgraConfig = field(default_factory=EgraConfig)
    """Options of EGRA; the rays of a step are drawn from keep_ratio of the tiles."""

    expansive: ExpansiveConfig = field(default_factory=ExpansiveConfig)
    """Options of expansive supervision; the rays of a step are drawn from keep_ratio of the tiles."""

    visits: float = 4.0
    """Mean number of rays drawn from a tile over the whole training, above 0; determines the side of the tiles."""

    max_tiles: int = 1 << 18
    """Maximum number of tiles over all images (54 bytes each), at least 1; every image has at least one."""

    tile_side: int | None = None
    """Side of the tiles in pixels, at least 1; none: derived from visits."""

    def __post_init__(self) -> None:
        if self.selector in SELECTORS and self.selector not in STRATEGIES:
            raise InputError("selector", self.selector, f"{', '.join(STRATEGIES)} (this one renders every pixel)")
        check_choice("selector", self.selector, (*STRATEGIES, HOST))
        check_range("visits", self.visits, 0, open_low=True)
        check_range("max_tiles", self.max_tiles, 1)
        check_range("tile_side", self.tile_side, 1)


class EvosPixelSampler(PixelSampler):
    """Draws the rays of a training step from the tiles that a selector chooses, and passes it their errors."""

    config: EvosPixelSamplerConfig

    def __init__(self, config: EvosPixelSamplerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        # From the global generator, which nerfstudio seeds with seed + rank; drawn before a resumed run restores it.
        self.seed = int(torch.randint(2**31, ()))
        self.uses_host_sampler = bool(config.is_equirectangular) or config.fisheye_crop_radius is not None
        self.total_steps = 30_000
        self.grid: TileGrid | None = None
        self.selector: Selector[Any] | None = None
        self.last_selection: Selection | None = None
        self._ahead: deque[tuple[Selection, dict[str, Tensor]]] = deque()
        self._unobserved: list[tuple[Selection, Tensor]] = []
        self._rays = self.num_rays_per_batch
        self._saved: dict[str, Any] | None = None
        self._seconds, self._steps = 0.0, 0

    # ---- what the data manager and the pipeline call -----------------------------------------------------------

    def plan(self, total_steps: int) -> None:
        """Set the length of training, for the schedules; a resumed run keeps its original length."""
        if self._saved is None and self.grid is None:
            self.total_steps = total_steps

    @property
    def is_feedback_wanted(self) -> bool:
        """Whether the selector chose the rays of the last step, so that their residuals are to be reported."""
        return self.last_selection is not None

    @torch.no_grad()
    def sample(self, image_batch: dict[str, Any], step: int | None = None) -> dict[str, Any]:
        """The pixels to train on at ``step`` (counted from 0), as nerfstudio's sampler returns them.

        ``image_batch`` holds all training images in the order of their index. Without a step: uniform pixels.
        """
        if step is None or self.config.selector == HOST:
            return super().sample(image_batch)
        if self.uses_host_sampler:
            warn_of_fallback()
            return super().sample(image_batch)
        began = time.perf_counter()
        if self.grid is None:
            self._start(image_batch)
        if not self._is_drawn(step + 1):
            self._ahead = deque(self._draw(step + 1))
        self.last_selection, batch = self._ahead.popleft()
        assert self.last_selection.index is not None
        cells = self.last_selection.index[0]
        self.drawn.index_add_(0, cells, self.one.expand(len(cells)))
        if self.config.keep_full_image:
            batch["full_image"] = image_batch["image"]
        self._seconds += time.perf_counter() - began
        self._steps += 1
        return batch

    def weigh(self, residual: Float[Tensor, "K C"]) -> Float[Tensor, " K"] | None:
        """The loss weights of the rays last drawn, given their signed errors (None = equal weights)."""
        assert self.selector is not None and self.last_selection is not None
        self.last_selection = self.selector.weigh(self.last_selection, residual[None])
        return None if self.last_selection.weight is None else self.last_selection.weight[0]

    def observe(self, residual: Float[Tensor, "K C"]) -> None:
        """Record the signed errors (prediction - target) of the rays last drawn."""
        began = time.perf_counter()
        assert self.selector is not None and self.last_selection is not None
        self._unobserved.append((self.last_selection, residual))
        self._seconds += time.perf_counter() - began

    def flush_feedback(self) -> None:
        """Report the recorded residuals to the selector, those of all steps that were drawn together in one call."""
        if not self._unobserved:
            return
        assert self.selector is not None
        selections, residuals = zip(*self._unobserved, strict=True)
        observed = selections[-1]
        if len(selections) > 1:
            observed = replace(observed, index=torch.cat([one.index for one in selections], dim=1), weight=None)
        self.selector.observe(observed, Feedback(torch.cat(residuals)[None]))
        self._unobserved.clear()

    # ---- selection ---------------------------------------------------------------------------------------------

    def _is_drawn(self, step: int) -> bool:
        """Whether rays of ``step`` have been drawn ahead, in the number now requested."""
        return bool(self._ahead) and self._ahead[0][0].step == step and self._rays == self.num_rays_per_batch

    def _draw(self, step: int) -> Iterator[tuple[Selection, dict[str, Tensor]]]:
        """Draw the rays of ``step`` and of the steps up to the next ranking at once: on a GPU the cost of drawing is
        the number of kernels, not the number of rays."""
        assert self.grid is not None and self.selector is not None
        self.flush_feedback()
        steps, rays = self._steps_alike(step), self.num_rays_per_batch
        self._rays = rays
        chosen = self.selector.select(step, count=rays * steps)
        # Survivors come first: taking every steps-th draw gives each step the same fraction of them.
        index, weight = (
            None if of_point is None else rearrange(of_point, "1 (k n) -> n 1 k", n=steps)
            for of_point in (chosen.index, chosen.weight)
        )
        assert index is not None
        cells = index.flatten()
        points = self.grid.draw(cells, self.selector.generator)
        place = self.grid.flat(points)
        pixels = {key: values[place] for key, values in self.pixels.items()} | {"indices": points}
        batches = {key: values.split(rays) for key, values in pixels.items()}
        for i in range(steps):
            own_weight, is_key = None if weight is None else weight[i], chosen.is_key and i == 0
            own = Selection(chosen.rows, index[i], own_weight, is_key, step + i)
            yield own, {key: values[i] for key, values in batches.items()}

    def _discard_ahead(self) -> None:
        """Report all residuals and discard the rays drawn ahead, so that the next step draws anew."""
        self.flush_feedback()
        self._ahead.clear()
        self._rays = self.num_rays_per_batch

    def _steps_alike(self, step: int) -> int:
        """Number of steps from ``step`` on that draw with the same odds; 1 while the number of rays changes."""
        assert self.selector is not None
        if self._rays != self.num_rays_per_batch:
            return 1
        # Past the planned end of training any step may be the last.
        left = max(1, self.selector.total_steps + 1 - step)
        return min(self.selector.steps_alike(step), STEPS_AHEAD, left)

    # ---- grids of tiles ----------------------------------------------------------------------------------------

    def _start(self, image_batch: dict[str, Any]) -> None:
        """Flatten the images into one tensor, build the tile grid, and restore the saved state if there is one."""
        images = image_batch["image"]
        device = images[0].device
        in_order = torch.arange(len(images), device=image_batch["image_idx"].device)
        if not torch.equal(image_batch["image_idx"], in_order):
            raise InputError("image_batch", "some of the training images", "all of them in order: use EvosDataManager")
        self.sizes = [(len(image), image.shape[1]) for image in images]
        self.pixels = {
            key: value.flatten(0, 2) if isinstance(value, Tensor) else torch.cat([v.flatten(0, 1) for v in value])
            for key, value in image_batch.items()
            if key != "image_idx" and value is not None
        }
        masked = "mask" in self.pixels and not self.config.ignore_mask
        self.mask = self.pixels["mask"].to(device).squeeze(-1).bool() if masked else None
        saved = self._saved
        if saved is not None:
            self.total_steps = saved["total_steps"]
        side = self.config.tile_side or tile_side(
            self.sizes,
            self.num_rays_per_batch,
            self.total_steps,
            visits=self.config.visits,
            max_tiles=self.config.max_tiles,
        )
        self._build(side if saved is None else saved["side"], device)
        if saved is not None:
            assert self.selector is not None
            self.selector.load_state_dict(unpacked(saved["selector"]))
            self._saved = None

    def _build(self, side: int, device: torch.device) -> None:
        """Build the grid with tiles of ``side`` px and the selector over it."""
        self.grid = build_grid(self.sizes, side, device, self.mask)
        mask, weight = (None if tiles is None else tiles[None] for tiles in (self.grid.usable, self.grid.pixels))
        pool = Pool(1, self.grid.shape, tile=side, mask=mask, weight=weight)
        self.drawn = torch.zeros(pool.cells, device=device)
        self.one = torch.ones(1, device=device)
        config: SelectorConfig = getattr(self.config, self.config.selector)
        needs_target = "target" in SELECTORS[config.name][1].needs
        # Three channels, without alpha.
        target = self.grid.means(self.pixels["image"][:, :3])[None] if needs_target else None
        self.selector = build_selector(
            config, pool, total_steps=self.total_steps, device=device, seed=self.seed, target=target
        )

    # ---- metrics and maps --------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float | Tensor]:
        """The selector's metrics, and the mean milliseconds per step spent in the sampler.

        On a GPU this is host time: the kernels that the sampler launches run asynchronously.
        """
        chosen = {} if self.selector is None else self.selector.metrics()
        return {"sampler_ms": 1000 * self._seconds / max(1, self._steps), **chosen}

    def tile_values(self) -> dict[str, Float[Tensor, " P"]]:
        """The value of each tile by map name: draws since the start or resumption, and the root of the selector's
        cached mean squared error.

        In [0, 1], 1 being the maximum over all images. Empty before the first step; no error map without a cache.
        """
        if self.grid is None or self.selector is None:
            return {}
        found = [self.drawn]
        if self.selector.cache is not None:
            found.append(self.selector.cache.mean_square(self.selector.all_rows)[0].sqrt())
        return {name: values / values.max().clamp(min=1e-9) for name, values in zip(MAPS, found, strict=False)}

    def picture(self, values: Float[Tensor, " P"], image: int) -> Float[Tensor, "H W 3"]:
        """A training image's tiles, coloured by their ``values`` in [0, 1]."""
        assert self.grid is not None
        return colormaps.apply_colormap(self.grid.picture(values, image)[..., None])

    def maps(self, image: int) -> dict[str, Float[Tensor, "H W 3"]]:
        """The pictures of one training image: see ``tile_values``."""
        return {name: self.picture(values, image) for name, values in self.tile_values().items()}

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any] | None:
        """The selector's state, with its error maps in half precision; None before the first step.

        Saving discards rays drawn ahead and loads the rounded maps back, so that the run that saved continues exactly
        as a resumed one does.
        """
        if self.grid is None or self.selector is None:
            return self._saved
        self._discard_ahead()
        state = packed(self.selector.state_dict())
        self.selector.load_state_dict(unpacked(state))
        return {"version": 1, "side": self.grid.side, "total_steps": self.total_steps, "selector": state}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Resume from a saved state at the next step. Raises InputError for another version or strategy."""
        if state is None:
            return
        if state.get("version") != 1:
            raise InputError("pixel sampler state", f"version {state.get('version')}", "version 1")
        if state["selector"]["name"] != self.config.selector:
            raise InputError("selector", self.config.selector, f"{state['selector']['name']}, as in the checkpoint")
        self._unobserved.clear()
        self._discard_ahead()
        self._saved, self.grid, self.selector, self.last_selection = state, None, None, None


@cache
def warn_of_fallback() -> None:
    """Warn once that nerfstudio's sampler draws the rays, not EVOS."""
    CONSOLE.print("[bold yellow]Warning: equirectangular or fisheye cameras: nerfstudio's own sampler draws the rays.")
