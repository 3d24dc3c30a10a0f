"""Folders for a while, whose process may be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from condense.errors import OutputError
from condense.files import SCRATCH, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from condense.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "notes").write_text("mine")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_scratch_folder_that_a_killed_process_left_goes_with_the_next_and_no_other_does(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (f"{SCRATCH}results", "condense-scratch", f"{SCRATCH}ABCDEFGH")]
    for other in others:
        other.mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = Path(process.stdout.readline().strip())
        with scratch_folder(tmp_path) as mine, scratch_folder(tmp_path) as another:
            assert held.joinpath("notes").read_text() == "mine"
            assert len({mine, another, held}) == 3
            assert mine.is_dir()
        process.send_signal(signal.SIGKILL)
    assert held.is_dir()
    with scratch_folder(tmp_path):
        assert not held.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=str(tmp_path / "none")), scratch_folder(tmp_path / "none"):
        pass
