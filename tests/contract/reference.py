"""Losses and gradients by PyTorch's own float64 cross-entropy of the explicit q', a row at a time.

Nothing of labelsmooth is used. What does not count is not there: rows that are not kept are left out, classes that
are taken out (or that have logit -inf and no coefficient) are not columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from tests.contract.cases import Case


@dataclass(frozen=True)
class Reference:
    """`row_factor` is what the heaviest row's p - q' is multiplied by: its weight, over the divisor of a mean."""

    loss: np.ndarray
    gradient: np.ndarray
    row_factor: float


@cache
def loss_and_grad(case: Case) -> Reference:
    z = np.moveaxis(case.logits.astype(np.float64), case.axis, -1)
    lead, count = z.shape[:-1], z.shape[-1]
    like_logits = case.logits.shape

    def by_row(x: np.ndarray) -> np.ndarray:
        x = np.moveaxis(x, case.axis, -1) if x.ndim == len(like_logits) and x.shape == like_logits else x
        return np.broadcast_to(x, z.shape).reshape(-1, count)

    a = case.arrays
    labelled = case.target.ndim < case.logits.ndim
    target = case.target.reshape(-1) if labelled else by_row(case.target)
    keep = a["mask"].reshape(-1).copy() if "mask" in a else np.ones(len(target), bool)
    if labelled:
        keep &= np.array([int(y) != case.ignore_index for y in target], bool)
    w = a.get("weight", np.ones(count)).astype(np.float64)
    losses, row_weights, factors = np.zeros((3, len(target)))
    gradient = np.zeros((len(target), count))
    for i in np.flatnonzero(keep):
        q = np.eye(count)[int(target[i])] if labelled else target[i].astype(np.float64)
        u = np.full(count, 1 / count)
        if "prior" in a:
            u = by_row(a["prior"])[i].astype(np.float64)
        elif "class_prior" in a:
            u = sum(q[k] * a["class_prior"][k].astype(np.float64) for k in range(count))
        valid = np.ones(count, bool)
        if "class_mask" in a:
            valid = by_row(a["class_mask"])[i]
            u = np.where(valid, u, 0) / u[valid].sum()
        smoothed = (1 - case.label_smoothing) * q + case.label_smoothing * u
        row_weights[i] = sum(w[k] * q[k] for k in range(count) if q[k] > 0) if "weight" in a else 1.0
        counted = smoothed > 0
        weights = np.where(counted, w, 0) if case.weight_mode == "class" else np.full(count, row_weights[i])
        row = z.reshape(-1, count)[i]
        columns = np.flatnonzero(valid & ((row != -np.inf) | (smoothed * weights > 0)))
        if not (smoothed * weights)[columns].any():
            continue  # a row that weighs nothing
        factors[i] = (smoothed * weights)[columns].sum()
        logits = torch.tensor(row[columns], requires_grad=True)
        loss = F.cross_entropy(
            logits[None], torch.tensor(smoothed[columns])[None], torch.tensor(weights[columns]), reduction="sum"
        )
        losses[i] = loss.item()
        gradient[i, columns] = torch.autograd.grad(loss, logits)[0].numpy()
    if case.reduction == "mean":
        divisor = row_weights[keep].sum() if case.normalizer is None else case.normalizer
        losses, gradient, factors = (x / divisor if divisor else 0 * x for x in (losses, gradient, factors))
    gradient = np.moveaxis(gradient.reshape(z.shape), -1, case.axis)
    loss = losses.reshape(lead) if case.reduction == "none" else losses.sum()
    return Reference(np.asarray(loss), gradient, float(factors.max(initial=0)))
