"""Networks that are trained and tested on a set: their architectures, augmentation and evaluation."""
