"""The selector in a plain PyTorch loop: a SIREN learns the astronaut from a tenth of its pixels per step.

    python examples/plain_loop.py

Prints the PSNR over all pixels, also for a uniform tenth. With plain Adam, as here, drawing by error does not pay: it
does with clipped gradients and a better optimizer, ``--recipe fast --field siren`` of image_regression/main.py.
"""

import argparse
from collections.abc import Sequence

import torch
from einops import rearrange
from skimage.data import astronaut

from evos import ErrorConfig, Feedback, Pool, SelectorConfig, UniformConfig, build_field, build_selector, field_config
from evos import grid as coordinates
from evos.images import reduce_image
from evos.metrics import psnr


def fit(config: SelectorConfig, size: int, steps: int, device: str) -> float:
    """PSNR in dB after training a SIREN on the points that the config's selector chooses."""
    pixels = reduce_image(torch.from_numpy(astronaut()).float() / 255, size)
    height, width, channels = pixels.shape
    coords = coordinates((height, width), device=device)
    target = rearrange(pixels, "h w c -> 1 (h w) c").to(device)

    field = build_field(field_config("siren", {"init_scale": 1.5}), 2, channels, seed=0, device=device)
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-4)
    selector = build_selector(config, Pool(1, (height, width)), total_steps=steps, device=device, seed=0)
    for step in range(1, steps + 1):
        selection = selector.select(step)  # which points to train on
        prediction = field(selection.gather(coords))  # "P D" -> "1 K C"
        residual = prediction - selection.gather(target)  # in [0, 1] units
        loss = selection.reduce(residual.square().mean(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        selector.observe(selection, Feedback(residual=residual.detach()))

    with torch.no_grad():
        fitted = rearrange(field(coords), "(h w) c -> h w c", h=height).clamp(0, 1).cpu()
    return psnr(fitted, pixels)


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Fit the astronaut from a tenth of its pixels per step.")
    parser.add_argument("--size", type=int, default=128, help="longer side of the photo in pixels")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    for config in (ErrorConfig(keep_ratio=0.1), UniformConfig(keep_ratio=0.1)):
        print(f"{config.name}: {fit(config, args.size, args.steps, args.device):.2f} dB")


if __name__ == "__main__":
    main()
