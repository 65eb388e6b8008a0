"""Blocks of the networks, each elastic: it can run with fewer features than its weights hold.

All pictures are laid out (batch, height, width, features). Every weight is stored with its elastic axes as axes of
their own, so that a smaller block uses the first entries along each axis (``leading``), and cutting a network out of
the supernet is the same slice of every weight.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from evonas.space import Kind

Picture = Float[Tensor, "B H W C"]


def leading(weight: Tensor, *sizes: int) -> Tensor:
    """The first entries of a weight along its first axes: a view."""
    for axis, size in enumerate(sizes):
        weight = weight.narrow(axis, 0, size)
    return weight


def weights(*shape: int, fan_in: int) -> nn.Parameter:
    """Normal initial weights that keep the variance of ``fan_in`` inputs."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))


def depthwise(x: Picture, kernel: Float[Tensor, "C 3 3"], bias: Float[Tensor, "C"]) -> Picture:
    """Each feature's own 3×3 convolution, padded with zeros."""
    planes = rearrange(x, "B H W C -> B C H W")
    found = F.conv2d(planes, kernel[:, None], bias, padding=1, groups=len(kernel))
    return rearrange(found, "B C H W -> B H W C")


def state_space(
    x: Float[Tensor, "B L K D"],
    weight: Float[Tensor, "B L K"],
    write: Float[Tensor, "B L N"],
    read: Float[Tensor, "B L N"],
) -> Float[Tensor, "B L K D"]:
    """Non-causal state-space duality (VSSD, arXiv 2407.18559, eq. 10): every place reads one state that all have
    written, y_i = read_i · mean_j weight_j write_j ⊗ x_j, for each of K heads.

    Two matrix products, linear in the L places. The paper sums over places; the mean only differs by a constant, which
    the normalisation after it takes out, and keeps half precision in range at any resolution.
    """
    places, heads = x.shape[1:3]
    values = rearrange(x * weight[..., None], "B L K D -> B L (K D)")
    state = write.mT @ values / places
    return rearrange(read @ state, "B L (K D) -> B L K D", K=heads)


class StateSpaceMixer(nn.Module):
    """Mixes places through a non-causal state space; elastic in its inner features and in its state.

    Inner features are K heads of D each. Their inputs and gates, what places write and read, and the weight of each
    place are one projection of the width.
    """

    def __init__(self, width: int, heads: int, inner: int, state: int) -> None:
        super().__init__()
        self.width, self.heads, self.inner, self.state = width, heads, inner, state
        each = inner // heads
        self.into_inner = weights(heads, 2, each, width, fan_in=width)  # inputs and gates
        self.into_state = weights(state, 2, width, fan_in=width)  # write and read
        self.into_weight = weights(heads, width, fan_in=width)
        self.weight_bias = nn.Parameter(torch.full((heads,), math.log(math.e - 1)))  # softplus of it is 1
        self.inner_kernel, self.inner_bias = (
            weights(heads, each, 3, 3, fan_in=9),
            nn.Parameter(torch.zeros(heads, each)),
        )
        self.state_kernel, self.state_bias = weights(state, 2, 3, 3, fan_in=9), nn.Parameter(torch.zeros(state, 2))
        self.skip = nn.Parameter(torch.ones(heads))
        self.scale, self.shift = nn.Parameter(torch.ones(heads, each)), nn.Parameter(torch.zeros(heads, each))
        self.out = weights(heads, each, width, fan_in=inner)

    def forward(self, x: Picture, inner: int, state: int) -> Picture:
        """``inner`` features, a multiple of the heads, and a state of dimension ``state``."""
        height, width = x.shape[1:3]
        heads, each = self.heads, inner // self.heads
        projection = torch.cat(
            [
                leading(self.into_inner[:, 0], heads, each).flatten(0, 1),
                leading(self.into_state, state).flatten(0, 1),
                leading(self.into_inner[:, 1], heads, each).flatten(0, 1),
                self.into_weight,
            ]
        )
        mixed, gate, weight = F.linear(x, projection).split([inner + 2 * state, inner, heads], -1)
        kernel = torch.cat(
            [leading(self.inner_kernel, heads, each).flatten(0, 1), leading(self.state_kernel, state).flatten(0, 1)]
        )
        bias = torch.cat([leading(self.inner_bias, heads, each).flatten(), leading(self.state_bias, state).flatten()])
        mixed = F.silu(depthwise(mixed, kernel, bias)).flatten(1, 2)
        values, pairs = mixed.split([inner, 2 * state], -1)
        values = rearrange(values, "B L (K D) -> B L K D", K=heads)
        write, read = rearrange(pairs, "B L (N two) -> two B L N", two=2)
        weight = F.softplus(weight.flatten(1, 2) + self.weight_bias)
        found = state_space(values, weight, write, read) + self.skip[:, None] * values
        found = rearrange(found, "B (H W) K D -> B H W (K D)", H=height, W=width)
        scale, shift = leading(self.scale, heads, each).flatten(), leading(self.shift, heads, each).flatten()
        found = F.layer_norm(found * F.silu(gate), (inner,), scale, shift)
        return found @ leading(self.out, heads, each).flatten(0, 1)


class Attention(nn.Module):
    """Softmax attention between all places; nothing in it is elastic."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Picture) -> Picture:
        """The same shape."""
        height, width = x.shape[1:3]
        query, key, value = rearrange(self.into(x), "B H W (three K D) -> three B K (H W) D", three=3, K=self.heads)
        # Plain products: counters of operations do not see into the fused kernel on the CPU.
        odds = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return self.out(rearrange(odds @ value, "B K (H W) D -> B H W (K D)", H=height, W=width))


class ElasticMlp(nn.Module):
    """Two layers with a GELU between them; elastic in its hidden features."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.up, self.up_bias = weights(hidden, width, fan_in=width), nn.Parameter(torch.zeros(hidden))
        self.down, self.down_bias = weights(hidden, width, fan_in=hidden), nn.Parameter(torch.zeros(width))

    def forward(self, x: Picture, hidden: int) -> Picture:
        """With ``hidden`` features between."""
        found = F.gelu(F.linear(x, leading(self.up, hidden), leading(self.up_bias, hidden)))
        return found @ leading(self.down, hidden) + self.down_bias


class Block(nn.Module):
    """A convolution that tells places apart, a mixer of places, and an MLP, each added to what came in."""

    def __init__(self, kind: Kind, width: int, heads: int, hidden: int, inner: int, state: int) -> None:
        super().__init__()
        self.kind = kind
        self.kernel, self.bias = weights(width, 3, 3, fan_in=90), nn.Parameter(torch.zeros(width))
        self.mixer_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = StateSpaceMixer(width, heads, inner, state) if kind == "mixer" else Attention(width, heads)
        self.mlp = ElasticMlp(width, hidden)

    def forward(self, x: Picture, hidden: int, inner: int, state: int) -> Picture:
        """With these features and, in a block with a state space, this state."""
        x = x + depthwise(x, self.kernel, self.bias)
        sizes = (inner, state) if self.kind == "mixer" else ()
        x = x + self.mixer(self.mixer_norm(x), *sizes)
        return x + self.mlp(self.mlp_norm(x), hidden)


class Convolution(nn.Module):
    """A 3×3 convolution and a layer norm over features; the stride is 1 or 2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Picture) -> Float[Tensor, "B h w D"]:
        """Half the height and width, rounded up, where the stride is 2."""
        found = self.convolution(rearrange(x, "B H W C -> B C H W"))
        return self.norm(rearrange(found, "B C H W -> B H W C"))
