"""The supernet, the networks cut out of it, and their costs."""

from functools import partial

import numpy as np
import pytest
import torch

from evonas.space import Space, SpaceConfig
from evonas.supernet import ClassHead, DenseHead, Network, counted_macs, macs, parameters
from evonas.tasks.detection import DetectionHead
from evos.errors import InputError

SPACE = Space(SpaceConfig(width=16))
SMALL = Space(
    SpaceConfig(depths="[1, 2]", heads="[2, 2]", width=8, mlp_ratio="[1, 2]", state="[4, 8]", expand="[0.5, 1]")
)


def sampled(space: Space, count: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    return [space.smallest, space.largest, *(space.sample(generator) for _ in range(count - 2))]


@pytest.mark.slow
def test_extracted_networks_compute_what_the_supernet_does():
    network = Network(SPACE, DenseHead).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # no bias or scale that is 0 or 1 may hide another's
    pictures = torch.rand(1, 32, 48, 3)
    with torch.no_grad():
        for genome in sampled(SPACE, 200):
            active, alone = network.activate(genome)(pictures), network.extract(genome)(pictures)
            assert (active - alone).abs().max() <= 1e-6 * active.abs().max()
            assert active.std() > 1e-3


def test_extracted_networks_are_copies():
    network = Network(SMALL, DenseHead)
    alone = network.extract(SMALL.smallest)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    for weight in alone.parameters():
        torch.nn.init.zeros_(weight)
    assert all(torch.equal(before[name], weight) for name, weight in network.state_dict().items())
    assert parameters(network.activate(SMALL.smallest)) == sum(weight.numel() for weight in alone.parameters())
    with pytest.raises(ValueError, match="supernet"):
        alone.activate(SMALL.largest)


def test_only_what_is_active_gets_a_gradient():
    network = Network(SMALL, DenseHead).activate(SMALL.smallest)
    network(torch.rand(1, 16, 16, 3)).sum().backward()
    assert network.stages[1]["1"].mlp.up.grad is None
    up = network.stages[1]["0"].mlp.up.grad
    assert up[:16].abs().min() > 0 and up[16:].abs().max() == 0


HEADS = [DenseHead, partial(DenseHead, outputs=5), partial(ClassHead, classes=7), partial(DetectionHead, classes=7)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(32, 48), (50, 37)])
def test_both_counts_of_multiplications_agree(head, size):
    network = Network(SPACE, head)
    for genome in sampled(SPACE, 6):
        found = macs(network.activate(genome), *size)
        assert found == counted_macs(network, *size) == counted_macs(network.extract(genome), *size)


def test_multiplications_of_one_layer_by_hand():
    """Two stages of one block each at 16×16, added up with pencil and paper."""
    network = Network(SMALL, DenseHead).activate(SMALL.smallest)
    stem = 8 * 8 * 27 * 8 + 4 * 4 * 72 * 8
    first = 16 * (9 * 8 + 8 * (2 * 4 + 2 * 4 + 2) + 9 * (4 + 8) + 2 * 4 * 4 + 4 * 8 + 2 * 8 * 8)
    down = 4 * 72 * 16
    second = 4 * (9 * 16 + 4 * 16 * 16 + 2 * 4 * 16 + 2 * 16 * 16)
    head = 16 * (8 * 8 + 72 * 8) + 4 * (16 * 8 + 72 * 8) + 16 * 8
    assert macs(network, 16, 16) == stem + first + down + second + head


def test_answers_have_the_pictures_size():
    assert Network(SMALL, DenseHead)(torch.rand(2, 21, 34, 3)).shape == (2, 21, 34, 1)
    assert Network(SMALL, partial(ClassHead, classes=5))(torch.rand(2, 21, 34, 3)).shape == (2, 5)


def test_a_genome_of_another_space_is_refused():
    with pytest.raises(InputError, match="genome"):
        Network(SMALL, DenseHead).activate(SPACE.largest)
