"""Searches over fields of a run's config on Ray Tune, for high accuracy and few bits; ends in a front of sets."""
