"""Refuses to write results into a folder that Ray removes with the job."""

from __future__ import annotations

from pathlib import Path

from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from condense.flow.recipe import FlowFitConfig

UNPACKED = "working_dir_files"  # Ray's folder for what --working-dir ships, in every session folder


def check_places(config: RunConfig | FlowFitConfig) -> None:
    """Refuses to write results into the folder that Ray unpacks a job's --working-dir to, and removes with the job.

    Raises:
        ConfigError: naming the setting.
    """
    for key, place in (
        ("output", str(config.output)),
        ("storage", config.storage),
        ("tracking_uri", config.tracking_uri.removeprefix("sqlite:///")),
    ):
        if "://" not in place and place != "none" and UNPACKED in Path(place).absolute().parts:
            raise ConfigError(
                f"{key}={place} is a folder of this job: Ray removes it with the job",
                f"set {key} to a path or URI that outlives the job and that all nodes share",
            )
