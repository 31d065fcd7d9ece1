"""Two-phase pretraining of cross-lingual encoders."""

__version__ = "0.1.0"
