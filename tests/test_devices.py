"""One training on several processes, or in parts: the same draws, the same steps, one run folder."""

import numpy as np
import pytest
import torch

from labelsmooth.training import CLASSIC, Reporter, load, train
from labelsmooth.training.dropout import Dropout, keys
from labelsmooth.training.plan import Plan
from labelsmooth.training.run import Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine

# Dropout and shifts; 1,293 examples, so that a last batch of 13 is left when none is dropped.
EXACT = CLASSIC.changed(model="small", precision="float64", lr=0.01, batch_size=64, drop_last=False, prior="class_frequency")  # fmt: skip


def without_batch_norm(engine):
    """Batch norm computes with its running statistics, and every example counts for itself."""

    def trained(mode=True):
        torch.nn.Module.train(engine.model, False)
        engine.model.network.dropout.train(mode)
        return engine.model

    engine.model.train = trained
    return engine


def engine(recipe=EXACT, data=None, **settings):
    settings = Settings("digits", recipe, 0.1, 0, None, None, None, "cpu", False, **settings)
    return without_batch_norm(TorchEngine(Plan(settings, data or load("digits")), StopRequest()))


# Dropout


def test_dropout_is_drawn_for_the_example():
    layer, x = Dropout(0.3), torch.rand(400, 50) + 1
    of_all = keys(1 << 60 | 17, torch.arange(400))
    whole = layer(x, of_all)
    kept = whole != 0
    torch.testing.assert_close(whole, torch.where(kept, x / 0.7, 0.0))
    order = torch.randperm(400)
    pieces = [layer(x[part], keys(1 << 60 | 17, part)) for part in order.split(7)]
    assert torch.equal(torch.cat(pieces), whole[order])
    for other in (18, 1 << 61 | 17):  # both halves of the seed count
        assert 0.5 < float((layer(x, keys(other, torch.arange(400))) != 0).eq(kept).double().mean()) < 0.66
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_is_as_random_as_independent_draws():
    count, width = 20_000, 64
    kept = (Dropout(0.5)(torch.ones(count, width), keys(3, torch.arange(count))) > 0).double().numpy() * 2 - 1
    assert abs(kept.mean()) < 4 / np.sqrt(count * width)
    assert np.abs(kept.mean(0)).max() < 4.5 / np.sqrt(count)
    features = np.corrcoef(kept.T) - np.eye(width)
    assert np.abs(features).max() < 5 / np.sqrt(count)
    examples = kept[:1000] @ kept[:1000].T / np.sqrt(width)
    assert examples[np.triu_indices(1000, 1)].std() == pytest.approx(1, abs=0.02)


def test_dropout_without_keys_and_out_of_range():
    with pytest.raises(ValueError, match="keys must be given in training mode, where dropout is above 0; got None"):
        Dropout(0.5)(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\); got 1"):
        Dropout(1)


# Gradient accumulation


@pytest.mark.parametrize("method", ["loss", "labels"])
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_give_the_step_of_the_whole(parts, method):
    data, recipe = load("digits"), EXACT.changed(method=method)
    whole, cut = (engine(recipe, data, accumulate=count) for count in (1, parts))
    rows = [run.train_epoch(0, Reporter()) for run in (whole, cut)]  # 21 steps, the last of 13 examples
    for (name, one), other in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12, msg=name)
    for name in ("train_loss_smoothed", "train_nll", "train_accuracy"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-12)


def test_a_part_is_what_the_memory_has_to_hold(monkeypatch, tmp_path, undrawn):
    seen, original = [], TorchEngine.gradients

    def gradients(engine, rows, *args):
        seen.append(len(rows))
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(engine, rows, *args)

    monkeypatch.setattr(TorchEngine, "gradients", gradients)
    with pytest.raises(
        Exception, match=r"batch of 64 in parts of 32; 16 would fit: --batch-size 16, or --accumulate 4 "
    ):
        train("digits", recipe=EXACT, accumulate=2, out=tmp_path)
    seen.clear()
    assert train("digits", recipe=EXACT, accumulate=4, epochs=1, out=tmp_path).summary["epochs"] == 1
    assert max(seen) == 16


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [
        (0, "accumulate must be a whole number of at least 1; got 0"),
        (1.5, "accumulate must be a whole number of at least 1; got 1.5"),
        (65, "batch_size must be at least 65: accumulate 65 times devices 1; got 64"),
    ],
)
def test_numbers_of_parts_that_cannot_be(accumulate, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("digits", recipe=EXACT, accumulate=accumulate, out=tmp_path)
    assert not list(tmp_path.iterdir())
