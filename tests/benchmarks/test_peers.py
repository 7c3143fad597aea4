import sys

import numpy as np
import onnxruntime
import peer
import peers
import pytest
import torch
from torch import nn


def test_each_tool_has_a_program_and_a_pinned_list():
    for name, package in peers.PEERS.items():
        assert (peers.HERE / "peers" / f"{name}.py").exists()
        assert package in peers.pins(peers.packages_of(name))


def test_a_folder_without_images_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        peers.main()
    assert f"{tmp_path}: no files '<class index>_<anything>.jpg'" in capsys.readouterr().err


def test_nothing_to_measure_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "000_a.jpg").touch()
    monkeypatch.setattr(peers, "BUILD", tmp_path)
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path), "--measure-only"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "Run once without --measure-only" in capsys.readouterr().err


def convolution(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels)).eval()


def test_macs_are_those_of_one_image():
    assert peer.macs(convolution(2)) == 3 * 2 * 224 * 224


def test_the_largest_setting_keeps_the_limit():
    limit = 0.7 * peer.macs(convolution(100))
    setting = peer.largest_within(limit, lambda share: convolution(max(1, round(100 * share))))
    assert round(100 * setting) == 70


def test_statistics_are_those_of_all_images():
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    images = 5 + 2 * torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trial = peer.statistics_again(peer.timed("", lambda: network), images)
    outputs = trial.network(images)
    assert outputs.mean().abs() < 1e-3
    assert (outputs.std() - 1).abs() < 0.01
    assert network[0].running_mean.abs().sum() == 0, "the network itself must not change"
    assert trial.cost.seconds > 0


def test_an_exported_file_takes_any_batch(tmp_path):
    network = convolution(4)
    peer.export(network, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    images = torch.randn(3, *peer.SHAPE)
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, network(images).detach().numpy(), atol=1e-5)
