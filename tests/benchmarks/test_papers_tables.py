"""Parts of `benchmarks/papers_tables.py`, which needs an hour for the networks of the papers."""

import pickle
from collections import OrderedDict
from pathlib import Path

import papers_page
import papers_rows
import papers_tables
import pytest
import torch
from lpips_weights import NumpyOnly
from papers_networks import NETWORKS, PAPERS, calibration_images, random_kernel
from torch import nn

from lowrank import UserError
from lowrank.compression.in_memory import Compression
from lowrank.compression.module_network import ModuleNetwork
from lowrank.config.factorize import FactorizeSettings
from lowrank.factorize import evbmf_rank, get_factorization
from lowrank.onnx_files.counts import count
from lowrank.onnx_files.export import export_onnx
from lowrank.ranks.any_rule import rank_settings
from lowrank.tasks import get_task
from lowrank.zoo.registry import NetworkSpec

SPEC = NetworkSpec("small", (3, 16, 16), 10)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3, padding=1),
            conv2=nn.Conv2d(32, 32, 3, padding=1),
            pool=nn.AvgPool2d(8),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * 4, 10),
        )
    ).eval()
    network.conv2.weight.data = random_kernel((32, 32, 9)).reshape(32, 32, 3, 3)
    return network


def test_random_kernels_have_evbmf_ranks_like_trained_ones():
    torch.manual_seed(0)
    kernel = random_kernel((128, 64, 9))
    assert kernel.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=1e-4)
    spectra = get_factorization("tucker2").spectra(kernel.numpy().reshape(128, 64, 3, 3))
    # conv2_1 of the trained VGG-16, of the same shape, has (33, 39).
    assert [evbmf_rank(spectrum)[0] for spectrum in spectra] == pytest.approx([33, 39], abs=15)
    noise = torch.randn(128, 64, 3, 3).numpy()
    spectra = get_factorization("tucker2").spectra(noise)
    assert [evbmf_rank(spectrum)[0] for spectrum in spectra] == [0, 0]


def test_pickles_that_would_run_code_are_refused(tmp_path: Path):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps({"run": print}))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="print"):
        NumpyOnly(file).load()


def test_the_largest_number_within_a_limit():
    assert papers_rows.largest_within(0.5, range(10), lambda number: number / 10) == 5
    assert papers_rows.largest_within(0.0, range(3, 10), lambda number: number / 10) == 3


def test_scaled_ranks_stay_within_full_ranks():
    network = ModuleNetwork.of(small_network(), SPEC.input_shape, get_task("classification"))
    compression = Compression.of(network, FactorizeSettings(conv="tucker2"))
    evbmf = compression.plan(rank_settings({"select": "vbmf", "negligible": 0}))
    (chosen,) = (layer.chosen for layer in evbmf)
    doubled = tuple(min(2 * rank, 32) for rank in chosen)
    assert papers_rows.scaled(compression, evbmf, 2.0) == {"conv2": doubled}
    assert papers_rows.scaled(compression, evbmf, 100.0) == {"conv2": (32, 32)}
    assert papers_rows.scaled(compression, evbmf, 0.001) == {"conv2": (1, 1)}


def test_times_and_macs_by_kind_of_a_compressed_network(tmp_path: Path):
    network = ModuleNetwork.of(small_network(), SPEC.input_shape, get_task("classification"))
    compression = Compression.of(network, FactorizeSettings(conv="tucker2"))
    rule = rank_settings({"select": "fixed", "table": {"conv2": (8, 8)}})
    path = tmp_path / "compressed.onnx"
    export_onnx(compression.at(rule)[0].module, SPEC, path)
    kinds = papers_tables.kinds_of(path)
    assert kinds == {
        "conv1": "convolution",
        "conv2.0": "pointwise",
        "conv2.1": "convolution",
        "conv2.2": "pointwise",
        "fc": "linear",
    }
    milliseconds = papers_tables.Measurements.of(1).milliseconds_by_layer(path)
    sums = papers_tables.by_kind(milliseconds, kinds)
    assert sum(sums.values()) == pytest.approx(sum(milliseconds.values()), abs=1e-3)
    assert min(sums[kind] for kind in ("pointwise", "convolution", "linear")) > 0


def test_factors_count_for_their_layer():
    def entry(layer: str, kind: str, ms: float, macs: int) -> dict:
        return {"layer": layer, "kind": kind, "ms": ms, "macs": macs}

    original = [entry("a.conv", "convolution", 4.0, 90), entry("rest", "rest", 1.0, 0)]
    compressed = [
        entry("a.conv.0", "pointwise", 0.5, 10),
        entry("a.conv.1", "convolution", 1.5, 20),
        entry("rest", "rest", 2.0, 0),
    ]
    layer, rest = papers_tables.layer_records(original, compressed)
    assert (layer["compressed_ms"], layer["pointwise_ms"]) == (2.0, 0.5)
    assert (layer["speedup"], layer["macs_ratio"], rest["speedup"]) == (2.0, 3.0, 0.5)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch) -> Path:
    """Let a small network take the place of those of the papers, with files in a folder."""
    networks = papers_rows.papers_networks
    monkeypatch.setattr(networks, "FOLDER", tmp_path)
    monkeypatch.setattr(networks, "network_with_weights", lambda name: (SPEC, small_network()))
    return tmp_path


@pytest.mark.slow
def test_rows_are_built_measured_and_not_built_again(in_folder: Path):
    files = papers_rows.Files("googlenet", [], 20)
    titles = papers_rows.rows_of("googlenet")
    assert list(titles) == ["original", "kim", "kim_same_macs", "kim_same_time"]
    for row in ("original", "kim", "kim_same_macs"):
        files.build(row, lambda row: 1.0)
    before, after = PAPERS["kim"]["networks"]["googlenet"]["macs_millions"]
    row = papers_tables.Measurements.of(1).of_row(files, "kim", titles["kim"])
    original, compressed = (count(files.in_float(row)).macs for row in ("original", "kim"))
    assert row["macs"] == compressed == sum(row["macs_by_kind"].values())
    assert 0.9 * after / before < compressed / original <= after / before
    same = files.facts("kim_same_macs")
    assert same["macs_share"] <= same["target"]["macs"] == row["macs_share"]
    cells = papers_page._one_thread("kim", row, None)
    assert cells["than int8"].startswith(f"{row['int8_both']['one']['faster'][0]:.2f}x")
    written = files.in_float("kim").stat().st_mtime_ns
    files.build("kim", lambda row: 1.0)
    assert files.in_float("kim").stat().st_mtime_ns == written
    # A row that is no faster has no network of the same latency.
    files.build("kim_same_time", lambda row: 1.0)
    assert "no faster than the original" in files.facts("kim_same_time")["not_built"]


@pytest.mark.slow
def test_cp_has_the_papers_ratio_of_parameters(in_folder: Path):
    files = papers_rows.Files("alexnet", [], 20)
    for row in ("original", "astrid"):
        files.build(row, lambda row: 1.0)
    before, after = (count(files.in_float(row)).parameters for row in ("original", "astrid"))
    ratio = PAPERS["astrid"]["networks"]["alexnet"]["weights_ratio"]
    assert ratio <= before / after < 1.15 * ratio


def test_files_that_were_not_built_give_a_message(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(papers_rows.papers_networks, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="without --measure-only"):
        papers_rows.Files("alexnet", [], 1).facts("kim")


def test_random_weights_get_noise_even_with_photos():
    spec = NetworkSpec("small", (3, 8, 8), 10)
    what, batches = calibration_images("googlenet", spec, [Path("missing.jpg")], 20)
    assert (what, [len(batch) for batch in batches]) == ("20 of noise", [16, 4])


def test_the_papers_ratios_belong_to_the_papers_times():
    for figures in PAPERS["kim"]["networks"].values():
        before, after = figures["milliseconds"]
        assert before / after == pytest.approx(figures["faster"], abs=0.02)
    assert PAPERS["kim"]["networks"].keys() <= NETWORKS.keys()


def test_a_row_that_was_not_built_stays_in_the_tables():
    record = {"title": "the same time", "not_built": "no factors reach it"}
    assert papers_page._counts("kim_same_time", record, None)["parameters"] == "not built"
    assert papers_page._one_thread("kim_same_time", record, None)["float, ms"] == "not built"
