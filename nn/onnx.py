"""The operators of this library in ONNX's words: torch.onnx.export(..., custom_translation_table=translation_table()).

    C[m, n] = max_k A[m, k] + B[k, n]     →     ReduceMax over k of Add(A[m, k, 1], B[1, k, n]), winners by ArgMax

ONNX has no tropical product, so an exported network holds the candidates [M, K, N] while it runs. It serves where
another runtime is what matters; in torch the kernels are faster.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import kernels as _kernels  # noqa: F401  defines the operators

__all__ = ["translation_table"]

OPSET = 18  # the first in which ReduceMax takes its axes as an input


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations that torch.onnx.export(custom_translation_table=) takes, of opset 18 or later.

    They serve every max-plus, min-plus, max-times and log-semiring product and layer, the max-plus and min-plus
    convolutions, hard thresholds, quantised ReLUs, and soft_threshold. Values are those of the kernels, of the log
    semiring within rounding; ties go to the lowest index. At NaN the runtime decides.

    `torch.onnx.OnnxExporterError`, whose cause is a NotImplementedError, is raised by the export of what has no
    translation: nan="ignore"; integer tensors, as ONNX's integers wrap where ours saturate; winners of a padded
    convolution.

    Raises:
        ImportError: onnxscript is not installed; `pip install 'tropigrad[onnx]'` brings it with a runtime.
    """
    try:
        onnxscript = importlib.import_module("onnxscript")
    except ImportError as error:
        raise ImportError(
            "tropigrad.nn.onnx.translation_table needs onnxscript; run: pip install 'tropigrad[onnx]'"
        ) from error
    words = _Words(getattr(onnxscript, f"opset{OPSET}"))
    translations = words.tropical_matmul, words.log_matmul, words.tropical_conv2d, words.hard_threshold
    return {
        getattr(torch.ops.tropigrad, translation.__name__).default: _function(translation)
        for translation in (*translations, words.soft_threshold)
    }


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a method's signature: torch sets an attribute on each translation, which no method takes."""

    @functools.wraps(method)
    def function(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return function


class _Words:
    """The translations. Each has the signature of its operator, and is traced with symbols in place of tensors."""

    def __init__(self, opset: Any) -> None:
        self.op = opset

    def tropical_matmul(self, a, b, semiring: str, with_winners: bool, ignore_nan: bool):
        _check("tropical_matmul", ignore_nan, a, b)
        candidates = self._candidates(a, b, self.op.Mul if semiring == "max_times" else self.op.Add)
        return self._best(candidates, semiring, -1, with_winners)

    def log_matmul(self, a, b, temperature: float, ignore_nan: bool, keeps: bool):
        _check("log_matmul", ignore_nan, a, b)
        op, t = self.op, self._scalar(temperature, a)
        candidates = op.Div(self._candidates(a, b, op.Add), t)
        c = op.Mul(op.ReduceLogSumExp(candidates, self._ints(-1), keepdims=0), t)
        return self._alone(c, 2)

    def tropical_conv2d(
        self,
        x,
        weight,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        semiring: str,
        with_winners: bool,
        ignore_nan: bool,
    ):
        """Each tap is a slice of the padded image; candidates are [B, G, O / G, taps of the group, P, Q]."""
        _check("tropical_conv2d", ignore_nan, x, weight)
        if with_winners and any(padding):
            raise NotImplementedError("tropical_conv2d: expected no padding where winners are exported: ArgMax sees it")
        op, (outputs, channels, *window) = self.op, weight.shape
        if any(padding):
            zero = self._scalar(float("-inf") if semiring == "max_plus" else float("inf"), x)
            x = op.Pad(x, self._ints(0, 0, *padding, 0, 0, *padding), zero)
        taps = []
        for place in ((i, j) for i in range(window[0]) for j in range(window[1])):
            starts = [at * step for at, step in zip(place, dilation, strict=True)]
            # from the end, so that the size of the image stays free; the last tap ends where the image does
            ends = [(at - size + 1) * step or LAST for at, size, step in zip(place, window, dilation, strict=True)]
            taps.append(op.Slice(x, self._ints(*starts), self._ints(*ends), self._ints(2, 3), self._ints(*stride)))
        images = op.Concat(*[op.Unsqueeze(tap, self._ints(2)) for tap in taps], axis=2)  # [B, C, taps, P, Q]
        rows = self._reshaped(images, (0, groups, channels * len(taps)), images, 3)
        weights = op.Reshape(weight, self._ints(groups, outputs // groups, channels * len(taps), 1, 1))
        candidates = op.Add(op.Unsqueeze(rows, self._ints(2)), weights)
        values, winners = self._best(candidates, semiring, 3, with_winners)
        y = self._reshaped(values, (0, outputs), values, 3)
        return (y, self._reshaped(winners, (0, outputs), winners, 3)) if with_winners else self._alone(y, 1)

    def hard_threshold(
        self,
        z,
        scale,
        shift,
        kind: str,
        steps: int,
        rule: str,
        weighted: bool,
        keeps: str,
        pool: bool,
        channels_last: bool,
        keep: bool,
    ):
        op, m = self.op, z
        if scale is not None:
            shape = self._ints(-1, *(1,) * (len(z.shape) - 2))
            m = op.Add(op.Mul(m, op.Reshape(scale, shape)), op.Reshape(shift, shape))
        if pool:
            if len(z.shape) != 4:
                raise NotImplementedError(f"hard_threshold: expected [N, C, H, W] where it pools, not {z.shape}")
            m, _ = op.MaxPool(m, kernel_shape=[2, 2], strides=[2, 2])
        one, zero = self._scalar(1.0, z), self._scalar(0.0, z)
        if kind in ("sign", "step"):
            y = op.Where(op.Greater(m, zero), one, self._scalar(-1.0, z) if kind == "sign" else zero)
        elif kind == "staircase":
            most = self._scalar(float(steps), z)
            y = op.Div(op.Clip(op.Ceil(op.Mul(m, self._scalar(float(steps - 1), z))), zero, most), most)
        else:
            y = op.Clip(m, zero, one)
        return self._alone(y, 2)

    def soft_threshold(self, x, t, t_number: float):
        op = self.op
        t = self._scalar(t_number, x) if t is None else t
        return op.Mul(op.Sign(x), op.Relu(op.Sub(op.Abs(x), t)))

    def _candidates(self, a, b, times: Callable[..., Any]):
        """[..., M, N, K]: K innermost, over which the runtime reduces."""
        last = len(b.shape)
        columns = self.op.Transpose(b, perm=[*range(last - 2), last - 1, last - 2])
        return times(self.op.Unsqueeze(a, self._ints(-2)), self.op.Unsqueeze(columns, self._ints(-3)))

    def _best(self, candidates, semiring: str, axis: int, with_winners: bool):
        """The values, and the winners: of equal ones the lowest."""
        op, least = self.op, semiring == "min_plus"
        values = (op.ReduceMin if least else op.ReduceMax)(candidates, self._ints(axis), keepdims=0)
        if not with_winners:
            return self._alone(values, 1)
        return values, (op.ArgMin if least else op.ArgMax)(candidates, axis=axis, keepdims=0)

    def _alone(self, x, others: int):
        """x where an operator has other results, which serve a backward: no exported graph reads them."""
        return x, *(self.op.Identity(x) for _ in range(others))

    def _reshaped(self, x, head: Sequence[int], of, tail: int):
        """x with other leading sizes, and the sizes of `of` from `tail` on."""
        op = self.op
        return op.Reshape(x, op.Concat(self._ints(*head), op.Shape(of, start=tail), axis=0))

    def _ints(self, *numbers: int):
        return self.op.Constant(value_ints=list(numbers))

    def _scalar(self, number: float, like):
        return self.op.CastLike(self.op.Constant(value_float=number), like)


LAST = 2**63 - 1  # of a slice: to the end


def _check(name: str, ignore_nan: bool, *tensors: Any) -> None:
    if ignore_nan:
        raise NotImplementedError(f'{name}: nan="ignore" has no translation to ONNX; expected nan="propagate"')
    if kinds := [str(x.dtype) for x in tensors if "FLOAT" not in str(x.dtype) and "DOUBLE" not in str(x.dtype)]:
        raise NotImplementedError(f"{name}: expected floats, not {kinds[0]}: ONNX's integers wrap where ours saturate")
