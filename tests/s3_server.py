"""Run a server on this machine that speaks S3: the one of moto, which keeps objects in memory."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = {
    "moto": "moto",
    "flask": "flask",
    "flask_cors": "flask-cors",
    "boto3": "boto3",
    "snakemake_storage_plugin_s3": "snakemake-storage-plugin-s3",
}
BUCKET = "study"
# Where a test project keeps its files in the bucket.
PREFIX = "tiny"
ADDRESS = f"s3://{BUCKET}/{PREFIX}"
_REGION = "us-east-1"
# Any values: the server does not check them.
ACCESS_KEY, SECRET_KEY = "tester", "secret"


def missing(*modules: str) -> str | None:
    """Return the reason for skipping tests that need S3 and these modules, or None."""
    absent = [name for name in (*_PACKAGES, *modules) if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"not installed: {', '.join(_PACKAGES.get(name, name) for name in absent)}"


@dataclass(frozen=True)
class Server:
    """A running server with one empty bucket."""

    address: str
    client: Any

    def keys(self, prefix: str = "") -> list[str]:
        """Return the names of the objects whose names start with `prefix`."""
        pages = self.client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in found for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def upload(self, folder: Path, key: str) -> None:
        """Copy the files of a folder to objects below `key`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{key}/{path.relative_to(folder)}")


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server inside the block, on a port that is free."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name=_REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=BUCKET)
        yield Server(address, client)
    finally:
        server.stop()


def credentials() -> dict[str, str]:
    """Return environment variables from which boto3 takes its credentials."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": _REGION,
        # A proxy does not reach this machine's own address.
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])),
    }
