"""Folders on S3, which the plugin sees only by their files."""

import logging
from pathlib import Path

import pytest
from s3_server import BUCKET, Server

from lowrank.graph.storage import _ask_for_folders_again

pytestmark = pytest.mark.seconds


def test_a_folder_that_another_process_has_made_is_seen(server: Server, tmp_path: Path):
    from snakemake_storage_plugin_s3 import StorageProvider, StorageProviderSettings

    _ask_for_folders_again()
    provider = StorageProvider(
        logger=logging.getLogger("test"),
        local_prefix=tmp_path / "copies",
        settings=StorageProviderSettings(endpoint_url=server.address),
        keep_local=False,
        retrieve=True,
        is_default=True,
        wait_for_free_local_storage=None,
    )
    folder = provider.object(f"s3://{BUCKET}/tiny/int8")
    assert not folder.exists()
    (tmp_path / "made").mkdir()
    (tmp_path / "made/u8.onnx").write_text("network")
    server.upload(tmp_path / "made", "tiny/int8")
    assert folder.exists()
    folder.local_path().parent.mkdir(parents=True)
    folder.retrieve_object()
    assert (folder.local_path() / "u8.onnx").read_text() == "network"
    folder.remove()
    assert not folder.exists()
