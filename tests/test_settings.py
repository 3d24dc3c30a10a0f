"""Settings: YAML in, overrides on top, unknown keys refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from condense.errors import ConfigError
from condense.settings import Settings, digest, parse_value, resolve, validate


class Inner(Settings):
    image_size: int | None = Field(32, ge=8)
    root: Path = Path("data")


class Outer(Settings):
    source: str = "digits"
    bits_weight: float = Field(0.0, ge=0)
    workers: int = 0
    data: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert resolve(Outer, None) == Outer()


def test_a_file_sets_keys_and_overrides_win_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "source: mnist\nworkers: 1\ndata: {image_size: 16}\n")
    made = resolve(Outer, path, ["workers=2", "data.image_size=8", "data.image_size=24", "bits_weight=1e-3"])
    assert made == Outer(source="mnist", workers=2, bits_weight=0.001, data=Inner(image_size=24))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert resolve(Outer, write(tmp_path, "")) == Outer()


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("1e-3", 1e-3), ("null", None), ("true", True), ("[1, 2]", [1, 2]), ("mnist", "mnist"), ("", None)],
)
def test_override_values_are_read_as_yaml(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_an_override_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert resolve(Outer, None, ["source=parquet:s3://b/k?region=x"]).source == "parquet:s3://b/k?region=x"


@pytest.mark.parametrize("override", ["workers", "=2"])
def test_an_override_that_is_not_key_value_names_itself(override: str) -> None:
    with pytest.raises(ConfigError, match=f"override '{override}' is not key=value"):
        resolve(Outer, None, [override])


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "workers: 1\n")
    with pytest.raises(ConfigError, match="'workers' holds a value"):
        resolve(Outer, path, ["workers.count=2"])


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = write(tmp_path, "bits_wieght: 1\n")
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, path)
    assert str(path) in str(caught.value)
    assert "'bits_wieght'" in caught.value.problem
    assert "did you mean 'bits_weight'?" in caught.value.remedy


def test_an_unknown_nested_key_names_the_nearest_key_of_its_own_level() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, None, ["data.imagesize=3"])
    assert "'data.imagesize'" in caught.value.problem
    assert "did you mean 'image_size'?" in caught.value.remedy


def test_an_unknown_key_unlike_any_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"qqq": 1}, where="the settings")
    assert caught.value.remedy == "known keys: source, bits_weight, workers, data"


def test_a_value_out_of_range_names_the_key_and_the_value() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, None, ["bits_weight=-1"])
    assert "'bits_weight'" in caught.value.problem
    assert caught.value.remedy == "got -1"


@pytest.mark.parametrize(
    ("text", "match"), [("- 1\n- 2\n", "no mapping"), ("a: [1\n", "not YAML"), ("1: 2\n", "no mapping")]
)
def test_a_file_without_a_mapping_is_refused_by_name(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        resolve(Outer, write(tmp_path, text))
    assert "run.yaml" in caught.value.problem


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read"):
        resolve(Outer, path)


def test_a_missing_file_names_the_ones_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, tmp_path / "rnu.yaml")
    assert "rnu.yaml does not exist" in caught.value.problem
    assert "run.yaml" in caught.value.remedy


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        resolve(Outer, write(tmp_path, "source: !!python/object/apply:os.getcwd []\n"))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Outer().workers = 3  # type: ignore[misc]


def test_the_digest_does_not_depend_on_key_order_but_on_every_value() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_digest_of_a_value_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": math.nan})
