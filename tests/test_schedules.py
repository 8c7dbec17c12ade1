"""Schedules against the formulas of the classic scripts, fractional epochs included."""

import numpy as np
import pytest

from labelsmooth.schedules import CosineDecay, PolynomialDecay, StepDecay

EPOCHS = np.arange(0, 100, 0.25)


def test_step_decay():
    schedule = StepDecay(initial_lr=0.01, factor=0.25, every=10)
    expected = [0.01 * 0.25 ** np.floor((1 + epoch) / 10) for epoch in EPOCHS]
    np.testing.assert_allclose([schedule(epoch) for epoch in EPOCHS], expected)
    assert schedule(8) == 0.01
    assert schedule(9) == 0.0025  # the tenth epoch


def test_polynomial_decay():
    for power in (1.0, 5.0):
        schedule = PolynomialDecay(0.005, epochs=70, power=power)
        expected = [0.005 * max(0, 1 - epoch / 70) ** power for epoch in EPOCHS]
        np.testing.assert_allclose([schedule(epoch) for epoch in EPOCHS], expected)
    assert PolynomialDecay(0.005, 70)(70) == PolynomialDecay(0.005, 70)(71) == 0


def test_cosine_decay():
    schedule = CosineDecay(0.1, epochs=70)
    expected = [0.05 * (1 + np.cos(np.pi * min(1, epoch / 70))) for epoch in EPOCHS]
    np.testing.assert_allclose([schedule(epoch) for epoch in EPOCHS], expected, atol=1e-17)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay(initial_lr=0), "initial_lr must be a positive number; got 0"),
        (lambda: StepDecay(every=-1), "every must be a positive number; got -1"),
        (lambda: StepDecay(factor=float("nan")), "factor must be a positive number; got nan"),
        (lambda: PolynomialDecay(epochs=float("inf")), "epochs must be a positive number; got inf"),
        (lambda: PolynomialDecay(power="x"), "power must be a positive number; got 'x'"),
        (lambda: CosineDecay(epochs=0), "epochs must be a positive number; got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
