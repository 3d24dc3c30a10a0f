"""Writes pictures over steps as MLflow keeps them.

A picture is two files of one name. The thumbnail is written last, so where it is, the picture is whole.
"""

from __future__ import annotations

import base64
import re
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from cluster.spool import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

THUMBNAIL = 256  # pixels, as MLflow's own


def send_picture(client: MlflowClient, run_id: str, record: Record) -> None:
    """Does what `log_image` of MLflow 3.17 does, under a name that is the same when it is done again.

    MLflow's own name is random.
    """
    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {record['key']} {record['step']}")
    stem = f"{file_key(record['key'])}+step+{record['step']}+timestamp+{record['time']}+{unique}"
    with tempfile.TemporaryDirectory() as folder:
        whole, thumbnail = Path(folder) / f"{stem}.png", Path(folder) / f"{stem}+compressed.webp"
        whole.write_bytes(base64.b64decode(record["png"]))
        picture = PIL.Image.open(whole)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.save(thumbnail)
        client.log_artifact(run_id, str(whole), "images")
        client.log_artifact(run_id, str(thumbnail), "images")
    client.set_tag(run_id, "mlflow.loggedImages", "true")


def image_steps(paths: Iterable[str]) -> list[tuple[str, int]]:
    """Finds the (key, step) of each picture among artifact paths.

    The thumbnail is written last, so it shows a whole one.
    """
    names = (re.fullmatch(r"images/(.+)\+step\+(\d+)\+timestamp\+.*\.webp", path) for path in paths)
    return [(name[1], int(name[2])) for name in names if name]


def file_key(key: str) -> str:
    """Returns a picture's key as MLflow spells it in file names."""
    return key.replace("/", "~")
