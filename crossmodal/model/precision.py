"""Models for inference in a lower precision: half, or on the CPU int8 matrix products."""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import nn

from crossmodal.errors import ConfigError, nearest

from .base import Model
from .transformer import Encoder

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *HALF, "int8")


def in_precision(model: Model, precision: str) -> Model:
    """The model, for inference alone, in one of PRECISIONS; scores are float32 in all of them.

    Raises ConfigError for another name, and as `int8` does.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; {nearest(precision, PRECISIONS)}")
    if precision == "int8":
        return int8(model)
    return model.to(HALF[precision]) if precision in HALF else model


def int8(model: Model) -> Model:
    """A copy of the model for inference whose encoder layers multiply in int8.

    Weights are quantised once, one scale an output channel; activations at every call, one scale a tensor.
    Embeddings, layer norms, attention and heads stay in float32. Raises ConfigError where the model is not in
    float32 on the CPU, or this build of PyTorch cannot quantise.
    """
    if model.device.type != "cpu" or next(model.parameters()).dtype != torch.float32:
        raise ConfigError("int8 inference takes a float32 model on the CPU; choose bf16 or fp16 on a GPU")
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError:
        raise ConfigError(f"PyTorch {torch.__version__} has no dynamic quantisation; score in fp32") from None
    torch.backends.quantized.engine = _engine()
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, Encoder):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch says that torchao will take this over
                quantize_dynamic(module, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    return copy


def _engine() -> str:
    """The fastest engine of this build: oneDNN's, where it is there."""
    there = torch.backends.quantized.supported_engines
    return next((name for name in ("onednn", "x86", "fbgemm", "qnnpack") if name in there), "none")
