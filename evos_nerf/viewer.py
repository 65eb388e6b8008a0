"""Controls of nerfstudio's viewer: training views as photos, or coloured by what was drawn or by the error known."""

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
    """A data set's cameras with other pictures: what the viewer needs to draw them."""

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
    """What the training cameras in the viewer show: the dropdown chooses, the button brings it up to date.

    Args:
        dataset: the training views.
        sampler: whose maps are shown; one that it does not have (yet) is shown as the photos.
    """

    def __init__(self, dataset: Any, sampler: EvosPixelSampler) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.choice = ViewerDropdown(
            "Training views",
            PHOTO,
            [PHOTO, *MAPS],
            cb_hook=self.show,
            hint="rays drawn or error known, by tile",
        )
        self.again = ViewerButton("Show the latest", cb_hook=self.show)

    def show(self, _: Any = None) -> None:
        """Draw the training cameras again, with the pictures of the choice."""
        values = self.sampler.tile_values().get(self.choice.value)
        views = self.dataset if values is None else ShownViews(self.dataset, partial(self.sampler.picture, values))
        self.viewer.init_scene(views, self.viewer.train_state)  # type: ignore[arg-type]
