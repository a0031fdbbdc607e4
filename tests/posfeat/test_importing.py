"""Reading weights in the release's layout."""

from __future__ import annotations

import pytest
import torch

from matchlib.errors import ConfigError, DataError
from matchlib.methods.posfeat.config import NetworkConfig, PoSFeatConfig
from matchlib.methods.posfeat.importing import import_weights
from matchlib.methods.posfeat.model import PoSFeat

SMALL = NetworkConfig(encoder="resnet18", decoder_channels=(16, 8), head_channels=(4, 8), sampling="legacy")
CONFIG = PoSFeatConfig(network=SMALL)


@pytest.fixture
def source() -> PoSFeat:
    model = PoSFeat(CONFIG, with_head=True)
    generator = torch.Generator().manual_seed(5)
    model.backbone.initialise(generator)
    model.head.initialise(generator)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + ("var" in name))
    return model


def as_released(module, prefix=""):
    """With the counters that nn.BatchNorm2d keeps, which our batch norm has not."""
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    counters = [name.replace("running_var", "num_batches_tracked") for name in state if "running_var" in name]
    return state | {name: torch.tensor(100_010) for name in counters}


@pytest.fixture
def folder(source, tmp_path):
    torch.save(as_released(source.backbone), tmp_path / "backbone.pth")
    torch.save(as_released(source.head), tmp_path / "localheader.pth")
    return tmp_path


def test_a_checkpoint_folder_gives_the_whole_model(source, folder):
    state = import_weights(CONFIG, folder)
    assert state.keys() == source.state_dict().keys()
    model = PoSFeat(CONFIG, with_head=True)
    model.load_state_dict(state)
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    ours, theirs = model.eval(), source.eval()
    with torch.no_grad():
        assert torch.equal(ours.maps(image).fine, theirs.maps(image).fine)
        assert torch.equal(ours.scores(image, ours.maps(image)), theirs.scores(image, theirs.maps(image)))


@pytest.mark.parametrize("with_folder", [True, False])
def test_without_a_head_the_state_is_that_of_stage_desc(source, folder, with_folder):
    (folder / "localheader.pth").unlink()
    state = import_weights(CONFIG, folder if with_folder else folder / "backbone.pth")
    assert state.keys() == PoSFeat(CONFIG, with_head=False).state_dict().keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, source.state_dict()[name])
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.requires_grad


def test_the_prefix_of_parallel_training_is_dropped(source, folder):
    plain = import_weights(CONFIG, folder)
    torch.save(as_released(source.backbone, "module."), folder / "backbone.pth")
    torch.save(as_released(source.head, "module."), folder / "localheader.pth")
    prefixed = import_weights(CONFIG, folder)
    assert prefixed.keys() == plain.keys()
    assert all(torch.equal(prefixed[name], plain[name]) for name in plain)


def test_sampling_must_be_the_releases(folder):
    with pytest.raises(ConfigError, match=r"^posfeat\.network\.sampling: expected 'legacy'"):
        import_weights(PoSFeatConfig(), folder)


def test_a_network_of_other_sizes_is_named(folder):
    other = NetworkConfig(encoder="resnet18", decoder_channels=(32, 8), sampling="legacy")
    with pytest.raises(
        DataError, match=r"backbone\.pth.*'upconv3\.conv\.conv\.weight': expected shape \(32, 256"
    ):
        import_weights(PoSFeatConfig(network=other), folder)


def test_a_damaged_head_is_named(source, folder):
    state = as_released(source.head)
    del state["conv3.bias"]
    torch.save(state, folder / "localheader.pth")
    with pytest.raises(DataError, match=r"localheader\.pth.*'conv3\.bias' is missing"):
        import_weights(CONFIG, folder)


def test_what_cannot_be_used_says_what_to_name(folder, tmp_path):
    with pytest.raises(DataError, match=r"got a keypoint head; name the folder"):
        import_weights(CONFIG, folder / "localheader.pth")
    with pytest.raises(DataError, match=r"not found"):
        import_weights(CONFIG, tmp_path / "absent.pth")
    (folder / "backbone.pth").unlink()
    with pytest.raises(DataError, match=r"expected backbone\.pth in this folder"):
        import_weights(CONFIG, folder)


def test_a_file_that_would_run_code_is_refused(folder):
    torch.save({"firstconv.weight": print}, folder / "backbone.pth")
    with pytest.raises(DataError, match=r"without running code"):
        import_weights(CONFIG, folder)
