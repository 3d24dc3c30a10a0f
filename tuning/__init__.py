"""The search: trials on Ray Tune over fields of a run config, for high accuracy and few bits, ending in a front."""
