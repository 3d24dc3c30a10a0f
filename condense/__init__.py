"""Dataset condensation with a bits penalty: the mathematics and its files, in one process."""

__version__ = "0.1.0"
