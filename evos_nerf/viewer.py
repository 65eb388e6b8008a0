"""Viewer controls: show the training views as photos, or coloured by rays drawn or by estimated error."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerDropdown
from torch import Tensor

from evos_nerf.pixel_sampler import MAPS, EvosPixelSampler

PHOTO = "photo"


@dataclass
class ShownViews:
    """A dataset's cameras with replacement images, in the form that the viewer expects."""

    dataset: Any
    picture: Callable[[int], Float[Tensor, "H W 3"]]
    """A training image's picture."""

    @property
    def cameras(self) -> Any:
        """The data set's."""
        return self.dataset.cameras

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.picture(index)}


class ViewsControl(ViewerControl):
    """Chooses what the training cameras in the viewer show (dropdown) and refreshes it (button).

    Args:
        dataset: the training views.
        sampler: provides the maps; until a map is available, the photos are shown.
    """

    def __init__(self, dataset: Any, sampler: EvosPixelSampler) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.choice = ViewerDropdown(
            "Training views",
            PHOTO,
            [PHOTO, *MAPS],
            cb_hook=self.show,
            hint="rays drawn or estimated error, by tile",
        )
        self.again = ViewerButton("Show the latest", cb_hook=self.show)

    def show(self, _: Any = None) -> None:
        """Redraw the training cameras with the chosen images."""
        values = self.sampler.tile_values().get(self.choice.value)
        views = self.dataset if values is None else ShownViews(self.dataset, partial(self.sampler.picture, values))
        self.viewer.init_scene(views, self.viewer.train_state)  # type: ignore[arg-type]
