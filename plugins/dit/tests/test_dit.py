"""The transformer against the formula written with torch's own parts, the papers' sizes, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from itoflow import DataSpec, IncompatibleError, OptionError
from itoflow_dit.dit import DiT
from itoflow_dit.network import RMSNorm
from itoflow_dit.positions import angles, rotary, rotate, sincos
from itoflow_dit.presets import DiTB, DiTL, DiTS, DiTXL

DATA = DataSpec(shape=(3, 8, 12), classes=4, vector=5)


def scrambled(spec: DiT, data: DataSpec = DATA) -> nn.Module:
    torch.manual_seed(0)
    net = spec.build(data).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)).requires_grad_(False)
    return net


def inputs(n=4, data=DATA):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *data.shape, generator=generator, dtype=torch.float64)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    cond = {"class": torch.arange(n) % 4, "vector": torch.randn(n, 5, generator=generator, dtype=torch.float64)}
    return x, t, cond if data.classes else {}


# -- the papers' sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "millions"), [(DiTS, 33), (DiTB, 130), (DiTL, 458), (DiTXL, 675)])
def test_parameters_are_as_many_as_in_the_paper(preset, millions):
    """Table 4 of DiT: patch 2, latents of 4x32x32, 1000 classes. Counted where tensors have no memory."""
    with torch.device("meta"):
        net = preset().build(DataSpec(shape=(4, 32, 32), classes=1000))
    assert abs(sum(weight.numel() for weight in net.parameters()) / 1e6 / millions - 1) < 0.01


@pytest.mark.parametrize(("patch", "tokens"), [(2, 256), (4, 64), (8, 16)])
def test_patch_sizes_give_the_papers_tokens(patch, tokens):
    with torch.device("meta"):
        net = DiTXL(patch=patch).build(DataSpec(shape=(4, 32, 32)))
    assert net.positions.shape == (tokens, 1152)
    assert net.enter.in_features == 4 * patch**2


# -- the formula ----------------------------------------------------------------------------------------------------


def places(rows, columns, width):
    """Sine-cosine vectors, one by one: (rows, columns, width)."""
    n = width // 4
    p = torch.empty(rows, columns, width, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            for axis, m in enumerate((i, j)):
                for k in range(n):
                    p[i, j, 2 * axis * n + k] = math.sin(m * 10000 ** (-k / n))
                    p[i, j, 2 * axis * n + n + k] = math.cos(m * 10000 ** (-k / n))
    return p


def reference(net, spec, w, p_ij, x, t, cond):
    """adaLN-zero, block by block, with torch's multi-head attention, and tokens cut out one by one."""
    p, width, embed = spec.patch, spec.width, net.embed
    e = t[:, None] * w
    e = embed.second(F.silu(embed.first(torch.cat([e.cos(), e.sin()], dim=1))))
    e = e + embed.label.weight[cond["class"]] + embed.vector(cond["vector"])
    silu = e * torch.sigmoid(e)
    h = []
    for i in range(8 // p):
        for j in range(12 // p):
            token = x[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p].flatten(1)
            h.append(net.enter(token) + p_ij[i, j])
    h = torch.stack(h, dim=1)
    every = F.linear(silu, net.modulation.weight, net.modulation.bias)
    parts = iter(every.split(width, dim=1))

    def modulated(h):
        scale, shift = next(parts), next(parts)
        normal = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return normal * (1 + scale[:, None]) + shift[:, None]

    for block in net.blocks:
        q = modulated(h).transpose(0, 1)
        a, gate = block.attention, next(parts)
        parameters = (a.qkv.weight, a.qkv.bias, None, None, False, 0.0, a.out.weight, a.out.bias)
        out, _ = F.multi_head_attention_forward(q, q, q, width, spec.heads, *parameters, training=False)
        h = h + gate[:, None] * out.transpose(0, 1)
        inner = modulated(h)
        up, down = block.mlp[0], block.mlp[3]
        z = F.linear(inner, up.weight, up.bias)
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        h = h + next(parts)[:, None] * F.linear(z, down.weight, down.bias)
    out = net.leave(modulated(h)).unflatten(-1, (3, p, p))
    y = torch.empty_like(x)
    for i in range(8 // p):
        for j in range(12 // p):
            y[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p] = out[:, i * (12 // p) + j]
    return y


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_output_and_gradient_are_those_of_the_formula(patch):
    spec = DiT(patch=patch, width=24, depth=2, heads=3, frequencies=8)
    net = scrambled(spec)
    w = 1000 * torch.exp(-math.log(10000) / 8 * torch.arange(8, dtype=torch.float64))
    p = places(8 // patch, 12 // patch, 24)
    for buffer, exact in ((net.embed.features.frequencies, w), (net.positions, p.flatten(0, 1))):
        assert torch.equal(buffer, buffer.float())  # made in float32, so the comparison below goes on with exact ones
        torch.testing.assert_close(buffer, exact, rtol=1e-6, atol=1e-6)
        buffer.copy_(exact)
    x, t, cond = inputs()
    x.requires_grad_()
    y, expected = net(x, t, cond), reference(net, spec, w, p, x, t, cond)
    assert ((y - expected).abs().max() / expected.abs().max()).item() < 1e-11
    a, b = (torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0] for z in (y, expected))
    assert ((a - b).abs().max() / b.abs().max()).item() < 1e-11


def test_a_fresh_network_is_zero_and_its_blocks_are_the_identity():
    net = DiT(width=16, depth=3, heads=2).build(DATA)
    x, t, cond = inputs()
    assert bool((net.double()(x, t, cond) == 0).all())
    h = torch.randn(2, 24, 16, dtype=torch.float64)
    for block in net.blocks:
        assert torch.equal(block(h, [torch.zeros(2, 1, 16, dtype=h.dtype)] * 6, None), h)


def test_tokens_are_alike_but_for_their_positions():
    """Without positions the network commutes with a rearrangement of the patches; with them it does not."""
    data = DataSpec(shape=(3, 12))
    net = scrambled(DiT(width=16, depth=2, heads=2, frequencies=8), data)
    x, t, _ = inputs(data=data)
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def shuffled(z):
        return z.unflatten(-1, (6, 2))[:, :, order].flatten(-2)

    assert float((net(shuffled(x), t, {}) - shuffled(net(x, t, {}))).abs().max()) > 1e-2
    net.positions.zero_()
    torch.testing.assert_close(net(shuffled(x), t, {}), shuffled(net(x, t, {})), rtol=1e-10, atol=1e-10)


# -- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(9,), (4, 5)])
def test_rotary_products_depend_on_distances_alone(grid):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    turn = angles(grid, 4, 100.0)
    turn = torch.stack([turn.cos(), turn.sin()])
    n = math.prod(grid)
    products = rotate(q.expand(n, 8), turn) @ rotate(k.expand(n, 8), turn).T
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(n, -1)
    found: dict[tuple[int, ...], float] = {}
    for i in range(n):
        for j in range(n):
            distance = tuple((places[i] - places[j]).tolist())
            assert abs(found.setdefault(distance, float(products[i, j])) - float(products[i, j])) < 1e-12
    values = torch.tensor(list(found.values()))
    assert len(values.unique()) == len(values)  # and every distance, in each direction, gives another one
    torch.testing.assert_close(rotary(grid, 8, 100.0), turn.float())


def test_rotation_keeps_lengths_and_is_by_the_angle():
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    turn = torch.tensor([[math.pi / 2, math.pi / 6]])
    y = rotate(x, torch.stack([turn.cos(), turn.sin()]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 1.0, -1.0, math.sqrt(3)]]))


def test_sincos_tells_all_places_apart():
    p = sincos((16, 16), 64)
    distance = torch.cdist(p, p) + 10 * torch.eye(256)
    assert float(distance.min()) > 0.5
    assert p.norm(dim=1).allclose(torch.full((256,), math.sqrt(32)))


def test_a_rotary_network_sees_distances_alone():
    """Attention of the same six tokens, wherever they stand."""
    spec = DiT(width=16, depth=1, heads=2, frequencies=8, positions="rotary")
    net = scrambled(spec, DataSpec(shape=(2, 24)))
    q = net.blocks[0].attention
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = q(x[None, 2:8], net.turn[:, 2:8])
    second = q(x[None, 2:8], net.turn[:, 5:11])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


# -- normalised queries ---------------------------------------------------------------------------------------------


def test_rms_norm_is_its_formula():
    norm = RMSNorm(5).double()
    with torch.no_grad():
        norm.gain.copy_(torch.arange(1, 6))
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * torch.arange(1, 6)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)


def test_normalised_queries_do_not_feel_the_scale_of_their_projection():
    x, t, cond = inputs()
    changes = []
    for norm in (True, False):
        net = scrambled(DiT(width=16, depth=2, heads=2, frequencies=8, norm_queries=norm))
        before = net(x, t, cond)
        with torch.no_grad():
            for block in net.blocks:
                block.attention.qkv.weight[:32] *= 50
                block.attention.qkv.bias[:32] *= 50
        changes.append(float((net(x, t, cond) - before).abs().max() / before.abs().max()))
    assert changes[0] < 1e-4 < 1e-2 < changes[1]


# -- training, options ----------------------------------------------------------------------------------------------


def test_it_learns_what_needs_attention():
    """The target at each place is the mean over all places, which no token sees alone."""
    torch.manual_seed(0)
    net = DiT(width=32, depth=1, heads=2, frequencies=8).build(DataSpec(shape=(1, 8)))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        x, t = torch.randn(64, 1, 8), torch.rand(64)
        loss = (net(x, t, {}) - x.mean(-1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_dropout_acts_in_training_only():
    net = scrambled(DiT(width=16, depth=2, heads=2, dropout=0.5))
    x, t, cond = inputs()
    assert torch.equal(net(x, t, cond), net(x, t, cond))
    net.train()
    assert not torch.equal(net(x, t, cond), net(x, t, cond))


@pytest.mark.parametrize(
    ("options", "shape", "says"),
    [
        ({}, (5,), "backbone `mlp` for vectors"),
        ({}, (1, 4, 4, 4), "`unet` for volumes"),
        ({"patch": 4}, (1, 6, 9), r"Use patch = 1 or 3, or pad the data to \(1, 8, 12\)"),
        ({"width": 6, "heads": 1}, (1, 8, 8), "needs a width that 4 divides. Given: 6. Use 8"),
        ({"width": 12, "heads": 2, "positions": "rotary"}, (1, 8, 8), "Given: 6. Use 8"),
        ({"width": 3, "heads": 1}, (1, 8), "that 2 divides. Given: 3. Use 4"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(options, shape, says):
    with pytest.raises(IncompatibleError, match=says):
        DiT(**options).build(DataSpec(shape=shape))


def test_heads_share_the_width():
    with pytest.raises(OptionError, match=r"heads = 5 must divide width = 16; 4 does"):
        DiT(width=16, heads=5)


def test_the_attention_backend_is_named_outside_of_the_model():
    x, t, cond = inputs()
    nets = [scrambled(DiT(width=16, depth=2, heads=2, backend=name)) for name in ("auto", "math", "chunked")]
    for net in nets[1:]:
        torch.testing.assert_close(net(x, t, cond), nets[0](x, t, cond), rtol=1e-10, atol=1e-10)
    with pytest.raises(IncompatibleError, match="xformers needs a CUDA device"):
        scrambled(DiT(width=16, heads=2, backend="xformers"))(x, t, cond)
