"""The pytrees that travel between data, model, objective and step. Imports nothing of ours.

Dimension legend, used all over the project:
  B  rows of the (global) batch         P  anchor tokens (patches, frames)
  T  text tokens                        C  width of a token feature
  D  width of the pooled embedding      M  slots of the memory bank
  K  candidates of an anchor
"""

import dataclasses
import typing

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

T = typing.TypeVar("T")
AnyArray = typing.Any  # numpy on the host, jax.Array on the device

MODALITIES = ("image", "text", "audio", "video")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Frozen dataclass that is also a JAX pytree, all fields being children.

    Annotations of its fields are not checked at run time: JAX builds pytrees of anything (tracers, shapes, shardings).
    """
    return typing.no_type_check(jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls)))


@pytree
class Tokens:
    """One modality's raw input.

    values: image uint8 [B, H, W, 3]; text int32 [B, T] token ids; audio int16 [B, samples]; video uint8 [B, F, H, W, 3].
    mask:   bool [B, T], True where a token is valid, of sound where a log-mel frame is; None when every position is.
    """

    values: AnyArray
    mask: Bool[AnyArray, "B T"] | None = None


@pytree
class Batch:
    """One global batch (on a host: this host's rows of it).

    inputs:     modality name -> Tokens; pictures are left out where what their trunk made of them is stored.
    present:    modality name -> bool [B]; False where the row lacks that modality: its input is then all zeros, and no loss sees it.
    caption_id: uint32 [B, 2], 64-bit hash of the normalised caption.
    anchor_id:  uint32 [B, 2], 64-bit hash of the source key of the anchor.
    index:      int32 [B], row number in the training source; what a partner list points to.
    stored:     modality name -> Trunk, of the towers whose trunk need not run.
    paired:     bool [B]; False where picture and caption are of different rows, neither of which has both; None: all are pairs.
    truth:      uint32 [B, 2], hash of the caption that the picture truly has, 0 where unknown: for metrics alone; None: of all unknown.
    """

    inputs: dict[str, Tokens]
    present: dict[str, Bool[AnyArray, " B"]]
    caption_id: UInt32[AnyArray, "B 2"]
    anchor_id: UInt32[AnyArray, "B 2"]
    index: Int[AnyArray, " B"]
    stored: "dict[str, Trunk]" = dataclasses.field(default_factory=dict)
    paired: Bool[AnyArray, " B"] | None = None
    truth: UInt32[AnyArray, "B 2"] | None = None


@pytree
class Trunk:
    """What a tower makes before its head: all that depends on its input, and on no parameter of the head.

    pooled: [B, F], not normalised; F is the width of the head's input.
    tokens: [B, N, C] token features, as in Features.
    """

    pooled: Float[AnyArray, "B F"]
    tokens: Float[AnyArray, "B N C"] | None


@pytree
class Features:
    """What a tower returns.

    pooled: float32 [B, D], L2-normalised.
    tokens: [B, N, C] token features (N = P patches or T text tokens); None where they were not kept.
    mask:   bool [B, N] validity of `tokens`; None when all are valid.
    """

    pooled: Float[Array, "B D"]
    tokens: Float[Array, "B N C"] | None
    mask: Bool[Array, "B N"] | None = None
