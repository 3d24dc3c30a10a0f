"""Deployment files and secrets."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def made_secrets() -> dict[str, str]:
    printed = subprocess.run(
        [sys.executable, DEPLOY / "make_secrets.py"], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split("=", 1) for line in printed.splitlines())
