"""fastcifar: train a CIFAR-10 network to 94% in the fewest epochs and seconds, and keep what was trained."""

__version__ = "0.1.0"
