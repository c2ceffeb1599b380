"""Boundary-aware Negative Sampler (arXiv 2511.08399): candidates, policy score, schedule, Gumbel draw, policy loss.

What is the paper's and what is ours is told apart in docs/method.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config_objective import BNSConfig
from bacl_jax.objective.shards import ONE_DEVICE, Shards
from bacl_jax.objective.similarity import MASKED, Rows, search
from bacl_jax.types import pytree

PolicyFn = Callable[..., Array]  # models/policy.py


@pytree
class Candidates:
    """K candidates of each of A anchors: column numbers, similarity s, boundary score BS, validity."""

    column: Int[Array, "A K"]
    s: Float[Array, "A K"]
    boundary: Float[Array, "A K"]
    valid: Bool[Array, "A K"]


@pytree
class Draw:
    """What BNS decided: adjusted scores a, soft weights q (each row sums to 1), the order of the Gumbel draw."""

    candidates: Candidates
    adjusted: Float[Array, "A K"]
    q: Float[Array, "A K"]
    perturbed: Float[Array, "A K"]


def row_keys(key: Array, rows: Int[Array, " A"]) -> Array:
    """One key a global row: noise never depends on the shard that holds the row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def choose_candidates(
    query: Rows,
    columns: Rows,
    own: Float[Array, " A"],
    keys: Array,
    *,
    config: BNSConfig,
    paired: Bool[Array, " A"] | None = None,
    shards: Shards = ONE_DEVICE,
) -> Candidates:
    """The k most similar columns, and one drawn uniformly from each of pool - k equal strata of all columns.

    Only columns that are valid and no positives of the query count. own: s_ii, the similarity of the anchor's own pair;
    BS_ij = s_ij - s_ii. A stratum's draw that does not count, or is among the k, is not valid; so K <= pool are valid. A row that is
    not `paired` (None: all are) has no boundary, and no candidates.
    """
    n = columns.valid.shape[0]
    k, extra = min(config.k, n), max(min(config.pool, n) - config.k, 0)
    edges = jnp.arange(extra + 1) * n // max(extra, 1)
    share = jax.vmap(lambda key: jax.random.uniform(key, (extra,)))(keys)
    stratum = edges[None, :-1] + jnp.floor(share * (edges[1:] - edges[:-1])[None]).astype(jnp.int32)
    top, column, s = search(query, columns, stratum, k=k, shards=shards, recall=config.recall)
    among_top = (stratum[:, :, None] == column[:, None]).any(2)
    column, s = jnp.concatenate([column, stratum], 1), jnp.concatenate([top, jnp.where(among_top, MASKED, s)], 1)
    valid = s > MASKED / 2 if paired is None else (s > MASKED / 2) & paired[:, None]
    s = jnp.where(valid, s, 0)
    return Candidates(column=column, s=s, boundary=jnp.where(valid, s - own[:, None], 0), valid=valid)


def adjusted_score(
    score: Float[Array, "A K"], boundary: Float[Array, "A K"], valid: Bool[Array, "A K"], alpha: Array, tau_b: float
) -> Float[Array, "A K"]:
    """a_ic = pi_ic - alpha BS_ic / tau_b, pi centred over the valid candidates; invalid ones are masked."""
    count = jnp.maximum(valid.sum(1, keepdims=True), 1)
    centred = score - jnp.where(valid, score, 0).sum(1, keepdims=True) / count
    return jnp.where(valid, centred - alpha * boundary / tau_b, MASKED)


def draw(
    candidates: Candidates,
    anchor: Float[Array, "A D"],
    columns: Float[Array, "N D"],
    policy: PolicyFn,
    keys: Array,
    *,
    alpha: Float[Array, ""],
    config: BNSConfig,
    shards: Shards = ONE_DEVICE,
) -> Draw:
    """Scores the candidates and draws by Gumbel-Softmax (arXiv 1611.01144): q = softmax((a + g) / tau_g).

    `perturbed` orders the draw: its largest n entries are n candidates drawn without replacement with
    probability proportional to e^a (Gumbel top-n, arXiv 1903.06059). All inputs are cut from the gradient
    except the policy's parameters.
    """
    anchor, columns, c = jax.lax.stop_gradient((anchor, columns, candidates))
    score = policy(anchor, columns, lambda x: shards.everywhere(x)[c.column], c.s, c.boundary)
    a = adjusted_score(score, c.boundary, c.valid, alpha, config.tau_b)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, c.s.shape[1:]))(keys)
    perturbed = jnp.where(c.valid, a + gumbel, MASKED)
    q = jnp.where(c.valid, jax.nn.softmax(perturbed / config.tau_g, axis=1), 0)
    return Draw(candidates=c, adjusted=a, q=q, perturbed=perturbed)


def sample(
    query: Rows,
    columns: Rows,
    own: Float[Array, " A"],
    policy: PolicyFn,
    keys: Array,
    *,
    alpha: Float[Array, ""],
    config: BNSConfig,
    paired: Bool[Array, " A"] | None = None,
    shards: Shards = ONE_DEVICE,
) -> Draw:
    """`choose_candidates`, then `draw`, with the two halves of each row's key: the whole of BNS for one set of anchors."""
    own = jax.lax.stop_gradient(own)
    pick, noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    candidates = choose_candidates(query, columns, own, pick, config=config, paired=paired, shards=shards)
    return draw(candidates, query.x, columns.x, policy, noise, alpha=alpha, config=config, shards=shards)


def hardest(drawn: Draw) -> tuple[Int[Array, " A"], Bool[Array, " A"]]:
    """Column of the candidate with the highest weight, and whether there is one at all."""
    best = drawn.perturbed.argmax(1)[:, None]
    take = lambda x: jnp.take_along_axis(x, best, 1)[:, 0]  # noqa: E731
    return take(drawn.candidates.column), take(drawn.candidates.valid)


def policy_loss(drawn: Draw, *, alpha: Float[Array, ""], config: BNSConfig) -> Float[Array, ""]:
    """-mean_i sum_c q_ic reward_ic - entropy_bonus H(softmax(a / tau_g)); reward BS, or -alpha BS / tau_b by switch."""
    c = drawn.candidates
    reward = c.boundary if config.reward == "boundary" else -alpha * c.boundary / config.tau_b
    gain = (drawn.q * jax.lax.stop_gradient(jnp.where(c.valid, reward, 0))).sum(1).mean()
    return -gain - config.entropy_bonus * entropy(drawn, config.tau_g)


def entropy(drawn: Draw, tau_g: float) -> Float[Array, ""]:
    """Mean entropy, in nats, of softmax(a / tau_g): the draw without its noise."""
    log_p = jax.nn.log_softmax(drawn.adjusted / tau_g, axis=1)
    return -jnp.where(drawn.candidates.valid, jnp.exp(log_p) * log_p, 0).sum(1).mean()


QUANTILES = (0.1, 0.5, 0.9)


def diagnostics(drawn: Draw, config: BNSConfig) -> dict[str, Float[Array, ""]]:
    """Mean BS of the draw and of a uniform one, shares of ambiguous and of preferred candidates, entropy, mass on BS > -eps.

    Of the one candidate that each anchor draws: quantiles of BS, and `false_positive_share`, that with BS > 0. All 0 without candidates.
    """
    c = drawn.candidates
    total = jnp.maximum(c.valid.sum(), 1)

    def mean(x: Array) -> Array:
        return jnp.where(c.valid, x, 0).sum() / total

    best = drawn.perturbed.argmax(1)[:, None]
    one, there = (jnp.take_along_axis(x, best, 1)[:, 0] for x in (c.boundary, c.valid))
    spread = jnp.nan_to_num(jnp.nanquantile(jnp.where(there, one, jnp.nan), jnp.asarray(QUANTILES)))
    return {f"bs_drawn_p{100 * level:.0f}": value for level, value in zip(QUANTILES, spread, strict=True)} | {
        "bs_drawn": (drawn.q * jnp.where(c.valid, c.boundary, 0)).sum(1).mean(),
        "bs_uniform": mean(c.boundary),
        "ambiguous_share": mean(jnp.abs(c.boundary) <= config.eps),
        "hard_share": mean(c.boundary > 0),
        "hard_mass": (drawn.q * (c.valid & (c.boundary > -config.eps))).sum(1).mean(),
        "q_entropy": entropy(drawn, config.tau_g),
        "false_positive_share": jnp.where(there, one > 0, 0).sum() / jnp.maximum(there.sum(), 1),
    }
