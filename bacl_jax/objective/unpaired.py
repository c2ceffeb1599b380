"""Rows that lack one modality: who their partner probably is, and a pull towards it.

MMCL (arXiv 2302.06232) shows that unpaired data help once a first fit from pairs tells the partners apart; its exact loss is not readable,
this form of it is ours. A picture without a caption is compared with all captions of the memory bank, this batch among them. The k most
similar have soft weights q = softmax(s / tau), tau annealed, and

    L_a = -log( e^{l(z_a, t_a)} / (e^{l(z_a, t_a)} + sum_j e^{l_aj}) ),   t_a = sum_c q_ac w_c,   j over the batch's captions

counts where the best of them is likely (q >= confidence) and mutual: no other picture without a caption is more similar to it. The same
holds for captions without a picture. The bank's embeddings are as old as their slots: rows are pulled towards them, nothing is pushed away.

Dimension legend beyond types.py: A rows of one side.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config import UnpairedConfig
from bacl_jax.objective.bank import Bank, push, representative
from bacl_jax.objective.pairs import Pairs
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows, nobody, search
from bacl_jax.schedules import partner_temperature
from bacl_jax.types import pytree

Metrics = dict[str, Float[Array, ""]]


@pytree
class Partners:
    """The probable partners of A rows. target: t_a; best: slot of the most similar one; accepted: it is past all gates."""

    target: Float[Array, "A D"]
    best: Int[Array, " A"]
    accepted: Bool[Array, " A"]


def images(bank: Bank) -> Rows:
    """The bank's pictures as columns: of each the newest copy."""
    newest = representative(bank.anchor_id, bank.filled, oldest=bank.cursor)
    return Rows(x=bank.anchor, caption_id=nobody(len(newest), "column"), anchor_id=bank.anchor_id, valid=newest)


def captions(bank: Bank) -> Rows:
    """The bank's captions as columns: of each the newest copy."""
    newest = representative(bank.caption_id, bank.filled, oldest=bank.cursor)
    return Rows(x=bank.text, caption_id=bank.caption_id, anchor_id=nobody(len(newest), "column"), valid=newest)


def find(
    query: Rows, columns: Rows, rivals: Rows, *, tau: Float[Array, ""], config: UnpairedConfig, shards: Shards = ONE_DEVICE
) -> Partners:
    """Partners of the query's valid rows among `columns`; rivals: older rows of the query's kind, which may want the same column.

    The query's ids are those by which its own older copies among the rivals are known. Carries no gradient.
    Cost: two searches (similarity.search), O(A M D / n) a device.
    """
    count = query.valid.shape[0]
    unknown, nothing = nobody(count, "query"), jnp.zeros((count, 0), jnp.int32)
    s, column, _ = search(dataclasses.replace(query, caption_id=unknown, anchor_id=unknown), columns, nothing, k=config.k, shards=shards)
    q = jax.nn.softmax(jnp.where(s > MASKED / 2, s / tau, MASKED), axis=1)
    near = shards.fetch(columns.x, column.reshape(-1)).reshape(*column.shape, -1)
    rival = search(dataclasses.replace(query, x=near[:, 0]), rivals, nothing, k=1, shards=shards).s[:, 0]
    accepted = query.valid & (s[:, 0] > MASKED / 2) & (q[:, 0] >= config.confidence)
    if config.mutual:
        accepted &= s[:, 0] >= rival
    return Partners(target=jnp.einsum("ak,akd->ad", q, near), best=column[:, 0], accepted=accepted)


def partners(
    pairs: Pairs, bank: Bank, progress: Float[Array, ""], config: UnpairedConfig, shards: Shards = ONE_DEVICE
) -> tuple[Pairs, tuple[Partners, Partners], Metrics]:
    """For the rows that are no pairs: probable captions of the anchors and anchors of the texts, in the bank and the batch itself.

    The pairs that come back know them by id, so that a partner is no negative. None is accepted before `config.start`. Where the truth is
    known the metrics tell how many of the accepted are right (precision) and how many of all rows have theirs (recall).
    """
    assert pairs.paired is not None
    alone, size = ~pairs.paired, pairs.paired.shape[0]
    unknown, tau = nobody(size, "query"), partner_temperature(progress, config)
    bank = push(bank, write=jnp.bool_(True), shards=shards, index=jnp.zeros(size, jnp.int32), **pairs.to_keep())
    assert bank.paired is not None
    rival = ~bank.paired
    asked, pictures, texts = alone & (progress >= config.start), images(bank), captions(bank)

    def of(x: Array, own: dict[str, Array], columns: Rows, same: Rows) -> Partners:
        query = Rows(x=x, valid=asked, **{"caption_id": unknown, "anchor_id": unknown} | own)
        return find(query, columns, dataclasses.replace(same, valid=same.valid & rival), tau=tau, config=config, shards=shards)

    z, w = jax.lax.stop_gradient((pairs.anchor.pooled, pairs.text.pooled))
    of_anchor = of(z, {"anchor_id": pairs.anchor_id}, texts, pictures)
    of_text = of(w, {"caption_id": pairs.caption_id}, pictures, texts)
    caption_id = shards.fetch(bank.caption_id, of_anchor.best)
    anchor_id = shards.fetch(bank.anchor_id, of_text.best)
    metrics = {"unpaired_tau": tau}
    for name, found in (("image", of_anchor), ("text", of_text)):
        metrics[f"unpaired_accepted/{name}"] = jnp.mean(found.accepted, where=alone)
    if pairs.truth is not None:
        truth = shards.fetch(bank.truth, of_text.best)
        metrics |= detection("image", caption_id, pairs.truth, of_anchor.accepted, alone)
        metrics |= detection("text", truth, pairs.caption_id, of_text.accepted, alone)

    def known(own: Array, partner: Array, accepted: Array, of: Literal["query", "column"]) -> Array:
        return jnp.where(alone[:, None], jnp.where(accepted[:, None], partner, nobody(size, of)), own)

    known_pairs = dataclasses.replace(
        pairs,
        caption_of_anchor=known(pairs.caption_id, caption_id, of_anchor.accepted, "query"),
        anchor_of_text=known(pairs.anchor_id, anchor_id, of_text.accepted, "column"),
    )
    return known_pairs, (of_anchor, of_text), metrics


def detection(name: str, found: Array, true: Array, accepted: Bool[Array, " A"], alone: Bool[Array, " A"]) -> Metrics:
    """Precision among the accepted and recall among the rows that stand alone, of those that can be judged (ids are not 0)."""
    judged = alone & (found != 0).any(1) & (true != 0).any(1)
    right = judged & accepted & (found == true).all(1)
    return {
        f"unpaired_precision/{name}": right.sum() / jnp.maximum((judged & accepted).sum(), 1),
        f"unpaired_recall/{name}": right.sum() / jnp.maximum(judged.sum(), 1),
    }


def terms(
    pairs: Pairs, found: tuple[Partners, Partners], row_loss: Float[Array, " B"], column_loss: Float[Array, " B"], scale: Float[Array, ""]
) -> Metrics:
    """`loss_unpaired`, the mean of L_a over both sides' rows that stand alone, where those without an accepted partner give 0.

    row_loss, column_loss: of the contrastive term, which for a row without a positive is log sum_j e^{l_aj}. Logged beside it: the
    variance of the embeddings, which falls towards 0 where they collapse.
    """
    assert pairs.paired is not None
    alone = ~pairs.paired

    def pull(x: Array, partner: Partners, others: Array) -> Array:
        toward = scale * (x * jax.lax.stop_gradient(partner.target)).sum(1)
        return jnp.where(partner.accepted, jax.nn.softplus(others - toward), 0).sum() / jnp.maximum(alone.sum(), 1)

    z, w = pairs.anchor.pooled, pairs.text.pooled
    loss = (pull(z, found[0], row_loss) + pull(w, found[1], column_loss)) / 2
    spread = {f"variance/{name}": jax.lax.stop_gradient(x).var(axis=0).sum() for name, x in (("image", z), ("text", w))}
    return {"loss_unpaired": loss} | spread
