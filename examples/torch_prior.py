"""Smoothing towards the classes' frequencies u(k), the prior that Szegedy et al. (arXiv 1512.00567, section 7) propose.

Their own runs of Inception-v3 took the uniform u(k) = 1/K, as nearly everybody does since. On data with rare classes
the two differ: where the training loss is least, the mean prediction is the mean target, (1-ε) frequency + ε u.

    python examples/torch_prior.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

import labelsmooth as ls
from labelsmooth.torch import CrossEntropyLoss

SMOOTHING = 0.2

# Each digit is half as frequent as the one before, down to 4 images of 9.
pixels, classes = load_digits(return_X_y=True)
kept = np.concatenate([np.flatnonzero(classes == digit)[: max(4, 160 >> digit)] for digit in range(10)])
images, labels = torch.tensor(pixels[kept] / 16), torch.tensor(classes[kept])
frequency = ls.priors.class_frequency(labels, 10)


def train(criterion):
    """A linear classifier to the minimum of its loss, on all images at once: nothing here is random.

    Its weights decay and its biases do not: their gradient is mean prediction minus mean target, and 0 at the minimum.
    """
    model = torch.nn.Linear(64, 10, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def step():
        optimizer.zero_grad()
        loss = criterion(model(images), labels) + 1e-3 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)
    return model(images).softmax(dim=1).detach().mean(dim=0).numpy()


uniform = train(CrossEntropyLoss(label_smoothing=SMOOTHING))
prior = train(CrossEntropyLoss(label_smoothing=SMOOTHING, prior=torch.tensor(frequency)))

print(f"mean prediction on the {len(labels)} training images, ε={SMOOTHING}")
print("digit  images  frequency  uniform u  u = frequency")
for digit in range(10):
    row = f"{frequency[digit]:9.4f}  {uniform[digit]:9.4f}  {prior[digit]:13.4f}"
    print(f"{digit:5}  {int((labels == digit).sum()):6}  {row}")
expected = (1 - SMOOTHING) * frequency + SMOOTHING / 10
print(f"largest distance from (1-ε) frequency + ε/K, uniform u: {np.abs(uniform - expected).max():.1e}")
print(f"largest distance from the frequency, u = frequency: {np.abs(prior - frequency).max():.1e}")
