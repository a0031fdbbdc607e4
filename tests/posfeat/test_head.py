"""The keypoint head against a direct transcription of its table, and what its last normalisation implies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from matchlib.errors import ShapeError
from matchlib.methods.posfeat.config import NetworkConfig
from matchlib.methods.posfeat.head import KeypointHead
from matchlib.methods.posfeat.resized_conv import conv_of_resized


def head(seed: int = 0, channels: tuple[int, int] = (64, 128)) -> KeypointHead:
    made = KeypointHead(NetworkConfig(head_channels=channels))
    made.initialise(torch.Generator().manual_seed(seed))
    return made


def inputs(batch: int, height: int, width: int, seed: int = 1) -> list[torch.Tensor]:
    """Noise; as the description net gives them: fine values >= -1, early values >= 0."""
    generator = torch.Generator().manual_seed(seed)
    fine, early = (
        torch.randn(batch, channels, height // 4, width // 4, generator=generator) for channels in (128, 64)
    )
    return [F.elu(fine), early.relu(), torch.randn(batch, 3, height, width, generator=generator)]


def transcription(
    state: dict[str, torch.Tensor], fine: torch.Tensor, early: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The table of the layers, row by row."""

    def standardised(x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    def prelu(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, x, state["relu.weight"] * x)

    def conv(name: str, x: torch.Tensor, padding: int = 1) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    coarse = prelu(standardised(conv("conv1", torch.cat([fine, early], 1))))
    resized = F.interpolate(coarse, image.shape[2:], mode="bilinear", align_corners=False)
    joined = torch.cat([resized, standardised(conv("convimg", image))], 1)
    hidden = prelu(standardised(conv("conv2", joined)))
    return (1 + standardised(conv("conv3", hidden, 0)).exp()).log()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (32, 16), (80, 48)])
def test_scores_and_gradients_are_those_of_the_direct_transcription(height, width):
    ours = head().double()
    arguments = [x.double() for x in inputs(2, height, width)]
    state = {name: value.detach().clone().requires_grad_() for name, value in ours.state_dict().items()}
    scores, expected = ours(*arguments), transcription(state, *arguments)
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (scores * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-7, atol=1e-7, msg=name)


def test_single_precision_stays_near_double():
    arguments = inputs(1, 96, 128)
    expected = transcription(head().double().state_dict(), *(x.double() for x in arguments))
    with torch.no_grad():
        assert (head()(*arguments) - expected).abs().max() < 2e-5


def test_under_autocast_scores_are_float32_and_similar():
    arguments = inputs(1, 64, 96)
    with torch.no_grad():
        expected = head()(*arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = head()(*arguments)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().mean() < 0.02


def test_parameters_names_and_shapes_are_those_of_the_release():
    made = head()
    assert sum(parameter.numel() for parameter in made.parameters()) == 628_930
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == {
        "conv1.weight": (192, 192, 3, 3),
        "conv1.bias": (192,),
        "convimg.weight": (64, 3, 3, 3),
        "convimg.bias": (64,),
        "conv2.weight": (128, 256, 3, 3),
        "conv2.bias": (128,),
        "conv3.weight": (1, 128, 1, 1),
        "conv3.bias": (1,),
        "relu.weight": (1,),
    }
    with torch.no_grad():
        assert made(*inputs(1, 480, 640)).shape == (1, 1, 480, 640)


def test_scores_of_an_untrained_head_on_noise_are_distributed_as_published():
    with torch.no_grad():
        scores = head()(*inputs(2, 240, 320))
    assert scores.min() >= 0
    assert scores.median().item() == pytest.approx(0.70, abs=0.02)
    assert (scores > 0.9).double().mean().item() == pytest.approx(0.36, abs=0.02)
    assert (scores > 0.5).double().mean().item() == pytest.approx(0.67, abs=0.02)


def test_the_logits_of_each_image_have_mean_0_and_variance_1():
    with torch.no_grad():
        scores = head(channels=(8, 16))(*inputs(3, 64, 96)).double()
    logits = scores + (-(-scores).exp()).log1p()  # the inverse of softplus
    torch.testing.assert_close(logits.mean((1, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.var((1, 2, 3)), torch.ones(3).double(), rtol=0, atol=2e-3)


def test_images_of_a_batch_do_not_see_each_other():
    made, arguments = head(channels=(8, 16)).double(), [x.double() for x in inputs(3, 32, 48)]
    with torch.no_grad():
        torch.testing.assert_close(made(*arguments)[1:2], made(*(x[1:2] for x in arguments)))


def test_the_descriptor_maps_receive_no_gradient_and_every_parameter_one():
    made = head(channels=(8, 16))
    fine, early, image = (x.requires_grad_() for x in inputs(1, 32, 48))
    made(fine, early, image).square().sum().backward()
    assert fine.grad is None and early.grad is None
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_initial_weights_are_pytorchs_distribution_drawn_from_the_generator():
    first, again, other = (head(seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    for name in ("conv1", "convimg", "conv2", "conv3"):
        bound = 1 / math.sqrt(first[f"{name}.weight"][0].numel())  # kaiming_uniform with a = sqrt(5)
        for value in (first[f"{name}.weight"], first[f"{name}.bias"]):
            assert value.abs().max() <= bound
        assert first[f"{name}.weight"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert first["relu.weight"].item() == 0.25


def test_maps_of_the_wrong_shape_are_refused():
    fine, early, image = inputs(1, 32, 48)
    with pytest.raises(ShapeError, match="fine: expected shape"):
        head()(early, early, image)
    with pytest.raises(ShapeError, match="early: expected shape"):
        head()(fine, early[..., :-1], image)
    with pytest.raises(ShapeError, match="normalised: expected shape"):
        head()(fine, early, image[:, :1])


# ---------------------------------------------------------------- the convolution of an enlarged map
@given(
    size=st.tuples(st.integers(1, 36), st.integers(1, 36)),
    factor=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    corners=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_conv_of_resized_is_the_direct_one_for_any_sizes(size, factor, extra, corners, seed):
    target = (size[0] * factor[0] + extra[0], size[1] * factor[1] + extra[1])
    check_against_direct(size, target, corners, seed)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_conv_of_resized_is_the_direct_one_across_tiles(factor, corners):
    check_against_direct((164, 3), (164 * factor, 3 * factor), corners, seed=0)
    check_against_direct((2, 246), (2 * factor, 246 * factor), corners, seed=1)


def check_against_direct(size, target, corners, seed):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    resized = F.interpolate(small, target, mode="bilinear", align_corners=corners)
    expected = F.conv2d(resized, weight, padding=1)
    found = conv_of_resized(small, weight, target, align_corners=corners)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_conv_of_resized_has_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, w: conv_of_resized(m, w, (12, 16)), (small, weight))


def test_conv_of_resized_names_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="weight: expected shape"):
        conv_of_resized(torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 3, 3), (8, 8))
