"""A morphological edge detector: where an image's dilation and erosion differ.

With s the structuring function on a small window, and f the image,

    dilation  (f ⊕ s)[p] = max_k f[p + k] + s[k]        erosion  (f ⊖ s)[p] = min_k f[p + k] − s[k]

are a max-plus and a min-plus convolution of the image with ±s. What is outside the image is no candidate. Checked
against scipy.ndimage.

    python examples/edge_detector.py [--out edge-detector.png]
"""

import argparse

import numpy as np
import torch
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor

from tropigrad.kernels import tropical_conv2d
from tropigrad.perf_reports.page.figures import drawing

INF = float("inf")


def dilation(image: Tensor, structure: Tensor) -> Tensor:
    """max_k image[p + k] + structure[k]: image [H, W], structure [h, w] of odd sizes -> [H, W]."""
    return _convolved(image, structure, "max_plus")


def erosion(image: Tensor, structure: Tensor) -> Tensor:
    """min_k image[p + k] − structure[k]: image [H, W], structure [h, w] of odd sizes -> [H, W]."""
    return _convolved(image, -structure, "min_plus")


def edges(image: Tensor, structure: Tensor) -> Tensor:
    """The morphological gradient, dilation − erosion, [H, W]; not negative where structure's centre is 0."""
    return dilation(image, structure) - erosion(image, structure)


def paraboloid(radius: int, steepness: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """s[k] = −steepness · |k|² on a window [2 radius + 1, 2 radius + 1]: morphology's Gaussian."""
    squares = torch.arange(-radius, radius + 1, dtype=dtype).square()
    return -steepness * (squares.unsqueeze(0) + squares.unsqueeze(1))


def _convolved(image: Tensor, structure: Tensor, semiring: str) -> Tensor:
    if image.dim() != 2 or image.numel() == 0:
        raise ValueError(f"edge_detector: image has shape {tuple(image.shape)}; expected [H, W] with pixels in it")
    if structure.dim() != 2 or not all(size % 2 for size in structure.shape):
        raise ValueError(f"edge_detector: structure has shape {tuple(structure.shape)}; expected [h, w], both odd")
    h, w = structure.shape
    return tropical_conv2d(image[None], structure[None, None], semiring=semiring, padding=(h // 2, w // 2)).squeeze(0)


def draw(image: Tensor, found: Tensor, out: str) -> None:
    with drawing(8, 3.1, ncols=2) as (figure, axes):
        axes[0].imshow(image, cmap="gray")
        axes[0].set_title("Image")
        axes[1].imshow(found, cmap="gray_r", vmax=float(found.quantile(0.99)))
        axes[1].set_title("Dilation − erosion")
        for axis in axes:
            axis.axis("off")
        figure.savefig(out, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="edge-detector.png", help="the picture")
    out = parser.parse_args().out
    image = torch.from_numpy(load_sample_image("china.jpg").mean(-1) / 255)
    structure = paraboloid(radius=2, steepness=0.03)
    found = edges(image, structure)
    outside = {"mode": "constant", "structure": structure.numpy()}
    expected = ndimage.grey_dilation(image.numpy(), cval=-INF, **outside)
    expected -= ndimage.grey_erosion(image.numpy(), cval=INF, **outside)
    np.testing.assert_array_equal(found.numpy(), expected)
    print(f"{expected.size} pixels equal SciPy's; {out}")
    draw(image, found, out)


if __name__ == "__main__":
    main()
