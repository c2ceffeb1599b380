"""The settings of the objective: the contrastive term, BNS, CLA, rows that lack a modality. Read by `bacl_jax.config`."""

import dataclasses
from typing import Annotated, Literal

from bacl_jax.settings import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Range, Share, changeable


@dataclasses.dataclass(frozen=True)
class BNSConfig:
    """Boundary-aware Negative Sampler (arXiv 2511.08399)."""

    enabled: bool = False
    k: Positive = 8  # hardest candidates of an anchor
    pool: Positive = 16  # candidates of an anchor: the k hardest plus a stratified uniform draw; pool = k is the literal paper
    recall: Annotated[float, Range(0, 1, open_low=True)] = 0.95  # share of the k hardest that TPUs find; 1, and elsewhere: all
    reweight: bool = True  # channel (a): in-batch candidates enter the denominator once more, weight k q
    drawn_share: Share = 0.25  # channel (b): share of rows, by score, whose drawn bank caption is re-encoded as a column; 0: off
    stale: bool = False  # ablation: bank embeddings enter the denominator as they are
    partner_share: Annotated[float, Range(0, 0.9)] = 0.0  # channel (c): share of the batch from partners at the end; 0: off
    partner_k: Positive = 32  # channel (c): partners kept for each id of the bank
    partner_every: Positive = 100  # channel (c): steps between two partner lists
    list_delay: Positive = 8  # channel (c): steps before a new list acts; more than data.prefetch + data.threads
    hidden: Positive = 32  # policy MLP
    policy_bound: PositiveFloat | None = 1.0  # |policy score| <= this; None: unbounded, the literal paper
    alpha_early: float = 0.3  # schedule at the start: > 0 suppresses hard candidates
    alpha_late: float = -0.5  # schedule at the end: < 0 seeks them
    slope: PositiveFloat = 1.5
    horizon: PositiveFloat = 10.0  # V: the schedule runs over v = V * progress
    midpoint: Annotated[float, Range(0, 1, open_low=True)] = 0.15  # progress at which alpha is halfway between early and late
    tau_b: PositiveFloat = 0.02  # unit of the boundary score
    tau_g: PositiveFloat = 0.5  # Gumbel-Softmax temperature
    eps: PositiveFloat = 0.1  # |boundary score| <= eps counts as ambiguous
    reward: Literal["boundary", "schedule"] = "boundary"
    entropy_bonus: NonNegativeFloat = 0.01

    @property
    def draws_partners(self) -> bool:
        """Whether channel (c) is on."""
        return self.enabled and self.partner_share > 0


@dataclasses.dataclass(frozen=True)
class CLAConfig:
    """Contrastive Local Attention (arXiv 2511.08399)."""

    enabled: bool = False
    layers: Positive = 1  # cross-modal layers; the paper has 4
    width: Positive = 64
    heads: Positive = 1  # A is the mean over the heads, which blurs it
    row_share: Annotated[float, Range(0, 1, open_low=True)] = 0.125  # share of the rows that CLA sees each step
    easy: NonNegative = 1  # captions of other rows that the matching loss rejects beside the drawn one
    top: Positive = 10  # entries of dA in Omega
    beta: NonNegativeFloat = 1.0
    stop_gradient: Literal["none", "positive", "all"] = "none"
    lambda_local: NonNegativeFloat = 0.03
    lambda_match: NonNegativeFloat = 1.0
    into_towers: bool = False  # both losses reach the towers; False: they train the cross-modal layers alone


@dataclasses.dataclass(frozen=True)
class UnpairedConfig:
    """Rows that lack one modality (data.unpaired_share; arXiv 2302.06232)."""

    enabled: bool = False
    weight: PositiveFloat = 2.0  # of a probable pair, times its soft weight; that of a pair is 1
    start: Share = 0.5  # progress before which no partner is accepted
    k: Positive = 8  # most similar entries of the bank that have soft weights
    tau_early: PositiveFloat = 0.02  # temperature of the soft weights, of cosines, at `start`
    tau_late: PositiveFloat = 0.01  # at the end; between them it falls geometrically
    confidence: Share = 0.0  # least soft weight of the best partner
    mutual: NonNegative = 1  # the picture is among so many that are most similar to the caption; 0: not asked


@dataclasses.dataclass(frozen=True)
class MMCLConfig:
    """The form of kind = "mmcl": a general contrastive loss (arXiv 2302.06232)."""

    form: str = "gce"  # infonce, linear, softplus, hinge, gce, ramp, or module:function of one that returns a Form
    q: PositiveFloat | None = None  # gce: 0 to InfoNCE, 1 to the mean absolute error; None: the form's own
    margin: float | None = None  # hinge, in logits; None: the form's own
    tau: PositiveFloat | None = None  # unit of psi, in logits, for the forms that have one; None: the form's own
    eps: NonNegativeFloat | None = None  # weight of psi(0) in each sum; None: the form's own
    nu: NonNegativeFloat | None = None  # share of the own logit that is taken off the others; None: the form's own


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    weights: tuple[PositiveFloat, ...] = (1.0,)  # of the terms in the sum: one for each of data.anchors
    kind: Literal["infonce", "sigmoid", "mmcl"] = "infonce"
    same_id: Literal["positive", "mask"] = "positive"  # rows of one caption or one anchor: positives, or left out
    init_scale: PositiveFloat = 7.0  # exp(log_scale) at the start; sigmoid: 10
    max_scale: PositiveFloat = 100.0
    init_bias: float = -10.0  # sigmoid only
    bank_size: Positive = 6144  # slots of the memory bank; any size that divides over the devices
    groups: Positive = 1  # parts of the batch that choose rows of (b) and CLA apart; a mesh of up to so many devices does not change them
    contrast: Literal["auto", "dense", "chunked", "ring"] = changeable(
        "auto"
    )  # one value in three ways; auto: dense while small, else ring
    tile: Positive = changeable(1024)  # rows and columns that are compared at a time
    bns: BNSConfig = BNSConfig()
    cla: CLAConfig = CLAConfig()
    unpaired: UnpairedConfig = UnpairedConfig()
    mmcl: MMCLConfig = MMCLConfig()
