"""The blocks beside literal loops."""

import pytest
import torch
import torch.nn.functional as F

from evonas.blocks import Attention, Block, ElasticMlp, StateSpaceMixer, depthwise, state_space


def literal_state_space(x, weight, write, read):
    """Every pair of places, one after the other."""
    places = x.shape[1]
    found = torch.zeros_like(x)
    for i in range(places):
        for j in range(places):
            match = (read[:, i] * write[:, j]).sum(-1)  # B
            found[:, i] = found[:, i] + match[:, None, None] * weight[:, j, :, None] * x[:, j] / places
    return found


def drawn(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_the_state_space_is_the_literal_double_loop():
    inputs = drawn((2, 7, 3, 4), (2, 7, 3), (2, 7, 5), (2, 7, 5), dtype=torch.float32)
    fast, literal = state_space(*inputs), literal_state_space(*inputs)
    torch.testing.assert_close(fast, literal, rtol=1e-5, atol=1e-5)
    probe = torch.randn_like(fast)
    gradients = [torch.autograd.grad((y * probe).sum(), inputs) for y in (fast, literal)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_state_space_has_right_gradients():
    assert torch.autograd.gradcheck(state_space, drawn((1, 4, 2, 3), (1, 4, 2), (1, 4, 3), (1, 4, 3)))


def test_the_state_space_does_not_depend_on_the_order_of_places():
    x, weight, write, read = drawn((1, 9, 2, 3), (1, 9, 2), (1, 9, 4), (1, 9, 4))
    order = torch.randperm(9)
    torch.testing.assert_close(
        state_space(x[:, order], weight[:, order], write[:, order], read[:, order]),
        state_space(x, weight, write, read)[:, order],
    )


def literal_mixer(mixer: StateSpaceMixer, x, inner, state):
    """The mixer step by step, each projection by itself, head by head."""
    each = inner // mixer.heads
    batch, height, width, _ = x.shape
    found = torch.zeros(batch, height, width, inner, dtype=x.dtype)
    pairs = []
    for two in range(2):
        projected = x @ mixer.into_state[:state, two].T
        pairs.append(F.silu(depthwise(projected, mixer.state_kernel[:state, two], mixer.state_bias[:state, two])))
    write, read = (p.reshape(batch, -1, state) for p in pairs)
    for head in range(mixer.heads):
        values = x @ mixer.into_inner[head, 0, :each].T
        values = F.silu(depthwise(values, mixer.inner_kernel[head, :each], mixer.inner_bias[head, :each]))
        values = values.reshape(batch, -1, 1, each)
        weight = F.softplus(x @ mixer.into_weight[head] + mixer.weight_bias[head]).reshape(batch, -1, 1)
        mixed = literal_state_space(values, weight, write, read) + mixer.skip[head] * values
        gate = F.silu(x @ mixer.into_inner[head, 1, :each].T)
        found[..., head * each : (head + 1) * each] = mixed.reshape(batch, height, width, each) * gate
    scale, shift = mixer.scale[:, :each].flatten(), mixer.shift[:, :each].flatten()
    found = F.layer_norm(found, (inner,), scale, shift)
    return sum(found[..., head * each : (head + 1) * each] @ mixer.out[head, :each] for head in range(mixer.heads))


@pytest.mark.parametrize(("inner", "state"), [(12, 6), (4, 3), (8, 6)])
def test_the_mixer_is_the_literal_one_at_every_size(inner, state):
    mixer = StateSpaceMixer(8, 2, 12, 6).double()
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    fast, literal = mixer(x, inner, state), literal_mixer(mixer, x, inner, state)
    torch.testing.assert_close(fast, literal, rtol=1e-9, atol=1e-9)
    (one,), (other,) = (torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (fast, literal))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_attention_is_torchs_own():
    attention = Attention(12, 3)
    x = torch.randn(2, 3, 5, 12)
    query, key, value = attention.into(x).reshape(2, 15, 3, 3, 4).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 3, 5, 12)
    torch.testing.assert_close(attention(x), attention.out(expected), rtol=1e-5, atol=1e-6)


def test_a_smaller_mlp_uses_the_first_hidden_features():
    mlp, x = ElasticMlp(6, 10), torch.randn(1, 2, 2, 6)
    expected = F.gelu(x @ mlp.up[:4].T + mlp.up_bias[:4]) @ mlp.down[:4] + mlp.down_bias
    torch.testing.assert_close(mlp(x, 4), expected)


@pytest.mark.parametrize("kind", ["mixer", "attention"])
def test_a_block_takes_any_resolution(kind):
    block = Block(kind, 8, 2, 16, 8, 4)
    for size in ((1, 1), (3, 5), (8, 2)):
        assert block(torch.randn(2, *size, 8), 16, 8, 4).shape == (2, *size, 8)
