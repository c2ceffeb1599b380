"""Rows that lack one modality: pictures find their probable captions, and train with them as pairs.

MMCL (arXiv 2302.06232) shows that unpaired data help once a first fit from pairs tells the partners apart; its exact loss is not
readable, this form of it is ours. Some places of a batch hold a picture and a caption that were not given together. Their picture is
compared with the captions of the memory bank, those of the batch among them, that stand alone, too. The k most similar have soft
weights q = softmax(s / tau), tau annealed. The best one, c, is accepted where it is likely, q_c >= confidence, and mutual: the picture
is among the `mutual` most similar to c of the pictures that stand alone. An accepted caption takes the place of the one beside the
picture, is encoded by the current tower, and the two are a pair, of weight q_c in L_contrast. The embeddings of the bank, as old as
their slots, only choose. What is not accepted is a further negative of the pairs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from bacl_jax.config_objective import UnpairedConfig
from bacl_jax.objective.bank import Bank, representative
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows, nobody, search
from bacl_jax.schedules import partner_temperature
from bacl_jax.types import pytree

Metrics = dict[str, Float[Array, ""]]


@pytree
class Partners:
    """The probable caption of each picture of a batch. slot: in the bank; likely: q_c; accepted: past all gates, False for pairs."""

    slot: Int[Array, " B"]
    likely: Float[Array, " B"]
    accepted: Bool[Array, " B"]


def find(
    z: Float[Array, "B D"],
    anchor_id: UInt32[Array, "B 2"],
    given: Bool[Array, " B"],
    bank: Bank,
    progress: Float[Array, ""],
    *,
    config: UnpairedConfig,
    shards: Shards = ONE_DEVICE,
) -> Partners:
    """Partners of the pictures z that were not `given` with their caption, among the captions of the bank that were not either.

    None is accepted before config.start. Carries no gradient. Cost: two searches (similarity.search), O(B M D / n) a device.
    """
    assert bank.paired is not None
    size, alone, hidden = len(z), bank.filled & ~bank.paired, nobody(len(bank.index), "column")
    unknown, nothing, everyone = nobody(size, "query"), jnp.zeros((size, 0), jnp.int32), jnp.ones(size, bool)
    newest = functools.partial(representative, valid=alone, oldest=bank.cursor)
    captions = Rows(x=bank.text, caption_id=hidden, anchor_id=hidden, valid=newest(bank.caption_id))
    pictures = Rows(x=bank.anchor, caption_id=hidden, anchor_id=bank.anchor_id, valid=newest(bank.anchor_id))
    query = Rows(x=z, caption_id=unknown, anchor_id=unknown, valid=everyone)
    s, slot, _ = search(query, captions, nothing, k=config.k, shards=shards)
    q = jax.nn.softmax(jnp.where(s > MASKED / 2, s / partner_temperature(progress, config), MASKED), axis=1)
    accepted = ~given & (progress >= config.start) & (s[:, 0] > MASKED / 2) & (q[:, 0] >= config.confidence)
    if config.mutual:
        wanted = Rows(x=shards.fetch(bank.text, slot[:, 0]), caption_id=unknown, anchor_id=anchor_id, valid=everyone)  # not its own copies
        rivals = search(wanted, pictures, nothing, k=config.mutual, shards=shards).s
        accepted &= s[:, 0] >= rivals[:, -1]
    return Partners(slot=slot[:, 0], likely=jax.lax.stop_gradient(q[:, 0]), accepted=accepted)


def diagnostics(partners: Partners, given: Bool[Array, " B"], found: UInt32[Array, "B 2"], truth: UInt32[Array, "B 2"] | None) -> Metrics:
    """Share of the pictures that stand alone whose partner is accepted, and mean q.

    Where the true captions are known (`truth` is not 0) also the shares of the accepted `found` that are right, NaN where none is accepted,
    and of the pictures that have theirs.
    """
    alone = ~given
    share = {
        "unpaired_accepted": jnp.mean(partners.accepted, where=alone),
        "unpaired_likely": jnp.mean(partners.likely, where=alone),
    }
    if truth is None:
        return share
    judged = alone & (truth != 0).any(1)
    right = judged & partners.accepted & (found == truth).all(1)
    return share | {
        "unpaired_precision": jnp.mean(right, where=judged & partners.accepted),
        "unpaired_recall": right.sum() / jnp.maximum(judged.sum(), 1),
    }
