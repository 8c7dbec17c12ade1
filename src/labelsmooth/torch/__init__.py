"""Label smoothing for PyTorch: drop-ins for its cross-entropies, and one for logits spread over processes."""

from labelsmooth.torch.functions import cross_entropy
from labelsmooth.torch.linear import linear_cross_entropy
from labelsmooth.torch.modules import CrossEntropyLoss
from labelsmooth.torch.parallel import vocab_parallel_cross_entropy

__all__ = ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy", "vocab_parallel_cross_entropy"]
