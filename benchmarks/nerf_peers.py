"""Peers of the samplers in nerf.py that live inside nerfstudio's own data manager.

- ``foreground``: nerfstudio's sampler with 90 % of the rays on pixels that are not white.
- ``hsm``: hard sample mining (Korhonen et al., ECCV 2024 workshops, arXiv 2408.03193), of rays instead of the points
  along them: four times the rays are rendered without a graph, and a quarter of them, drawn without replacement by the
  size of their residuals, is trained on.
- ``mcblock``: as far as the abstract of MCBlock goes (Tan et al., arXiv 2504.09878): a tree of pixel blocks for each
  image, begun by its texture, from which blocks are chosen by an upper confidence bound; blocks in which much is wrong
  are divided. A block gives one random pixel, not a cone. What the abstract leaves open is ours.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.data.pixel_samplers import PixelSampler
from torch import Tensor, nn


class ForegroundSampler(PixelSampler):
    """nerfstudio's sampler, but 90 % of the pixels are drawn from those that are not white in any channel."""

    def collate_image_dataset_batch(self, batch: Any, num_rays_per_batch: int, keep_full_image: bool = False) -> Any:
        """As the host's, of a batch whose images have one size."""
        if not hasattr(self, "foreground"):
            self.foreground = (batch["image"] < 1).any(-1).nonzero()
        return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)

    def sample_method(self, batch_size: int, *args: Any, **kwargs: Any) -> Tensor:
        """Pixels (image, y, x)."""
        count = round(0.9 * batch_size)
        drawn = self.foreground[torch.randint(len(self.foreground), (count,))]
        return torch.cat([drawn, super().sample_method(batch_size - count, *args, **kwargs)])


class HardSampler(PixelSampler):
    """Uniform candidates; ``choose`` keeps some of them by their residuals."""

    CANDIDATES = 4
    """Rays that are rendered for one that is trained on."""

    def collate_image_dataset_batch(self, batch: Any, num_rays_per_batch: int, keep_full_image: bool = False) -> Any:
        """As the host's, of the candidates."""
        return super().collate_image_dataset_batch(batch, self.CANDIDATES * num_rays_per_batch, keep_full_image)

    def choose(self, residual: Float[Tensor, "K 3"]) -> Int[Tensor, " N"]:
        """A quarter of the candidates, without replacement, by the size of their residuals."""
        odds = residual.abs().mean(1) + 1e-6
        return torch.multinomial(odds, len(odds) // self.CANDIDATES)


class BlockSampler(PixelSampler):
    """Rectangles of pixels, chosen by an upper confidence bound of their error and divided where it is large."""

    TEXTURE, LARGEST, SMALLEST = 0.05, 32, 2
    """Standard deviation of colours above which blocks are divided at the start; their largest and smallest sides."""

    EXPLORATION = 0.1
    """Weight of the confidence bound beside root mean squared errors, in [0, 1] units."""

    VISITS, EVERY = 4, 64
    """A block is divided after so many visits, if its error is above the mean; looked for every so many steps."""

    def collate_image_dataset_batch(self, batch: Any, num_rays_per_batch: int, keep_full_image: bool = False) -> Any:
        """As the host's, of a batch whose images have one size."""
        if not hasattr(self, "blocks"):
            self.start(batch["image"])
        return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)

    def start(self, images: Float[Tensor, "N H W C"]) -> None:
        """Blocks (image, top, left, height, width) by texture, none of them visited."""
        count, height, width = images.shape[:3]
        side = self.LARGEST
        tops, lefts = torch.arange(0, height, side), torch.arange(0, width, side)
        image, top, left = torch.cartesian_prod(torch.arange(count), tops, lefts).unbind(1)
        blocks = torch.stack((image, top, left, (height - top).clamp(max=side), (width - left).clamp(max=side)), 1)
        moments = torch.stack((images, images.square())).mean(-1).double()
        sums = nn.functional.pad(moments.cumsum(2).cumsum(3), (1, 0, 1, 0))  # of all pixels above and to the left
        final = []
        while len(blocks):
            image, top, left, h, w = blocks.unbind(1)
            corners = ((top + h, left + w, 1), (top, left, 1), (top, left + w, -1), (top + h, left, -1))
            mean, square = sum(sign * sums[:, image, y, x] for y, x, sign in corners) / (h * w)
            rough = ((square - mean.square()).clamp(min=0).sqrt() > self.TEXTURE) & self.divisible(blocks)
            final.append(blocks[~rough])
            blocks = self.divided(blocks[rough])
        self.blocks = torch.cat(final)
        self.errors, self.visits, self.steps = torch.zeros(len(self.blocks)), torch.zeros(len(self.blocks)), 0

    def divisible(self, blocks: Int[Tensor, "B 5"]) -> Tensor:
        """Whether blocks are large enough to be divided."""
        return blocks[:, 3:].amin(1) >= 2 * self.SMALLEST

    def divided(self, blocks: Int[Tensor, "B 5"]) -> Int[Tensor, "Q 5"]:
        """The four quarters of each block, one kind of quarter after the other."""
        image, top, left, h, w = blocks.unbind(1)
        upper, near = h // 2, w // 2
        parts = [
            (image, top, left, upper, near),
            (image, top, left + near, upper, w - near),
            (image, top + upper, left, h - upper, near),
            (image, top + upper, left + near, h - upper, w - near),
        ]
        return torch.cat([torch.stack(part, 1) for part in parts])

    def sample_method(self, batch_size: int, *args: Any, **kwargs: Any) -> Tensor:
        """A random pixel (image, y, x) of each of the blocks of the largest bounds; unvisited blocks come first."""
        total = self.visits.sum().clamp(min=2)
        bound = self.errors + self.EXPLORATION * (total.log() / self.visits.clamp(min=1)).sqrt()
        bound = torch.where(self.visits == 0, 1e6, bound) * (1 + 1e-3 * torch.rand(len(bound)))  # ties by lot
        self.drawn = bound.topk(min(batch_size, len(bound))).indices
        if len(self.drawn) < batch_size:
            more = torch.randint(len(bound), (batch_size - len(self.drawn),))
            self.drawn = torch.cat([self.drawn, more])
        image, top, left, h, w = self.blocks[self.drawn].unbind(1)
        y, x = ((torch.rand(batch_size) * side).long() + start for side, start in ((h, top), (w, left)))
        return torch.stack((image, y, x), 1)

    def observe(self, residual: Float[Tensor, "K 3"]) -> None:
        """Count the errors of the rays last drawn; divide blocks now and then."""
        error = residual.square().mean(1).sqrt()
        self.visits.index_add_(0, self.drawn, torch.ones(len(error)))
        rate = (1 / self.visits[self.drawn]).clamp(min=0.3)  # a moving mean: old errors are those of another model
        self.errors[self.drawn] += rate * (error - self.errors[self.drawn])
        self.steps += 1
        if self.steps % self.EVERY:
            return
        seen = self.visits > 0
        split = (self.visits >= self.VISITS) & (self.errors > self.errors[seen].mean()) & self.divisible(self.blocks)
        parts, error = self.divided(self.blocks[split]), self.errors[split].repeat(4)
        self.blocks = torch.cat([self.blocks[~split], parts])
        self.visits = torch.cat([self.visits[~split], torch.ones(len(parts))])
        self.errors = torch.cat([self.errors[~split], error])


def attach(sampler: PixelSampler, pipeline: Any) -> None:
    """Give a sampler of this file the residuals that it goes by."""
    if isinstance(sampler, BlockSampler):

        def tell(loss: nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
            if pipeline.model.training:
                sampler.observe((arguments[1] - arguments[0]).detach().cpu())

        pipeline.model.rgb_loss.register_forward_pre_hook(tell)
    if isinstance(sampler, HardSampler):
        manager, model = pipeline.datamanager, pipeline.model
        draw = manager.next_train

        def next_train(step: int) -> tuple[Any, dict[str, Tensor]]:
            rays, batch = draw(step)
            with torch.no_grad():
                found = model(rays)
                colours, truth = model.renderer_rgb.blend_background_for_loss_computation(
                    pred_image=found["rgb"],
                    pred_accumulation=found["accumulation"],
                    gt_image=batch["image"].to(model.device),
                )
            chosen = sampler.choose(colours - truth)
            return rays[chosen], {key: values[chosen.to(values.device)] for key, values in batch.items()}

        manager.next_train = next_train


PEERS = {"foreground": ForegroundSampler, "hsm": HardSampler, "mcblock": BlockSampler}
"""By the names that nerf.py calls them."""
