"""Schedules against the formulas of the classic scripts, fractional epochs included, and in the frameworks that use them."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from labelsmooth.cli import main
from labelsmooth.schedules import CosineDecay, PolynomialDecay, StepDecay, Warmup, make, parse

EPOCHS = np.arange(0, 100, 0.25)
ALL = (
    StepDecay(0.1, factor=0.5, every=3),
    StepDecay(0.1, factor=0.25, every=2.5),
    PolynomialDecay(0.1, epochs=12),
    PolynomialDecay(0.1, epochs=12, power=3),
    CosineDecay(0.1, epochs=12),
    Warmup(CosineDecay(0.1, epochs=9), epochs=3, start_factor=0.25),
    Warmup(StepDecay(0.1, factor=0.5, every=4), epochs=2),
    Warmup(PolynomialDecay(0.1, epochs=9.5), epochs=2.5, start_factor=0),
)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in this process, in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_step_decay():
    schedule = StepDecay(initial_lr=0.01, factor=0.25, every=10)
    assert schedule == StepDecay()
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


def test_warmup_against_pytorch_and_optax():
    import optax
    import torch

    schedule = Warmup(CosineDecay(0.1, epochs=15), epochs=5, start_factor=0.2)
    theirs = optax.warmup_cosine_decay_schedule(0.02, 0.1, warmup_steps=5, decay_steps=20)
    np.testing.assert_allclose([schedule(e) for e in range(25)], [float(theirs(e)) for e in range(25)], atol=1e-8)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, total_iters=5)
    after = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
    chain = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, after], [5])
    for epoch in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(epoch), abs=1e-9)
        optimizer.step()
        chain.step()
    assert schedule(2.5) == pytest.approx(0.1 * (0.2 + 0.8 / 2))
    assert Warmup(StepDecay(0.1, factor=0.5, every=1), epochs=2)(2) == 0.05  # it rises to what follows


def test_whole_numbers_give_floats():
    for schedule in (
        StepDecay(1, 1, 10),
        PolynomialDecay(1, 10, 1),
        CosineDecay(1, 10),
        Warmup(StepDecay(1, 1, 9), 2, 1),
    ):
        assert type(schedule(3)) is float
        assert type(schedule.initial_lr) is float


def test_make_and_parse():
    assert make("step", 0.1, 100) == StepDecay(0.1)
    assert make("step", 0.1, 100, factor=0.5, every=25) == StepDecay(0.1, 0.5, 25)
    assert make("polynomial", 0.1, 70, power=2) == PolynomialDecay(0.1, 70, 2)
    assert make("cosine", 0.1, 70, warmup=5, start_factor=0.5) == Warmup(CosineDecay(0.1, 65), 5, 0.5)
    assert parse("polynomial:power=2,warmup=4", 0.1, 10) == Warmup(PolynomialDecay(0.1, 6, 2), 4)
    assert parse("step:warmup=1", 0.1, 10) == Warmup(StepDecay(0.1), 1)
    assert parse("cosine:warmup=0", 0.1, 10) == CosineDecay(0.1, 10)


def test_a_recipe_takes_a_warmup():
    from labelsmooth.training import Recipe

    recipe = Recipe(schedule="cosine:warmup=2", epochs=10, lr=0.1)
    assert recipe.make_schedule() == Warmup(CosineDecay(0.1, 8), 2)
    with pytest.raises(ValueError, match="warmup must be a number of at least 0 and below the epochs, 2; got 2.0"):
        recipe.changed(epochs=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StepDecay(initial_lr=0), "initial_lr must be a positive number; got 0"),
        (lambda: StepDecay(every=-1), "every must be a positive number; got -1"),
        (lambda: StepDecay(factor=float("nan")), "factor must be a positive number; got nan"),
        (lambda: PolynomialDecay(epochs=float("inf")), "epochs must be a positive number; got inf"),
        (lambda: PolynomialDecay(power="x"), "power must be a positive number; got 'x'"),
        (lambda: CosineDecay(epochs=0), "epochs must be a positive number; got 0"),
        (lambda: Warmup(StepDecay), "schedule must be a schedule of labelsmooth.schedules; got <class"),
        (lambda: Warmup(StepDecay(), epochs=0), "epochs must be a positive number; got 0"),
        (lambda: Warmup(StepDecay(), start_factor=1.5), r"start_factor must be a number in \[0, 1\]; got 1.5"),
        (lambda: StepDecay()(-1), "epoch must be a number of at least 0 .*; got -1"),
        (lambda: CosineDecay()(float("nan")), "epoch must be a number of at least 0 .*; got nan"),
        (lambda: CosineDecay()([1, 2]), r"epoch must be a number of at least 0 .*; got \[1, 2\]"),
        (
            lambda: StepDecay(0.1, factor=1e300, every=1)(4),
            r"schedule must give finite learning rates; got StepDecay\(.*\), which gives none at epoch 4",
        ),
        (lambda: StepDecay(1e200, factor=1e200, every=1)(0), "schedule must give finite learning rates"),
        (lambda: make("linear", 0.1, 10), "name must be one of 'polynomial', 'step', 'cosine'; got 'linear'"),
        (lambda: make("cosine", 0.1, 10, power=2), "power must be left out for cosine; got 2"),
        (lambda: make("cosine", 0.1, 10, warmup=10), "warmup must be a number of at least 0 and below the epochs, 10; got 10"),
        (lambda: make("cosine", 0.1, 0), "epochs must be a positive number; got 0"),
        (lambda: parse("cosine:power=2", 0.1, 10), "schedule must be polynomial.* got 'cosine:power=2'"),
        (lambda: parse("cosine:warmup=x", 0.1, 10), "schedule must be polynomial.* got 'cosine:warmup=x'"),
        (lambda: StepDecay().plot(), r"epochs must be given for a schedule that does not end; got StepDecay\("),
        (lambda: Warmup(StepDecay()).plot(), "epochs must be given for a schedule that does not end"),
        (lambda: CosineDecay().plot(range(9)), r"epochs must be a positive number of at most 100000; got range\(0, 9\)"),
        (lambda: CosineDecay().plot(1e9), "epochs must be a positive number of at most 100000; got 1000000000.0"),
        (lambda: CosineDecay().plot(file="x.bmp"), "plot must end in one of .png, .svg, .pdf; got x.bmp"),
        (lambda: CosineDecay().optax(0), "steps_per_epoch must be a whole number of at least 1; got 0"),
        (lambda: CosineDecay().optax(5, schedule_every="batch"), "schedule_every must be one of 'epoch', 'step'; got 'batch'"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_lambda_lr(schedule):
    """By `relative` on the schedule's own rate, by the schedule itself on a rate of 1, and again from a state_dict."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    def scheduler(lr, function):
        return LambdaLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), function)

    both = [scheduler(schedule.initial_lr, schedule.relative), scheduler(1.0, schedule)]
    for epoch in range(14):
        if epoch == 6:
            states = [each.state_dict() for each in both]
            both = [scheduler(schedule.initial_lr, schedule.relative), scheduler(1.0, schedule)]
            for each, state in zip(both, states, strict=True):
                each.load_state_dict(state)
        for each in both:
            assert each.get_last_lr() == pytest.approx([schedule(epoch)], rel=1e-12)
            each.optimizer.step()
            each.step()


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("steps_per_epoch", [1, 41, 703])
def test_optax_under_jit(schedule, steps_per_epoch):
    """Every step of 14 epochs: the edges of epochs are where float32 would go wrong."""
    import jax
    import jax.numpy as jnp

    steps = np.arange(14 * steps_per_epoch)
    exact = {
        "epoch": [schedule(int(step) // steps_per_epoch) for step in steps],
        "step": [schedule(float(step / steps_per_epoch)) for step in steps],
    }
    for schedule_every, expected in exact.items():
        rate = schedule.optax(steps_per_epoch, schedule_every=schedule_every)
        got = jax.jit(jax.vmap(rate))(jnp.asarray(steps))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-8)


def test_optax_steps_that_float32_cannot_count():
    import jax

    rate = jax.jit(StepDecay(0.1, factor=0.5, every=10).optax(2_000_001, schedule_every="step"))
    edge = 9 * 2_000_001
    assert [float(rate(step)) for step in (edge - 1, edge)] == [np.float32(0.1), np.float32(0.05)]
    assert float(StepDecay(0.1, every=1e7).optax(1000, schedule_every="step")(2**30)) == np.float32(0.1)


def test_optax_sgd_under_jit():
    import jax
    import jax.numpy as jnp
    import optax

    schedule = StepDecay(0.1, factor=0.5, every=2)
    optimizer = optax.sgd(schedule.optax(steps_per_epoch=3))

    @jax.jit
    def step(weight, state):
        updates, state = optimizer.update(jnp.ones(()), state)
        return optax.apply_updates(weight, updates), state

    weight, expected = jnp.zeros(()), 0.0
    state = optimizer.init(weight)
    for number in range(12):
        weight, state = step(weight, state)
        expected -= schedule(number // 3)
        assert float(weight) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"epoch must be .*optax\(steps_per_epoch\) gives a schedule of steps"):
        jax.jit(schedule)(3)


def test_keras_learning_rate_scheduler():
    """A fit in Keras follows the schedule, epoch by epoch; in a process of its own, which fixes the backend."""
    code = """
import json
import keras, numpy as np
from labelsmooth.schedules import CosineDecay, StepDecay, Warmup
rates = []
for schedule in (StepDecay(1, factor=0.5, every=2), Warmup(CosineDecay(0.1, epochs=3), epochs=2)):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), "mse")
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: rates.append(float(model.optimizer.learning_rate)))
    model.fit(np.zeros((4, 2)), np.zeros(4), epochs=5, verbose=0,
              callbacks=[keras.callbacks.LearningRateScheduler(schedule), seen])
print(json.dumps(rates))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "jax"}
    )
    assert result.returncode == 0, result.stderr
    expected = [1.0 * 0.5 ** ((1 + epoch) // 2) for epoch in range(5)]
    expected += [0.01, 0.055, *(0.05 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3))]
    np.testing.assert_allclose(json.loads(result.stdout.splitlines()[-1]), expected, rtol=1e-6)


def test_plot(tmp_path):
    schedule = StepDecay(0.01, factor=0.5, every=25)
    figure = schedule.plot(100, tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").read_text(encoding="utf-8").startswith("<?xml")
    (line,) = figure.findobj(lambda item: type(item).__name__ == "Axes")[0].get_lines()
    places, rates = line.get_data()
    assert list(rates) == [schedule(place) for place in places]
    assert places[-1] == 100
    assert set(range(100)) <= set(places)
    assert places[np.flatnonzero(np.diff(rates))[0] + 1] == 24  # the drop stands where the rate falls
    axes = CosineDecay(0.1, epochs=8).plot().findobj(lambda item: type(item).__name__ == "Axes")[0]
    curve, dots = axes.get_lines()
    assert curve.get_xdata()[-1] == 8
    np.testing.assert_allclose(dots.get_data(), [range(8), [CosineDecay(0.1, epochs=8)(e) for e in range(8)]])


def test_the_command(run, tmp_path):
    code, out, err = run("schedule", "step", "--initial-lr", ".01", "--factor", ".5", "--every", "25", "--epochs", "100",
                         "--plot", "rates.png")  # fmt: skip
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["step", "decay", "from", "0.01,", "times", "0.5", "every", "25", "epochs"]
    assert lines[2:8] == [
        ["epochs", "learning", "rate"], ["0-23", "0.01"], ["24-48", "0.005"], ["49-73", "0.0025"],
        ["74-98", "0.00125"], ["99", "0.000625"],
    ]  # fmt: skip
    assert out.endswith("picture  rates.png\n")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")

    code, out, _ = run("schedule", "polynomial", "--lr", "1", "--power", "2", "--epochs", "4", "--json")
    assert (code, json.loads(out)) == (0, {
        "schedule": "PolynomialDecay(initial_lr=1.0, epochs=4.0, power=2.0)", "epochs": 4.0,
        "rates": [1.0, 0.5625, 0.25, 0.0625], "plot": None,
    })  # fmt: skip
    code, out, _ = run("schedule", "cosine", "--epochs", "5", "--warmup", "2", "--start-factor", "0.5", "-p", "c.pdf")
    assert code == 0
    assert out.startswith("warm-up of 2 epochs, then cosine decay from 0.01 to 0 in 3 epochs\n")
    assert [line.split() for line in out.splitlines()[3:8]] == [
        ["0", "0.005"], ["1", "0.0075"], ["2", "0.01"], ["3", "0.0075"], ["4", "0.0025"],
    ]  # fmt: skip
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stp"], 'Invalid value "stp" for NAME. Choose from: "step", "polynomial", "cosine". Did you mean "step"?'),
        ([], "requires an argument"),
        (["step", "--evry", "3"], "Did you mean --every?"),
        (["step", "--factor", "half"], 'unable to convert "half" into float'),
        (["step", "--factor", "0"], "factor must be a positive number; got 0.0"),
        (["cosine", "--factor", "2"], "factor must be left out for cosine; got 2.0"),
        (["step", "--power", "2"], "power must be left out for step; got 2.0"),
        (["cosine", "--epochs", "0"], "epochs must be a positive number of at most 100000; got 0.0"),
        (["step", "--epochs", "1e9"], "epochs must be a positive number of at most 100000; got 1000000000.0"),
        (["cosine", "--warmup", "100"], "warmup must be a number of at least 0 and below the epochs, 100; got 100.0"),
        (["cosine", "--start-factor", "0.5"], "start_factor must be left out where there is no --warmup; got 0.5"),
        (["step", "--factor", "1e300", "--every", "1"], "schedule must give finite learning rates"),
        (["step", "--plot", "rates.bmp"], "plot must end in one of .png, .svg, .pdf; got rates.bmp"),
        (["step", "--plot", "nowhere/rates.png"], "plot must lie in a folder that exists; got nowhere/rates.png"),
    ],
)
def test_mistakes_at_the_command(arguments, message, run, tmp_path):
    code, out, err = run("schedule", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("labelsmooth: ")
    assert message in err
    assert not list(tmp_path.iterdir())
