"""Finds datasets and flows by name, here or in MLflow's registry, and says whether a job needs Ray and MLflow."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from condense.flow.recipe import FlowFitConfig
from condense.flow.store import REGISTERED
from condense.synthetic.dataset import PARQUET

STORE = "sqlite:///mlflow.db"  # where MLflow keeps its records, unless said otherwise


def needs_no_cluster(settings: RunConfig | FlowFitConfig) -> bool:
    """Returns whether a job works in this process, with neither Ray nor MLflow.

    Raises:
        ConfigError: a tracking store is asked for and mlflow is not installed.
    """
    alone = settings.workers == 0 and (settings.tracking_uri == "none" or not find_spec("mlflow"))
    if alone and "tracking_uri" in settings.model_fields_set and settings.tracking_uri != "none":
        raise ConfigError(
            f"tracking_uri is {settings.as_dict()['tracking_uri']!r} and mlflow is not installed",
            "pip install 'condense-service[cluster]', or set tracking_uri=none",
        )
    return alone


def flow_file(flow: str, tracking_uri: str, folder: Path) -> str:
    """Returns the reference of a flow; one in MLflow's registry is downloaded to `folder`, and its file returned."""
    if not flow.startswith(REGISTERED) or not find_spec("mlflow"):
        return flow
    from cluster import flows

    return str(flows.bring(tracking_uri, flow, folder)[0])


def dataset_file(reference: str, tracking_uri: str, folder: Path) -> Path:
    """Returns the Parquet file of a condensed dataset; one in MLflow's registry is downloaded to `folder`."""
    path = Path(reference)
    if not path.exists() and path.suffix != ".parquet" and find_spec("mlflow"):
        from cluster import registry

        path = registry.download(tracking_uri, reference, folder)
    return path / PARQUET if path.is_dir() else path
