"""The ops: `from tropigrad.kernels import tropical_matmul`."""

from .cooccurrence import cooccurrence
from .cooccurrence import spec as _cooccurrence_spec  # noqa: F401  registers the op
from .feature_fragility import feature_fragility
from .feature_fragility import spec as _fragility_spec  # noqa: F401  registers the op
from .gather_softmax import gather_softmax
from .gather_softmax import spec as _gather_softmax_spec  # noqa: F401  registers the op
from .hard_threshold import hard_threshold
from .hard_threshold import spec as _hard_threshold_spec  # noqa: F401  registers the op
from .largest_path import largest_path
from .log_shift import log_shift
from .log_shift import spec as _log_shift_spec  # noqa: F401  registers the op
from .pack_bits import pack_bits, unpack_bits
from .pack_bits import spec as _pack_bits_spec  # noqa: F401  registers the ops
from .pair_counts import spec as _pair_counts_spec  # noqa: F401  registers it
from .path_norm import path_norm
from .path_norm import spec as _path_norm_spec  # noqa: F401  registers the op
from .path_step import spec as _path_step_spec  # noqa: F401  registers the op
from .path_values import path_values
from .path_values import spec as _path_values_spec  # noqa: F401  registers the op
from .proximal_candidates import proximal_candidates
from .proximal_candidates import spec as _proximal_candidates_spec  # noqa: F401  registers the op
from .proximal_step import spec as _proximal_step_spec  # noqa: F401  registers both steps
from .runtime import dispatch
from .scatter_step import scatter_step
from .scatter_step import spec as _scatter_spec  # noqa: F401  registers the op
from .soft_threshold import soft_threshold
from .tournament import Tournament
from .tournament import spec as _tournament_spec  # noqa: F401  registers it
from .tropical_conv2d import spec as _conv2d_spec  # noqa: F401  registers the op
from .tropical_conv2d import tropical_conv2d
from .tropical_matmul import spec as _spec  # noqa: F401  registers the op
from .tropical_matmul import tropical_matmul
from .tropical_matvec import tropical_matvec
from .tropical_winners_grad import tropical_winners_grad

__all__ = [
    "Tournament",
    "cooccurrence",
    "feature_fragility",
    "gather_softmax",
    "hard_threshold",
    "largest_path",
    "log_shift",
    "pack_bits",
    "path_norm",
    "path_values",
    "proximal_candidates",
    "scatter_step",
    "soft_threshold",
    "tropical_conv2d",
    "tropical_matmul",
    "tropical_matvec",
    "tropical_winners_grad",
    "unpack_bits",
]

dispatch.load(compiles=False)  # where it lies in the cache: a program that is traced from its first call on has it too
