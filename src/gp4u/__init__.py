"""GP4U: every GPU marketplace as one pool."""

__version__ = "0.1.0"
