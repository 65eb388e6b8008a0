"""Controls of nerfstudio's viewer: training views as photos, or coloured by what was drawn or by the error known."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerDropdown
from torch import Tensor

PHOTO = "photo"
MAPS = ("evos_drawn", "evos_error")
"""Names of the sampler's maps, as in TensorBoard."""


@dataclass
class ShownViews:
    """A data set's cameras with other pictures: what the viewer needs to draw them."""

    dataset: Any
    picture: Callable[[int], Float[Tensor, "H W 3"] | None]
    """A training image's picture; None for its photo."""
    cameras: Any = field(init=False)

    def __post_init__(self) -> None:
        self.cameras = self.dataset.cameras

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        picture = self.picture(index)
        return {"image": self.dataset[index]["image"] if picture is None else picture}


class ViewsControl(ViewerControl):
    """What the training cameras in the viewer show: the dropdown chooses, the button brings it up to date.

    Args:
        dataset: the training views.
        maps: of an image's index, pictures "H W 3" in [0, 1] by name; a missing one is shown as the photo.
    """

    def __init__(self, dataset: Any, maps: Callable[[int], dict[str, Tensor]]) -> None:
        self.dataset, self.maps = dataset, maps
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
        name = self.choice.value
        views = ShownViews(self.dataset, lambda image: None if name == PHOTO else self.maps(image).get(name))
        self.viewer.init_scene(views, self.viewer.train_state)  # type: ignore[arg-type]
