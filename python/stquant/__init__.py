"""stquant for PyTorch: AdamW whose states take 2 to 8 bits a value instead of 32, under a cap that holds at every step.

    import stquant
    optimizer = stquant.AdamW(model.parameters(), lr=3e-4, state_bits=5.0)

The package works over the C library that it carries; nothing is compiled at install or run time against torch.
"""

from . import qat
from ._library import CapTooSmallError, version
from ._report import memory_summary
from .adamw import AdamW

__version__ = version()
__all__ = ["AdamW", "CapTooSmallError", "memory_summary", "qat", "__version__"]
