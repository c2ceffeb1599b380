"""Channel (c) of BNS: for every id in the bank, the rows of the data set that are drawn beside it into a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bacl_jax.config_objective import BNSConfig
from bacl_jax.objective import bns
from bacl_jax.objective.bank import Bank
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows


def partner_lists(
    bank: Bank, policy: bns.PolicyFn, key: Array, *, alpha: Array, config: BNSConfig, shards: Shards = ONE_DEVICE
) -> tuple[Int[Array, " M"], Int[Array, "M k"]]:
    """(index [M], partners [M, k]): rows of the training source, -1 for an empty slot or no partner.

    For each slot BNS draws `partner_k` of its candidates in the bank without replacement. O(M pool) memory, O(M^2 D) work.
    """
    query = Rows(x=bank.anchor, caption_id=bank.caption_id, anchor_id=bank.anchor_id, valid=bank.filled)
    own, keys = (bank.anchor * bank.text).sum(-1), bns.row_keys(key, jnp.arange(bank.index.shape[0]))
    drawn = bns.sample(query, bank.texts(), own, policy, keys, alpha=alpha, config=config, shards=shards)
    best, order = jax.lax.top_k(drawn.perturbed, min(config.partner_k, drawn.perturbed.shape[1]))
    chosen = bank.index[jnp.take_along_axis(drawn.candidates.column, order, 1)]
    return bank.index, jnp.where((best > MASKED / 2) & bank.filled[:, None], chosen, -1)
