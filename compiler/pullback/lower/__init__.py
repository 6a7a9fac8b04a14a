"""Graph -> kernels and plan."""

from .regions import lower

__all__ = ["lower"]
