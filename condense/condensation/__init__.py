"""The main job: from a config to a condensed dataset. `loop.py` is THE MAIN PATH."""
