"""Label smoothing for PyTorch: drop-ins for `torch.nn.functional.cross_entropy` and `torch.nn.CrossEntropyLoss`."""

from labelsmooth.torch.functions import cross_entropy
from labelsmooth.torch.modules import CrossEntropyLoss

__all__ = ["CrossEntropyLoss", "cross_entropy"]
