"""The yardstick: a normalising flow, and the bits that an image costs under it."""
