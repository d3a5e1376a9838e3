"""A bundle in an OCI registry, by the client `oras` (extra `registry`): what oci.py lays out, pushed as it is."""

from __future__ import annotations

import hashlib
import re
import tempfile
from functools import partial
from pathlib import Path

from compressor.delivery.oci import MANIFEST_TYPE, write_layout
from compressor.errors import DeviceError, MissingDependencyError, first_line

# Name and tag as the distribution specification has them.
REFERENCE = re.compile(
    r"(?P<host>[\w.-]+(?::\d+)?)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?", re.ASCII
)
_CONNECT_S, _READ_S = 15.0, 60.0
_LOOPBACK = ("localhost", "127.0.0.1")  # where registries speak HTTP without TLS, as container tools take it too


def push(bundle: Path, host: str, name: str, tag: str) -> str:
    """Brings a signed bundle into a registry as `name:tag`, with what the user's container tools keep to log in.

    Returns the digest of its manifest. Raises MissingDependencyError without oras; DeviceError where the registry
    cannot be reached, refuses, or does not have the bundle afterwards; BundleError, SignatureError.
    """
    try:
        from oras.client import OrasClient
        from oras.layout import NewLayout
        from requests import RequestException, get
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "a registry needs the package 'oras', which is not installed; run: pip install 'compressor[registry]'"
        ) from None
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        digest = write_layout(bundle, Path(folder) / "layout", tag)
        reference = f"{host}/{name}:{tag}"
        insecure = host.partition(":")[0] in _LOOPBACK
        client = OrasClient(hostname=host, insecure=insecure)
        client.session.request = partial(client.session.request, timeout=(_CONNECT_S, _READ_S))
        try:
            # oras asks a registry that is not there for minutes, again and again.
            found = get(f"{client.prefix}://{host}/v2/", timeout=_CONNECT_S)
            if found.status_code not in (200, 401):
                raise ValueError(f"/v2/ answers {found.status_code}")
            container = client.get_container(reference)
            client.auth.load_configs(container)
            NewLayout(str(Path(folder) / "layout")).push_to_registry(client, reference, tag)
            url = f"{client.prefix}://{container.manifest_url(tag)}"
            kept = client.do_request(url, headers={"Accept": MANIFEST_TYPE}).content
            if f"sha256:{hashlib.sha256(kept).hexdigest()}" != digest:
                raise ValueError("it took the bundle, and does not have it")
        except (RequestException, ValueError) as error:  # oras tells of an answer that is no success by ValueError
            raise DeviceError(f"oci://{reference}: the registry cannot be used: {first_line(error)}") from None
    return digest
