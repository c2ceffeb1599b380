"""Channel (c) of BNS: for every id in the bank, the rows of the data set that are drawn beside it into a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bacl_jax.config import BNSConfig
from bacl_jax.objective import bns
from bacl_jax.objective.bank import Bank, representative, tiles
from bacl_jax.objective.similarity import MASKED, cosine, positives


def partner_lists(
    bank: Bank, policy: bns.PolicyFn, key: Array, *, alpha: Array, config: BNSConfig, tile: int = 512
) -> tuple[Int[Array, " M"], Int[Array, "M k"]]:
    """(index [M], partners [M, k]): rows of the training source, -1 for an empty slot or no partner.

    For each slot BNS draws `partner_k` of its candidates in the bank without replacement. The score matrix exists one
    tile of anchors at a time: O(tile M) memory, O(M^2 D) work.
    """
    size = bank.index.shape[0]
    rows = tiles(size, tile)
    one_each = representative(bank.caption_id, bank.filled)

    def one_tile(slots: Array) -> Array:
        z = bank.anchor[slots]
        allowed = one_each[None] & ~positives(bank.caption_id[slots], bank.anchor_id[slots], bank.caption_id, bank.anchor_id)
        allowed &= bank.filled[slots][:, None]
        own = (z * bank.text[slots]).sum(-1)
        keys = bns.row_keys(key, slots)
        drawn = bns.sample(cosine(z, bank.text), own, allowed, z, bank.text, policy, keys, alpha=alpha, config=config)
        best, order = jax.lax.top_k(drawn.perturbed, min(config.partner_k, drawn.perturbed.shape[1]))
        chosen = bank.index[jnp.take_along_axis(drawn.candidates.column, order, 1)]
        return jnp.where(best > MASKED / 2, chosen, -1)

    partners = jax.lax.map(one_tile, jnp.arange(size).reshape(-1, rows))
    return bank.index, partners.reshape(size, -1)
