"""Exported to ONNX and run by onnxruntime, layers give what they give in torch."""

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch

from tropigrad import kernels, nn
from tropigrad.nn.onnx import translation_table

WANTED = ("onnx", "onnxscript", "onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in WANTED), reason="needs pip install 'tropigrad[onnx]'"
)


def session_of(program) -> Any:
    assert program is not None
    onnxruntime = importlib.import_module("onnxruntime")
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


class Called(torch.nn.Module):
    """A function of several tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


class Layers(torch.nn.Module):
    """One export for many layers: most of the time of an export is torch's own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, *tensors):
        return tuple(layer(x) for layer, x in zip(self.layers, tensors, strict=True))


def exported(model: torch.nn.Module, *args: torch.Tensor) -> list[tuple[torch.Tensor, list[int]]]:
    """The results of onnxruntime, each with the shape that the graph declares."""
    table = translation_table()
    program = torch.onnx.export(model, args, dynamo=True, custom_translation_table=table, verbose=False)
    session = session_of(program)
    inputs = dict(zip((i.name for i in session.get_inputs()), (x.numpy() for x in args), strict=True))
    shapes = [output.shape for output in session.get_outputs()]
    return [(torch.from_numpy(y), shape) for y, shape in zip(session.run(None, inputs), shapes, strict=True)]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def compared(model: torch.nn.Module, *args: torch.Tensor) -> None:
    expected = model.eval()(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for (result, shape), value in zip(exported(model, *args), expected, strict=True):
        torch.testing.assert_close(result, value)
        assert shape == list(value.shape), "the exported graph declares another shape"


@needs_onnx
def test_layers():
    torch.manual_seed(0)
    rows, image, even = random(5, 8), random(2, 4, 9, 8), random(2, 4, 6, 8)
    layers = {
        nn.MaxPlusLinear(8, 3): rows,
        nn.MinPlusLinear(8, 3): random(2, 5, 8),
        nn.MaxPlusLinear(8, 3, sparse=True): rows,
        nn.LinearMinMax(8, 6, 3): rows,
        nn.MaxPlusMLP(8, (6, 5), 3): rows,
        nn.ResidualMaxPlus(8): rows,
        nn.MaxPlusConv2d(4, 6, 3, padding=1): image,
        nn.MinPlusConv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=4): image,
        nn.HardThreshold(): rows,
        nn.HardThreshold(kind="step", pool=2): even,
        nn.QuantizedReLU(): rows,
        nn.BatchNormThreshold(4, pool=2): even,
    }
    compared(Layers(list(layers)), *layers.values())


@needs_onnx
def test_ops_with_winners_at_ties():
    a, b = (random(2, 3, 7) * 2).round(), (random(7, 4) * 2).round()
    x, w = (random(1, 2, 6, 6) * 2).round(), (random(3, 2, 2, 3) * 2).round()

    def products(a, b, x, w):
        selective = [
            part
            for semiring in ("max_plus", "min_plus", "max_times")
            for part in kernels.tropical_matmul(a, b, semiring=semiring, return_indices=True)
        ]
        soft = kernels.tropical_matmul(a, b, semiring="log", temperature=0.5), kernels.soft_threshold(a, 0.5)
        convolved = kernels.tropical_conv2d(x, w, semiring="min_plus", stride=2, return_indices=True)
        return (*selective, *soft, *convolved, kernels.tropical_matvec(b.T, a[0, 0]))

    compared(Called(products), a, b, x, w)


@needs_onnx
def test_sizes_may_stay_free():
    model = nn.MaxPlusConv2d(2, 3, 3, padding=1).eval()
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height", min=4)
    program = torch.onnx.export(
        model,
        (random(2, 2, 8, 8),),
        dynamo=True,
        custom_translation_table=translation_table(),
        dynamic_shapes=({0: batch, 2: height},),
        verbose=False,
    )
    session = session_of(program)
    x = random(5, 2, 11, 8)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach())


@needs_onnx
@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        pytest.param(
            lambda a, b: kernels.tropical_matmul(a, b, nan="ignore"), (random(2, 3), random(3, 2)), "ignore", id="nan"
        ),
        pytest.param(
            kernels.tropical_matmul,
            (torch.ones(2, 3, dtype=torch.int32), torch.ones(3, 2, dtype=torch.int32)),
            "floats",
            id="integers",
        ),
    ],
)
def test_what_is_not_translated_says_so(function, args, words):
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        exported(Called(function), *args)
    error, texts = caught.value, []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    assert words in " ".join(texts)


def test_without_onnxscript_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'tropigrad\[onnx\]'"):
        translation_table()
