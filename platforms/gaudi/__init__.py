"""Intel Gaudi (HPU): torch tensors through Intel's `habana_frameworks`, in static shapes alone."""
from .platform import Gaudi

__all__ = ["Gaudi"]
