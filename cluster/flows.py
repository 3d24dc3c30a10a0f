"""Keeps flows in MLflow's Model Registry, as flow-NAME.

A config names one as models:/flow-NAME@best or models:/flow-NAME/2. A version holds one safetensors file, and nothing
is unpickled. `best` is the version with the fewest held-out bits among those that were trained on the same data.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from shlex import quote

from cluster import registry
from cluster.registry import BEST
from cluster.tracking_store import connect, refusals, sqlite_file, store_uri
from cluster.versions import FLOW, Version, fetch, is_there, versions_of
from condense.condensation.config import RunConfig
from condense.errors import FlowError
from condense.files import scratch_folder
from condense.flow.fit import FitResult
from condense.flow.pinning import keep_flow
from condense.flow.store import REGISTERED, load_flow
from condense.settings import digest as settings_digest

log = logging.getLogger(__name__)

FILE = "flow.safetensors"
HELD_OUT = "held_out_bits_per_dim"  # tag: of validation images, by which `best` is chosen
TRAINED_ON = "trained_on"  # tag: digest of shape and train images, without which bits are not compared


def register_flow(uri: str, run_id: str, result: FitResult) -> Version:
    """Makes a stored flow the next version of flow-NAME, or finds the one of its digest, and moves `best`.

    Raises:
        FlowError, TrackingError: as `registry.register`.
    """
    card = result.card
    shape = load_flow(result.path).shape
    tags = {
        FLOW.digest: result.digest,
        HELD_OUT: str(card["curve"][-1]["bits_per_dim"]),
        TRAINED_ON: settings_digest({"shape": list(shape), "sources": card["sources"]}),
        "sources": ", ".join(sorted(card["sources"])),
        "shape": "x".join(map(str, shape)),
        "parameters": str(card["parameters"]),
        "cpu_seconds": str(card["cpu_seconds"]),
    }
    name = f"flow-{card['name']}"
    with scratch_folder() as folder:
        shutil.copyfile(result.path, folder / FILE)
        version = registry.register(uri, run_id, name, folder, tags, kind=FLOW)
    update_best(uri, version)
    return registry.show(uri, version.reference, kind=FLOW)


def update_best(uri: str, newest: Version) -> Version:
    """Points `best` at the version with the fewest held-out bits on its data, the newest of equals; returns it.

    Versions on other data than the present `best` do not take its place: their bits are of other images. A version
    whose file is gone is none.
    """
    with refusals(uri, f"cannot read the versions of {newest.name!r}"):
        client = connect(uri)
        versions = [version for version in versions_of(client, newest.name, FLOW) if is_there(client, version)]
    held = next((version for version in versions if BEST in version.aliases), newest)
    rivals = [version for version in versions if version.tags.get(TRAINED_ON) == held.tags.get(TRAINED_ON)]
    scored = [(bits, -version.version) for version in rivals if math.isfinite(bits := version.number(HELD_OUT))]
    return registry.promote(uri, newest.name, -min(scored)[1], kind=FLOW) if scored else held


def list_flows(uri: str) -> list[Version]:
    """Returns every version of every registered flow, by name, the newest version first."""
    return registry.list_versions(uri, FLOW)


COLUMNS = ("flow", "alias", "shape", "parameters", "CPU-seconds", "held-out bits per dim", "sources", "digest")


def listed(uri: str) -> list[tuple[str, ...]]:
    """Returns a row of `COLUMNS` for each version; none where there is no store."""
    file = sqlite_file(store_uri(uri))
    if file is not None and not file.exists():
        return []
    keys = ("shape", "parameters", "cpu_seconds", HELD_OUT, "sources")
    return [
        (
            f"{REGISTERED}{version.reference}",
            ", ".join(version.aliases),
            *(version.tags.get(key, "-") for key in keys),
            version.content_digest[:12],
        )
        for version in list_flows(uri)
    ]


def bring(uri: str, reference: str, folder: Path) -> tuple[Path, Version]:
    """Downloads a flow to `folder` as NAME-VERSION.safetensors and loads it once, so that every check has been made.

    Args:
        reference: models:/NAME@alias or models:/NAME/version.

    Raises:
        FlowError: an unknown reference, or a file that is damaged, no flow, not exact, or not of the registered digest.
        TrackingError: the store cannot be reached or refuses.
    """
    version = registry.show(uri, reference.removeprefix(REGISTERED), kind=FLOW)
    with scratch_folder() as beside:
        fetched = fetch(uri, version, beside)
        if FILE not in fetched:
            raise FlowError(f"{reference} holds no {FILE}", "it was not registered by condense flow fit")
        path = folder / f"{version.name}-{version.version}.safetensors"
        shutil.copyfile(fetched[FILE], path)
    if load_flow(path).digest != version.content_digest:
        raise FlowError(
            f"{reference} holds another flow than the one that was registered", "train and register it again"
        )
    return path, version


def resolved(config: RunConfig) -> RunConfig:
    """Brings a registered flow to the job's storage, and returns the config with the version in place of the alias, and
    the digest.

    Raises:
        FlowError: as `bring`; or `flow_digest` is another's, which happens when an alias has moved.
        OutputError: the storage cannot be written.
    """
    if not config.flow.startswith(REGISTERED) or config.tracking_uri == "none":
        return config
    with scratch_folder() as folder:
        path, version = bring(config.tracking_uri, config.flow, folder)
        content = path.read_bytes()
    digest = version.content_digest
    if config.flow_digest not in (None, digest):
        raise FlowError(
            f"flow {config.flow} is {version.reference} with digest {digest[:16]} now,"
            f" and flow_digest asks for {str(config.flow_digest)[:16]}",
            f"name its version: condense flow list --tracking-uri {quote(config.tracking_uri)}",
        )
    keep_flow(content, digest, config.storage)
    log.info("flow %s is %s (%s)", config.flow, version.reference, digest[:16])
    return config.model_copy(update={"flow": f"{REGISTERED}{version.reference}", "flow_digest": digest})
