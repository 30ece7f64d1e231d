"""The same function as diffusers' UNet2DModel, values and gradients, and its checkpoints in both directions."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import itoflow
from itoflow import DataSpec, IncompatibleError, ModelFileError, Objective, Parametrization
from itoflow.parametrization import PredictionName
from itoflow.testing.problems import Exploding, Preserving
from itoflow_unet.checkpoint import Checkpoint, save_checkpoint
from itoflow_unet.diffusers_config import from_config, to_config
from itoflow_unet.diffusers_weights import from_state, to_state
from itoflow_unet.unet import UNet

diffusers = pytest.importorskip("diffusers")


def kinds(*names):
    ups = [name.replace("downsample", "upsample").replace("Downsample", "Upsample") for name in reversed(names)]
    return {"down_block_types": names, "up_block_types": tuple(name.replace("Down", "Up") for name in ups)}


CONFIGS = {
    "ddpm": {
        **kinds("DownBlock2D", "AttnDownBlock2D"),
        "block_out_channels": (32, 64),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    },
    "adm": {
        **kinds("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "block_out_channels": (32, 64, 64),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "attention_head_dim": 16,
        "num_class_embeds": 5,
        "layers_per_block": 1,
    },
    "middle without norm": {
        **kinds("DownBlock2D", "AttnDownBlock2D"),
        "block_out_channels": (32, 64),
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 16,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1.5,
    },
    "ncsnpp": {
        **kinds("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "block_out_channels": (64, 128),
        "time_embedding_type": "fourier",
        "norm_num_groups": None,
        "mid_block_scale_factor": 2**0.5,
        "attention_head_dim": None,
        "layers_per_block": 1,
        "norm_eps": 1e-6,
    },
    "plain": {
        **kinds("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        "sample_size": (8, 16),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 48, 64),
        "norm_num_groups": 16,
        "center_input_sample": True,
        "add_attention": False,
        "layers_per_block": 1,
        "time_embedding_dim": 50,
    },
    "no middle": {
        **kinds("DownBlock2D", "DownBlock2D"),
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "mid_block_type": None,
        "layers_per_block": 1,
    },
    "speed": {
        **kinds("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "block_out_channels": (64, 128, 128),
    },
}


def pair(config):
    """Their network with random weights, ours with the same, and what both are for."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**{"sample_size": 16, **config})
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    size = theirs.config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    data = DataSpec(shape=(theirs.config.in_channels, *sides), classes=theirs.config.num_class_embeds)
    spec = from_config(theirs.config, data)
    ours = spec.build(data)
    ours.load_state_dict(from_state(ours, theirs.state_dict()))
    return theirs, ours, spec, data


def call(theirs, spec, data, x, t):
    """Their output at our time, without their rounding of it."""
    s = spec.time_scale * t + spec.time_shift
    label = torch.arange(len(x)) if data.classes else None
    return theirs(x, s.exp() if spec.time == "fourier" else s, class_labels=label).sample


def inputs(data, n=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *data.shape, generator=generator), torch.linspace(0.1, 0.9, n), {"class": torch.arange(n)}


def relative(a, b, scale=0.0):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / (b.norm() + scale))


def gradients(net):
    return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}


def as_theirs(net):
    """The gradients of our weights under the names of theirs."""
    holder = copy.deepcopy(net)
    with torch.no_grad():
        for value, weight in zip(holder.parameters(), net.parameters(), strict=True):
            value.copy_(weight.grad)
    return to_state(holder)


def whole(gradients, names):
    """All weights as one vector in float64."""
    return torch.cat([gradients[name].detach().double().flatten() for name in names])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_same_function_and_gradients(config):
    """float32, relative in norm; the gradient of the weights as one vector."""
    theirs, ours, spec, data = pair(config)
    x, t, cond = inputs(data)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [call(theirs, spec, data, xs[0], t), ours(xs[1], t, cond)]
    assert relative(outs[1], outs[0]) < 1e-5
    direction = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2))
    for out in outs:
        out.backward(direction)
    assert relative(xs[1].grad, xs[0].grad) < 1e-5
    wanted = gradients(theirs)
    assert relative(whole(as_theirs(ours), wanted), whole(wanted, wanted)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradient_of_each_weight_is_as_exact_as_theirs(config):
    """The distance to diffusers in float64, for the worst of the weights: at most 1e-5, or 2.5 times their own float32.

    Mean of three directions; over each gradient's own norm plus 1e-3 of the largest one. Some weights have a gradient
    of 1e-5 relative accuracy at best in float32, in either: sums over all positions of terms that cancel. The bias of
    keys is left out: its gradient is nothing but rounding, as softmax does not change when a constant is added to its
    row. With channels together in memory torch's normalisation rounds more than with positions together, theirs.
    """
    theirs, ours, spec, data = pair(config)
    exact = copy.deepcopy(theirs).double()
    x, t, cond = inputs(data)
    off = {"ours": 0.0, "theirs": 0.0}
    for seed in range(2, 5):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        for net in (theirs, ours, exact):
            net.zero_grad()
        call(theirs, spec, data, x, t).backward(direction)
        ours(x, t, cond).backward(direction)
        call(exact, spec, data, x.double(), t).backward(direction.double())
        wanted = {name: value for name, value in gradients(exact).items() if not name.endswith("to_k.bias")}
        scale = 1e-3 * max(float(gradient.norm()) for gradient in wanted.values())
        for name, got in {"ours": as_theirs(ours), "theirs": gradients(theirs)}.items():
            off[name] += max(relative(got[key].double(), value, scale) for key, value in wanted.items()) / 3
    print(off)
    assert off["ours"] < max(1e-5, 2.5 * off["theirs"])


def test_a_wrong_weight_is_seen():
    """The comparison above can fail."""
    theirs, ours, spec, data = pair(CONFIGS["plain"])
    x, t, cond = inputs(data)
    with torch.no_grad():
        ours.middle.after.conv_1.weight[0] *= 1.01
        assert relative(ours(x, t, cond), call(theirs, spec, data, x, t)) > 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_back_again(config):
    """Their state and a network of theirs from our options: bit for bit what we started from."""
    theirs, ours, spec, data = pair(config)
    state = to_state(ours)
    assert set(state) == set(theirs.state_dict())
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    again = diffusers.UNet2DModel.from_config(to_config(spec, data))
    again.load_state_dict(state)
    x, t, _ = inputs(data)
    with torch.no_grad():
        assert torch.equal(call(again.eval(), spec, data, x, t), call(theirs.eval(), spec, data, x, t))


@pytest.mark.parametrize("name", ["ddpm", "ncsnpp"])
def test_folders_both_ways(tmp_path, name):
    theirs, ours, spec, data = pair(CONFIGS[name])
    x, t, cond = inputs(data)
    theirs.save_pretrained(tmp_path / "theirs" / "unet")
    loaded = Checkpoint(path=str(tmp_path / "theirs")).build(data).eval()
    save_checkpoint(ours, data, tmp_path / "ours")
    read = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    with torch.no_grad():
        assert torch.equal(loaded(x, t, cond), ours.eval()(x, t, cond))
        assert torch.equal(call(read.eval(), spec, data, x, t), call(theirs.eval(), spec, data, x, t))


class Learned(Objective):
    """That the weights were learned by: what they predict."""

    prediction: PredictionName = "eps"

    def parametrization(self, process, data):
        return Parametrization(prediction=self.prediction, data_std=data.std)

    def __call__(self, field, x0, cond=None, *, generator=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "process", "member"), [("ddpm", Preserving(), "eps"), ("ncsnpp", Exploding(), "score")]
)
def test_composed_it_sees_x_as_it_is(tmp_path, name, process, member):
    """Whatever the standard deviation of the data, and of x: the weights were learned on x itself."""
    theirs, _, spec, data = pair(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    backbone, data = Checkpoint(path=str(tmp_path)), data.replace(std=0.5)
    model = itoflow.compose(process=process, objective=Learned(prediction=member), backbone=backbone, data=data)
    x, t, _ = inputs(data)
    x = x * model.process.kernel(t, x.ndim).sigma.float()
    with torch.no_grad():
        expected = call(theirs, spec, data, x, model.process.network_time(t).float())
        assert relative(getattr(model.eval().field(x, t), member), expected) < 1e-5


def test_old_names_of_attention():
    theirs, ours, _, _ = pair(CONFIGS["ddpm"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".query." in key for key in state)
    converted = from_state(ours, state)
    assert all(torch.equal(converted[key], value) for key, value in ours.state_dict().items())


def test_damaged_folders(tmp_path):
    theirs, _, _, data = pair(CONFIGS["no middle"])
    build = Checkpoint(path=str(tmp_path)).build
    with pytest.raises(ModelFileError, match="No checkpoint at"):
        build(data)
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    save_file({name: value for name, value in whole.items() if name != "conv_in.bias"}, weights)
    with pytest.raises(ModelFileError, match=r"missing: \['conv_in.bias'\]"):
        build(data)
    weights.write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="is damaged"):
        build(data)
    weights.unlink()
    with pytest.raises(ModelFileError, match="no weights as safetensors"):
        build(data)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(IncompatibleError, match=r"config\.json: .*act_fn = 'gelu'"):
        build(data)
    config.write_text("[]")
    with pytest.raises(ModelFileError, match="holds no JSON object"):
        build(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"act_fn": "gelu"}, "SiLU only"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"out_channels": 6}, "in_channels and out_channels differ"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "do not mirror"),
        ({"_class_name": "UNet2DConditionModel"}, "not of a UNet2DModel"),
        ({"cross_attention_dim": 8}, "cross_attention_dim"),
        ({"num_class_embeds": 3}, "num_class_embeds"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups"),
        ({"block_out_channels": None}, "block_out_channels = None is no list of levels"),
        ({"down_block_types": [1, 2]}, "no list of levels"),
        ({"block_out_channels": (33, 66), "norm_num_groups": 3}, "33 channels are odd"),
        ({"downsample_padding": 2}, "downsample_padding = 2"),
        (kinds("DownBlock2D", "ResnetDownsampleBlock2D"), "its levels change in several ways"),
    ],
)
def test_what_cannot_be_converted(change, says):
    config = {**CONFIGS["ddpm"], **change}
    with pytest.raises(IncompatibleError, match=says):
        from_config(config, DataSpec(shape=(3, 16, 16)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resample": "pool"}, "resample = 'pool'"),
        ({"rescale": 2.0}, "rescale = 2.0"),
        ({"resample": "residual", "attention_up": "last"}, "attention_up"),
        ({"resample": "residual", "project_resampled": True}, "project_resampled = True"),
        ({"entry": 16}, "entry = 16"),
        ({"groups": 8, "heads": 2, "multipliers": (1, 2)}, "heads"),
    ],
)
def test_what_diffusers_does_not_have(options, says):
    spec = UNet(**{"channels": 32, "multipliers": (1, 1), "attention": (16, 8), "groups": 8, **options})
    with pytest.raises(IncompatibleError, match=says):
        to_config(spec, DataSpec(shape=(3, 16, 16)))


def test_sides_that_diffusers_cannot_halve_are_refused():
    with pytest.raises(IncompatibleError, match="sides that are multiples of 2"):
        to_config(UNet(channels=32, multipliers=(1, 1), attention=()), DataSpec(shape=(3, 7, 7)))


def test_heads_of_an_attention_that_is_not_there_do_not_count():
    _, _, spec, data = pair({**CONFIGS["plain"], "attention_head_dim": 4})
    assert to_config(spec, data)["add_attention"] is False


def test_weights_of_another_width_are_refused(tmp_path):
    theirs, _, _, data = pair(CONFIGS["no middle"])
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    save_file({**whole, "conv_in.weight": whole["conv_in.weight"][:, :, :2].contiguous()}, weights)
    with pytest.raises(ModelFileError, match=r"conv_in\.weight have shapes"):
        Checkpoint(path=str(tmp_path)).build(data)


def test_configurations_are_json():
    _, _, spec, data = pair(CONFIGS["adm"])
    config = json.loads(json.dumps(to_config(spec, data)))
    assert to_config(from_config(config, data), data) == to_config(spec, data)
