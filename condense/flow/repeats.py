"""Finds the flow that an earlier fit of the same recipe on the same data has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condense.errors import FlowError
from condense.flow.mixture import Mixture
from condense.flow.recipe import PLACES, FlowFitConfig
from condense.flow.store import load_card, load_flow


def recipe_of(config: FlowFitConfig) -> dict[str, Any]:
    """Returns the settings that a flow's card states."""
    return config.model_dump(mode="json", exclude={*PLACES, "source"})


def fitted_before(config: FlowFitConfig, mixture: Mixture, file: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns digest and card of the flow in a file if it is whole and a fit of this recipe makes it of this data.

    The train images are read for it, but only where the recipe is the file's.

    Raises:
        SourceError: an image cannot be read.
    """
    try:
        card = load_card(file)
        digest = load_flow(file).digest
        start = None if config.start_from is None else load_card(config.start_from)["digest"]
    except FlowError:
        return None
    started = (card.get("start") or {}).get("digest")
    if card.get("recipe") != recipe_of(config) or started != start:
        return None
    mixture.train()
    return (digest, card) if card["sources"] == mixture.digests else None
