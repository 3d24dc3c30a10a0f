"""Writes configuration.md from the settings' models: `python docs/generate_configuration.py`.

A test holds the committed page against what this makes.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from condense.condensation.config import RunConfig
from condense.flow.recipe import FlowFitConfig
from condense.synthetic.config import RECIPES, ImagesConfig
from tuning.space import SearchConfig

PAGE = Path(__file__).with_name("configuration.md")

TOP = """# Configuration

Settings are a YAML file and `key=value` on the command line; nested keys have dots, as in `data.image_size=28`.
A key that does not exist is refused, and the message names the nearest one. This page is made from the models by
`python docs/generate_configuration.py`.
"""

MODELS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("A run", "`condense run CONFIG`, `condense estimate CONFIG`, `condense.run`.", RunConfig),
    ("The fit of a flow", "`condense flow fit CONFIG`.", FlowFitConfig),
    ("A search", "`condense tune CONFIG`, `condense.tune`.", SearchConfig),
)


def page() -> str:
    """The whole page."""
    parts = [TOP]
    for title, how, model in MODELS:
        parts.append(f"## {title}\n\n{how}\n")
        parts.append(_table(model, ""))
    return "\n".join(parts)


def _table(model: type[BaseModel], prefix: str) -> str:
    """The keys of a model, and below them a table for each part that has keys of its own."""
    rows, parts = ["| key | values | default | meaning |", "|---|---|---|---|"], []
    made = _made(model)
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        if inner:
            key = f"{prefix}{name}" if typing.get_origin(field.annotation) is not dict else f"{prefix}{name}.FIELD"
            parts.append((key, inner[0], field.description or ""))
            if field.annotation is inner[0]:
                continue
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_values(field)} | {_default(name, field, made)} | {meaning} |")
    text = "\n".join(rows) + "\n"
    if model is ImagesConfig:
        text += _recipes(prefix)
    for key, part, meaning in parts:
        summary = " ".join((part.__doc__ or "").split())
        text += f"\n### `{key}`\n\n{summary or meaning}\n\n{_table(part, f'{key}.')}"
    return text


def _made(model: type[BaseModel]) -> BaseModel | None:
    """A model as its defaults make it, where no key is needed: a recipe may fill in other values than the fields'."""
    try:
        return model()
    except ValidationError:
        return None


def _recipes(prefix: str) -> str:
    """What each recipe of the images fills in."""
    rows = [
        f"| `{recipe}` | {', '.join(f'`{prefix}{key}={value}`' for key, value in values.items())} |"
        for recipe, values in sorted(RECIPES.items())
    ]
    return "\n".join(["\n| recipe | fills in, where you give no value |", "|---|---|", *rows]) + "\n"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models(inner)]


def _values(field: Any) -> str:
    """What the key may be, in words."""
    texts = _types(field.annotation)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([" or ".join(texts), *bounds])


def _types(annotation: Any) -> list[str]:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
    if annotation in names:
        return [names[annotation]]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return [f"`{value}`" for value in inner]
    if origin in (typing.Union, types.UnionType):
        return [text for part in inner for text in _types(part)]
    if origin is tuple:
        return ["list"]
    if origin is dict:
        return ["keys and values"]
    return ["see below"]


def _default(name: str, field: Any, made: BaseModel | None) -> str:
    if field.default is PydanticUndefined:
        return "needed" if field.default_factory is None else "empty"
    value = field.default if made is None else getattr(made, name)
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
