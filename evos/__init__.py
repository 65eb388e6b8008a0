"""evos: train neural fields for a fraction of the compute."""

__version__ = "0.1.0"
