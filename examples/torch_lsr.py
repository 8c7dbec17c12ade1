"""A PyTorch loop with a hand-written LSR module, replaced in one line; the numbers are the same.

python examples/torch_lsr.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from labelsmooth.torch import CrossEntropyLoss


class LSR(nn.Module):
    """Label-smoothing regularisation as many repositories have it: log-softmax, a smoothed one-hot, a reduction."""

    def __init__(self, epsilon=0.1, reduction="mean"):
        super().__init__()
        self.epsilon, self.reduction = epsilon, reduction

    def forward(self, logits, labels):
        log_p = nn.functional.log_softmax(logits, dim=1)
        one_hot = torch.zeros_like(log_p).scatter_(1, labels.unsqueeze(1), 1 - self.epsilon)
        smoothed = one_hot + self.epsilon / logits.size(1)
        loss = -(smoothed * log_p).sum(dim=1)
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else loss.mean()


def train(criterion, epochs=3):
    """The loss of every step, and the trained model; everything random follows from the seed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = criterion(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return torch.tensor(losses), model


pixels, classes = load_digits(return_X_y=True)
torch.set_default_dtype(torch.float64)  # rounding, which training enlarges, stays out of sight
images, labels = torch.tensor(pixels / 16), torch.tensor(classes)

before, model = train(LSR(epsilon=0.1))
after, _ = train(CrossEntropyLoss(label_smoothing=0.1))  # the one line

for step in (0, 1, len(before) - 1):
    print(f"step {step + 1:2}  LSR {before[step]:.6f}  labelsmooth {after[step]:.6f}")
print(f"all {len(before)} steps: largest difference of the loss {(before - after).abs().max():.1e}")

logits = model(images).detach().requires_grad_()
for reduction in ("none", "sum", "mean"):
    ours = CrossEntropyLoss(label_smoothing=0.1, reduction=reduction)(logits, labels)
    theirs = LSR(0.1, reduction)(logits, labels)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (theirs, ours)]
    loss_error = ((theirs - ours).abs() / theirs.abs()).max()
    print(
        f"reduction {reduction:4}: loss differs by {loss_error:.1e} of itself, "
        f"gradient by {(gradients[0] - gradients[1]).abs().max():.1e}"
    )
