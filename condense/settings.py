"""Reads settings: YAML first, then `key=value` on top of it. A key that a model does not know is refused."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from condense.errors import ConfigError
from condense.example_files import located


class Settings(BaseModel):
    """Base of every settings model: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


def resolve(model: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Settings from a YAML file (or from defaults alone) with `key=value` overrides applied in order.

    Args:
        model: the settings model to fill.
        path: a YAML file or the name of an example, or None for the defaults.
        overrides: "key=value"; nested keys with dots, values read as YAML ("data.image_size=32", "workers=2").

    Raises:
        ConfigError: naming the file and the key.
    """
    values = {} if path is None else read_yaml(Path(path))
    override_(values, overrides)
    return validate(model, values, where=str(path) if path else "the settings")


def override_(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Applies "key=value" texts to nested values, in order; raises ConfigError."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not key=value", "write it as in images_per_class=10")
        assign_(values, key, parse_value(text))


def validate(model: type[S], values: dict[str, Any], *, where: str) -> S:
    """`values` as a settings model; the first thing wrong with them becomes one ConfigError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{where}: unknown key {key!r}", _nearest(model, [str(p) for p in first["loc"]])
            ) from None
        remedy = "" if first["type"] == "missing" else f"got {first['input']!r}"
        raise ConfigError(f"{where}: key {key!r}: {first['msg']}", remedy) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file, or in the example of that name where there is no such file."""
    path = located(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        there = f"there is: {near}; " if near else ""
        raise ConfigError(f"config file {path} does not exist", f"{there}`condense init` lists examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError(
            f"config file {path} holds no mapping of keys to values", "write lines such as source: digits"
        )
    return loaded


def parse_value(text: str) -> Any:
    """Returns one override value, read as YAML; "1e-3" is a number although YAML 1.1 calls it a string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"value {text!r} is not YAML: {error}") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def digest(values: dict[str, Any]) -> str:
    """SHA-256 of plain values in canonical JSON, as hexadecimal."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_passwords(value: Any) -> Any:
    """Returns plain values with the password of every URI in them masked."""
    if isinstance(value, str):
        return re.sub(r"//[^/\s]*@", "//***@", value)
    if isinstance(value, dict):
        return {key: without_passwords(inner) for key, inner in value.items()}
    return [without_passwords(inner) for inner in value] if isinstance(value, list) else value


def assign_(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key of nested values; raises ConfigError where a part of it holds no keys."""
    *parents, last = key.split(".")
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {key!r}: {part!r} holds a value, not keys")
    values[last] = value


def _nearest(model: type[BaseModel], loc: Iterable[str]) -> str:
    known: type[BaseModel] | None = model
    *parents, last = loc
    for part in parents:
        field = known.model_fields.get(part) if known else None
        inner = field.annotation if field else None
        known = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    if known is None:
        return ""
    names = list(known.model_fields)
    close = difflib.get_close_matches(last, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(names)
