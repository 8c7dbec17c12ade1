"""MiniGoogLeNet and the small network as Keras models, and their weights by PyTorch's names.

The networks are those of `labelsmooth.training.models`, layer by layer: the same weights give the same logits, so a
checkpoint of either framework serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from labelsmooth import _checks
from labelsmooth._errors import DataError
from labelsmooth.training.frameworks import KERAS_MODELS

# Of a PyTorch parameter's axes in Keras, by their number: a convolution's outputs and inputs last, a dense layer's.
_TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def MiniGoogLeNet(
    num_classes: int,
    input_shape: tuple[int | None, int | None, int] = (32, 32, 3),
    *,
    dropout: float = 0.5,
    weight_decay: float = 0.0,
) -> keras.Model:
    """MiniGoogLeNet (Zhang et al. 2017, arXiv 1611.03530, figure 3), from images to logits.

    1,652,826 trainable parameters for 3 channels and 10 classes, and 3,424 batch-norm statistics. It ends in logits,
    without a softmax: compile it with a loss that has ``from_logits=True``.

    Args:
        num_classes: K.
        input_shape: height, width and channels; height and width of at least 7, or None for any.
        dropout: the share of features dropped before the dense layer, in [0, 1).
        weight_decay: an L2 penalty on kernels, not on biases and batch norm: its gradient is `weight_decay` times the
            kernel, as in PyTorch's SGD. `fit` adds the penalty to its ``loss``.

    Returns:
        A model from float images ``[N, H, W, C]``, the training set's mean image taken off, to logits ``[N, K]``.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> from labelsmooth.keras import MiniGoogLeNet
        >>> model = MiniGoogLeNet(10)
        >>> model.count_params()  # with the statistics
        1656250
        >>> model.output_shape
        (None, 10)
    """
    net = _Net(num_classes, input_shape, dropout, weight_decay, least=7, momentum=0.99)
    x = net.conv(net.inputs, "body.0", 96, 3)
    x = net.inception(x, "body.1", 32, 32)
    x = net.inception(x, "body.2", 32, 48)
    x = net.downsample(x, "body.3", 80)
    x = net.inception(x, "body.4", 112, 48)
    x = net.inception(x, "body.5", 96, 64)
    x = net.inception(x, "body.6", 80, 80)
    x = net.inception(x, "body.7", 48, 96)
    x = net.downsample(x, "body.8", 96)
    x = net.inception(x, "body.9", 176, 160)
    x = net.inception(x, "body.10", 176, 160)
    return net.model(x, "minigooglenet")


def SmallNet(
    num_classes: int,
    input_shape: tuple[int | None, int | None, int] = (8, 8, 1),
    *,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Three convolutions and one pooling: for images of about 8x8, such as `digits`.

    Args:
        num_classes: K.
        input_shape: height, width and channels; height and width of at least 4, or None for any.
        dropout: as that of `MiniGoogLeNet`.
        weight_decay: as that of `MiniGoogLeNet`.

    Returns:
        As `MiniGoogLeNet`.

    Raises:
        ValueError: an argument out of its range.
    """
    # Few steps make an epoch of few images, so the statistics follow faster than Keras' do.
    net = _Net(num_classes, input_shape, dropout, weight_decay, least=4, momentum=0.9)
    x = net.conv(net.inputs, "body.0", 32, 3)
    x = net.conv(x, "body.1", 64, 3)
    x = layers.MaxPooling2D(2, data_format="channels_last", name="body_2")(x)
    x = net.conv(x, "body.3", 128, 3)
    return net.model(x, "small")


class _Net:
    """The parts of a network; a layer is called as PyTorch calls it, with underscores in the place of dots."""

    def __init__(
        self, num_classes: int, input_shape: Any, dropout: float, weight_decay: float, *, least: int, momentum: float
    ) -> None:
        self.num_classes = _checks.class_count(num_classes)
        rule = f"be (height, width, channels), height and width of at least {least} or None"
        if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
            raise _checks.error("input_shape", rule, input_shape)
        height, width, channels = input_shape
        if not all(side is None or (isinstance(side, int) and side >= least) for side in (height, width)):
            raise _checks.error("input_shape", rule, input_shape)
        self.dropout = _checks.smoothing(dropout, "dropout")
        decay = _checks.number(weight_decay, "weight_decay", "be a number of at least 0")
        if not 0 <= decay < np.inf:
            raise _checks.error("weight_decay", "be a number of at least 0", weight_decay)
        self.decay, self.momentum = decay, momentum
        shape = (height, width, _checks.class_count(channels, "channels"))
        self.inputs: Any = keras.Input(shape, dtype="float32", name="images")

    def penalty(self) -> Any:
        return keras.regularizers.L2(self.decay / 2) if self.decay else None  # whose gradient is twice that

    def conv(self, x: Any, name: str, filters: int, size: int, *, strides: int = 1, padding: str = "same") -> Any:
        """Convolution, batch norm, ReLU."""
        x = layers.Conv2D(
            filters, size, strides, padding, data_format="channels_last", kernel_regularizer=self.penalty(),
            dtype="float32", name=_layer_name(f"{name}.0"),
        )(x)  # fmt: skip
        x = layers.BatchNormalization(
            axis=-1, momentum=self.momentum, epsilon=1e-3, dtype="float32", name=_layer_name(f"{name}.1")
        )(x)
        return layers.Activation("relu", dtype="float32", name=_layer_name(f"{name}.2"))(x)

    def inception(self, x: Any, name: str, ones: int, threes: int) -> Any:
        """A 1x1 and a 3x3 convolution side by side."""
        sides = [self.conv(x, f"{name}.ones", ones, 1), self.conv(x, f"{name}.threes", threes, 3)]
        return layers.Concatenate(axis=-1, dtype="float32", name=_layer_name(name))(sides)

    def downsample(self, x: Any, name: str, filters: int) -> Any:
        """A 3x3 convolution and a 3x3 max pooling side by side, both of stride 2 and without padding."""
        pool = layers.MaxPooling2D(3, 2, data_format="channels_last", dtype="float32", name=_layer_name(f"{name}.pool"))
        sides = [self.conv(x, f"{name}.conv", filters, 3, strides=2, padding="valid"), pool(x)]
        return layers.Concatenate(axis=-1, dtype="float32", name=_layer_name(name))(sides)

    def model(self, x: Any, name: str) -> keras.Model:
        """Global average pooling, dropout and a dense layer."""
        x = layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32", name="features")(x)
        x = layers.Dropout(self.dropout, seed=0, dtype="float32", name="dropout")(x)
        head = layers.Dense(self.num_classes, kernel_regularizer=self.penalty(), dtype="float32", name="head")
        return keras.Model(self.inputs, head(x), name=name)


def _layer_name(name: str) -> str:
    return name.replace(".", "_")  # TensorFlow's scopes and Keras' files prefer it


_MAKERS: dict[str, Any] = dict(zip(KERAS_MODELS, (MiniGoogLeNet, SmallNet), strict=True))


def build(
    name: str, *, image_shape: tuple[int, int, int], num_classes: int, dropout: float, weight_decay: float = 0.0
) -> keras.Model:
    """The network that the recipes call `name`."""
    _checks.one_of(name, "model", KERAS_MODELS)
    return _MAKERS[name](num_classes, image_shape, dropout=dropout, weight_decay=weight_decay)


def load_run(run: str | Path) -> keras.Model:
    """A finished run as a Keras model, whichever framework trained it.

    Args:
        run: its folder.

    Returns:
        A model from images as they are, ``[N, H, W, C]`` with values 0 to 255 at the size that the run was trained
        with, to logits ``[N, K]``; its first layer takes the mean image off.

    Raises:
        DataError: it is no run, has no checkpoint yet, or is of a model that Keras does not have here.
    """
    from labelsmooth.training import checkpoints
    from labelsmooth.training.run import RunFolder

    folder = RunFolder.open(run)
    recipe, described = folder.read_settings().recipe, folder.read_json("data.json")
    if recipe.model not in KERAS_MODELS:
        raise DataError(f"{run} is of the model {recipe.model}; as Keras models there are {', '.join(KERAS_MODELS)}")
    tensors = checkpoints.load_tensors(checkpoints.chosen(folder))
    weights = {name: tensor.numpy() for name, tensor in tensors.items()}
    network = build(
        recipe.model,
        image_shape=tuple(described["image_shape"]),
        num_classes=len(described["classes"]),
        dropout=recipe.dropout,
        weight_decay=recipe.weight_decay,
    )
    set_torch_weights(network, {name.removeprefix("network."): array for name, array in weights.items()})
    images = keras.Input(tuple(described["image_shape"]), name="pixels")
    offset: Any = -weights["mean"].transpose(1, 2, 0)
    centred = layers.Rescaling(1.0, offset, dtype="float32", name="less_the_mean_image")(images)
    return keras.Model(images, network(centred), name=f"{recipe.model}_from_run")


def torch_names(model: keras.Model) -> dict[str, keras.Variable]:
    """The variables of a model of this module by the names that PyTorch's `state_dict` has for them."""
    found: dict[str, keras.Variable] = {}
    for layer in model.layers:
        name = layer.name.replace("_", ".")
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            found |= {f"{name}.weight": layer.kernel, f"{name}.bias": layer.bias}
        elif isinstance(layer, layers.BatchNormalization):
            found |= {
                f"{name}.weight": layer.gamma, f"{name}.bias": layer.beta,
                f"{name}.running_mean": layer.moving_mean, f"{name}.running_var": layer.moving_variance,
            }  # fmt: skip
    return found


def get_torch_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a model of this module, by PyTorch's names and in its layout, float32."""
    return {name: to_torch(variable) for name, variable in torch_names(model).items()}


def set_torch_weights(model: keras.Model, weights: Mapping[str, Any]) -> None:
    """Give a model of this module the weights of PyTorch's.

    Args:
        model: a `MiniGoogLeNet` or `SmallNet`.
        weights: the `state_dict` of `labelsmooth.training.models.MiniGoogLeNet` or `SmallNet`, on the CPU, or arrays
            by its names; ``num_batches_tracked`` may be missing, and what the model does not have is passed over.

    Raises:
        DataError: a weight is missing, or of another shape.
    """
    for name, variable in torch_names(model).items():
        if name not in weights:
            raise DataError(f"the weights belong to another model (there is no {name})")
        array = np.asarray(weights[name])
        shape = to_torch_shape(variable)
        if array.shape != shape:
            raise DataError(f"the weights belong to another model ({name} has shape {array.shape}, and not {shape})")
        variable.assign(to_keras(array))


def to_torch(variable: Any) -> np.ndarray:
    """A weight of Keras, or the momentum of one, in PyTorch's layout."""
    array: Any = keras.ops.convert_to_numpy(variable)
    return np.ascontiguousarray(array.transpose(_TO_TORCH[array.ndim]))


def to_keras(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(_TO_KERAS[array.ndim]))


def to_torch_shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.shape[axis] for axis in _TO_TORCH[len(variable.shape)])
