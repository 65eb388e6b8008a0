"""A nerfstudio pixel sampler driven by a selector: ``num_rays_per_batch`` tiles a step, a random pixel in each.

The selection travels in the batch; the pipeline (``EvosPipeline``) returns it with the residuals of the rays that were
trained on. No ray is rendered for selection alone. Evaluation calls ``sample`` without a step, which is nerfstudio's
own uniform sampling.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from evos.config import check_choice, check_range
from evos.distributed import gather_rows
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
from evos_nerf.rays import RayPool, RaysAhead, evenly
from evos_nerf.tiles import TileGrid, build_grid, largest_count, tile_side

SELECTION = "evos_selection"
"""Where a batch carries the selection that it was drawn from; absent where nerfstudio drew the rays."""

BUNDLE = "evos_ray_bundle"
"""Where a batch carries its rays, if they were generated together with those of other steps."""

STEPS_AHEAD = 64
"""Maximum number of steps whose rays are drawn at once, where feedback in between would not change the odds."""

RAYS_AHEAD = 1 << 18
"""Maximum number of rays that are drawn at once, where a step has fewer: making a ray of a pixel behind a lens takes
about 250 bytes."""

SPARE = 8
"""Where the number of rays changes from step to step, one in so many more is drawn ahead than the first step needs."""

MAPS = ("evos_drawn", "evos_error")
"""Maps of each training image shown in TensorBoard and in the viewer; see EvosPixelSampler.tile_values."""

STRATEGIES = ("tiles", "uniform", "soft", "egra", "expansive")
"""The strategies that can choose rays; the others evaluate all pixels in some or all steps."""

STATE_VERSION = 2
"""Of saved states; 1 had no learning curve."""

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

    max_tiles: int | None = None
    """Maximum number of tiles over all images, at least 1; every image has at least one. None: what a GPU can rank in a
    sixteenth of its memory, at most 2^23; 2^18 on the CPU, which takes longer to rank more than to train on them."""

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
        self.uses_host_sampler = config.selector == HOST
        self.is_fallback = bool(config.is_equirectangular)
        self.total_steps = 30_000
        self.group: Any = None
        """Processes with which errors are shared once a ranking; a gloo group, as numbers on the CPU are shared too."""
        self.ray_generator: Callable[[Tensor], RayBundle] | None = None
        """Makes rays of pixels (image, y, x). With it those of all steps drawn together are generated at once: a lens'
        distortion is inverted by a thousand operations, whatever the number of rays."""
        self.rays: RayPool | None = None
        self.grid: TileGrid | None = None
        self.selector: Selector[Any] | None = None
        self._ahead: RaysAhead | None = None
        self._unobserved: list[tuple[Selection, Tensor]] = []
        self._host_batch: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._seconds, self._steps = 0.0, 0
        self._discard_ahead()

    # ---- what the data manager and the pipeline call -----------------------------------------------------------

    def plan(self, total_steps: int) -> None:
        """Set the length of training, for the schedules; a resumed run keeps its original length."""
        if self._saved is None and self.grid is None:
            self.total_steps = total_steps

    @torch.no_grad()
    def sample(self, image_batch: dict[str, Any] | RayPool, step: int | None = None) -> dict[str, Any]:
        """The pixels to train on at ``step`` (counted from 0), as nerfstudio's sampler returns them, and their
        selection.

        ``image_batch`` holds all training images in the order of their index. Without a step: uniform pixels.
        """
        # Of a fisheye's circle the pixels that the data manager has read know, a batch of the host's does not.
        is_circle = self.config.fisheye_crop_radius is not None and not isinstance(image_batch, RayPool)
        if step is None or self.uses_host_sampler or self.is_fallback or is_circle:
            if self.is_fallback and step is not None:
                warn_of_fallback()
            return self._host_sample(image_batch)
        began = time.perf_counter()
        if self.grid is None:
            self._start(image_batch if isinstance(image_batch, RayPool) else RayPool.of(image_batch))
        rays, follows = self.num_rays_per_batch, self._last_step in (None, step - 1)
        if self._ahead is None or not follows or not self._ahead.has(step + 1, rays):
            self._ahead = self._draw(step + 1, follows)
        selection, batch = self._ahead.at(step + 1, rays)
        self._last_step, self._last_rays = step, rays
        assert selection.index is not None and self.rays is not None
        self.drawn.index_add_(0, selection.index[0], self.one.expand(rays))
        whole: dict[str, Any] = {}
        if self.config.keep_full_image:
            whole["full_image"] = [self.rays.picture(image) for image in range(len(self.rays.sizes))]
        self._seconds += time.perf_counter() - began
        self._steps += 1
        return {**batch, **whole, SELECTION: selection}

    def _host_sample(self, image_batch: dict[str, Any] | RayPool) -> dict[str, Any]:
        """What nerfstudio's sampler draws."""
        if not isinstance(image_batch, RayPool):
            return super().sample(image_batch)
        if self._host_batch is None:
            self._host_batch = image_batch.batch()
        return image_batch.finished(super().sample(self._host_batch))

    def sample_method(self, batch_size: int, *args: Any, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Pixels (image, y, x) as the host draws them, which fails on the mask of one image alone, of several sizes,
        and on masks that leave fewer pixels than it draws. Masks that leave none are ignored."""
        if mask is None or self.config.ignore_mask:
            return super().sample_method(batch_size, *args, mask=mask, **kwargs)
        if len(mask) > 1:
            try:
                return super().sample_method(batch_size, *args, mask=mask, **kwargs)
            except ValueError:  # too few pixels
                pass
        usable = mask[..., 0].nonzero()
        if not len(usable):
            return super().sample_method(batch_size, *args, **kwargs)
        return usable[torch.randint(len(usable), (batch_size,), device=usable.device)]

    def weigh(self, selection: Selection, residual: Float[Tensor, "K C"]) -> Selection:
        """The selection with the loss weights of its rays, given their signed errors; without where they are equal."""
        assert self.selector is not None
        return self.selector.weigh(selection, residual[None])

    def observe(self, selection: Selection, residual: Float[Tensor, "K C"]) -> None:
        """Record the signed errors (prediction - target) of the rays of a selection.

        Raises InputError for a model that returns another number of rays than it was given.
        """
        began = time.perf_counter()
        assert selection.index is not None
        if len(residual) != selection.index.shape[1]:
            raise InputError(
                "model", f"colours of {len(residual)} rays", f"all {selection.index.shape[1]} of the batch"
            )
        self._unobserved.append((selection, residual))
        self._seconds += time.perf_counter() - began

    def flush_feedback(self, *, share: bool = True) -> None:
        """Report the recorded residuals to the selector, those of all steps that were drawn together in one call.

        With several processes each reports those of all: a collective that every process must call, unless ``share``
        is false.
        """
        if not self._unobserved:
            return
        assert self.selector is not None
        selections, residuals = zip(*self._unobserved, strict=True)
        self._unobserved.clear()
        observed, residual = selections[-1], torch.cat(residuals)
        # Soft mining keeps the errors of its own walking points; others' would be of no use to it.
        shares = share and self.group is not None and "coord_grad" not in self.selector.needs
        if len(selections) > 1 or shares:
            index = torch.cat([one.index for one in selections], dim=1)
            if shares and self.selector.cache is not None:
                index, residual = (gather_rows(rows, self.group) for rows in (index[0], residual))
                index = index[None]
            observed = replace(observed, index=index, weight=None)
        self.selector.observe(observed, Feedback(residual[None]))

    # ---- selection ---------------------------------------------------------------------------------------------

    def _draw(self, step: int, follows: bool) -> RaysAhead:
        """Draw the rays of ``step`` and, if it ``follows`` the last one, of the steps up to the next ranking."""
        assert self.grid is not None and self.selector is not None and self.rays is not None
        alike = self._steps_alike(step)
        if step >= self._until:  # feedback in between would not change the odds
            self.flush_feedback()
            self._until = step + alike
        steps, rays = alike if follows else 1, self.num_rays_per_batch
        changes = self._last_rays not in (None, rays)  # perhaps in every step: instant-ngp's does
        if changes:
            rays += rays // SPARE
        chosen = self.selector.select(step, count=rays * steps)
        assert chosen.index is not None
        # Survivors come first: taking every steps-th draw gives each step the same fraction of them.
        cells = rearrange(chosen.index, "1 (k n) -> n k", n=steps)
        if changes:
            cells = cells[:, evenly(rays, cells.device)]
        points = self.grid.draw(cells.flatten(), self.selector.generator)
        batch: dict[str, Any] = {
            key: values.unflatten(0, (steps, rays)) for key, values in self.rays.gather(points).items()
        }
        if self.ray_generator is not None:
            batch[BUNDLE] = self.ray_generator(batch["indices"].flatten(0, 1)).reshape((steps, rays))
        return RaysAhead(step, chosen, cells, batch, changes)

    def _discard_ahead(self) -> None:
        """Discard the rays drawn ahead, so that the next step draws anew, as a resumed run does."""
        self._ahead, self._last_step, self._last_rays, self._until = None, None, None, 0

    def _steps_alike(self, step: int) -> int:
        """Number of steps from ``step`` on that draw with the same odds."""
        assert self.selector is not None
        # Past the planned end of training any step may be the last.
        left = max(1, self.selector.total_steps + 1 - step)
        fitting = max(1, RAYS_AHEAD // self.num_rays_per_batch)
        return min(self.selector.steps_alike(step), STEPS_AHEAD, fitting, left)

    # ---- grids of tiles ----------------------------------------------------------------------------------------

    def _start(self, rays: RayPool) -> None:
        """Build the tile grid over ``rays`` and the selector over it; restore a saved state of such images."""
        self.rays, saved = rays, self._saved
        self._saved = None
        if saved is not None:
            self.total_steps = saved["total_steps"]
            if saved.get("sizes", rays.sizes) != rays.sizes:
                saved = None
                warn(
                    "images of other sizes than in the checkpoint: its weights go on, its choice of rays begins afresh"
                )
        side = self.config.tile_side or tile_side(
            rays.sizes,
            self.num_rays_per_batch,
            self.total_steps,
            visits=self.config.visits,
            max_tiles=self.config.max_tiles or largest_count(rays.device),
        )
        self._build(rays, side if saved is None else saved["side"])
        if saved is not None:
            assert self.selector is not None
            self.selector.load_state_dict(unpacked(saved["selector"]))

    def _build(self, rays: RayPool, side: int) -> None:
        """Build the grid with tiles of ``side`` px and the selector over it."""
        self.grid = build_grid(rays.sizes, side, rays.device, None if self.config.ignore_mask else rays.drawable)
        mask, weight = (None if tiles is None else tiles[None] for tiles in (self.grid.usable, self.grid.pixels))
        pool = Pool(1, self.grid.shape, tile=side, mask=mask, weight=weight)
        self.drawn = torch.zeros(pool.cells, device=rays.device)
        self.one = torch.ones(1, device=rays.device)
        config: SelectorConfig = getattr(self.config, self.config.selector)
        target = None
        if "target" in SELECTORS[config.name][1].needs:  # three channels, without alpha
            target = self.grid.means(rays.picture(image)[..., :3] for image in range(len(rays.sizes)))[None]
        self.selector = build_selector(
            config, pool, total_steps=self.total_steps, device=rays.device, seed=self.seed, target=target
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
        if self.grid is None or self.selector is None or self.rays is None:
            return self._saved
        self.flush_feedback(share=False)
        self._discard_ahead()
        state = packed(self.selector.state_dict())
        self.selector.load_state_dict(unpacked(state))
        return {
            "version": STATE_VERSION,
            "side": self.grid.side,
            "sizes": self.rays.sizes,
            "total_steps": self.total_steps,
            "selector": state,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Resume from a saved state at the next step. Raises InputError for another version or strategy."""
        if state is None:
            return
        if state.get("version") != STATE_VERSION:
            raise InputError("pixel sampler state", f"version {state.get('version')}", f"version {STATE_VERSION}")
        if state["selector"]["name"] != self.config.selector:
            raise InputError("selector", self.config.selector, f"{state['selector']['name']}, as in the checkpoint")
        self._unobserved.clear()
        self._discard_ahead()
        self._saved, self.grid, self.selector = state, None, None


def warn(text: str) -> None:
    """Print a warning, in one line."""
    CONSOLE.print(f"[bold yellow]Warning: {text}.", soft_wrap=True)


@cache
def warn_of_fallback() -> None:
    """Warn once that nerfstudio's sampler draws the rays, not EVOS."""
    warn("equirectangular cameras: nerfstudio's own sampler draws the rays")
