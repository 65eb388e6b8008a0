"""How a field is trained, as sets of defaults by name: what image_regression offers and what evonas searches under."""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": {"selector": "full", "lr": 1e-4},
    "fast": {
        "selector": "error",
        "selector.keep_ratio": 0.1,
        "cfs_weight": 0.0,
        "field": "siren",
        "field.init_scale": 1.5,
        "optimizer": "schedule_free",
        "lr": 1e-3,
        "clip_ratio": 1.05,
    },
}
"""Sets of defaults by name; options of a part (``field.init_scale``) apply only with the part that the recipe names."""
