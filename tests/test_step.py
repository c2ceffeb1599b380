"""The train step: one compile, one gradient on any mesh, skipped steps, the bank it leaves behind."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bacl_jax.config import ConfigError, MeshConfig, OptimConfig
from bacl_jax.config_model import VisionConfig
from bacl_jax.config_objective import CLAConfig
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.objective import bank as memory
from bacl_jax.objective import unpaired
from bacl_jax.train.encode import encode_with_partners
from bacl_jax.train.step import build


@pytest.fixture(scope="module")
def trainer():
    return build(tiny.config(groups=8), tiny.VOCABULARY, tiny.one_device())


def test_compiles_once_and_learns(trainer):
    state = trainer.init(0)
    losses = []
    for i in range(20):
        state, metrics = trainer.step(state, to_global(trainer.mesh, tiny.batch(i % 2)))
        losses.append(float(metrics["loss_contrast"] - metrics["loss_floor"]))
    assert trainer.step._cache_size() == 1
    assert losses[-1] < 0.7 * losses[0]
    assert all(v.dtype == jnp.float32 and v.shape == () for v in metrics.values())
    assert (int(state.step), int(state.skipped)) == (20, 0)


def test_the_state_is_written_where_it_was_read(trainer):
    """Every buffer of the state is donated: a step needs no second copy of parameters, optimiser and bank."""
    state = trainer.abstract_state()
    compiled = trainer.step.lower(state, to_global(trainer.mesh, tiny.batch(0))).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def test_eight_devices_give_the_update_of_one(trainer):
    sharded = build(tiny.config(groups=8), tiny.VOCABULARY, make_mesh(MeshConfig()))
    states = []
    for t in (sharded, trainer):
        state = t.init(3)
        for i in range(2):
            state, metrics = t.step(state, to_global(t.mesh, tiny.batch(i)))
        states.append(jax.device_get((state, metrics)))
    chex.assert_trees_all_equal(states[0][0].bank.index, states[1][0].bank.index)
    chex.assert_trees_all_close(states[0][0].params, states[1][0].params, atol=1e-4)
    chex.assert_trees_all_close(states[0][1]["loss"], states[1][1]["loss"], rtol=1e-4)


def test_cut_from_the_towers_cla_leaves_their_updates_as_they_are(trainer):
    without = build(tiny.config(groups=8, cla=CLAConfig()), tiny.VOCABULARY, tiny.one_device())
    states = []
    for t in (trainer, without):
        state = t.init(1)
        for i in range(3):
            state, metrics = t.step(state, to_global(t.mesh, tiny.batch(i)))
        states.append((state.params, metrics))
    (ours, seen), (theirs, _) = states
    assert float(seen["grad_norm_cross_attention"]) > 0
    chex.assert_trees_all_close({k: v for k, v in ours.items() if k != "cross_attention"}, theirs, atol=1e-5)


def test_a_non_finite_step_is_skipped_and_counted(trainer):
    state = trainer.init(0)
    state, _ = trainer.step(state, to_global(trainer.mesh, tiny.batch(0)))
    broken = dataclasses.replace(state, params=state.params | {"log_scale": jnp.float32(np.nan)})
    before = jax.device_get(broken)
    after, metrics = trainer.step(broken, to_global(trainer.mesh, tiny.batch(1)))
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.opt_state, before.opt_state)
    chex.assert_trees_all_equal(after.bank.index, before.bank.index)
    assert (int(after.step), int(after.skipped), int(after.nonfinite)) == (2, 1, 1)
    assert float(metrics["nonfinite"]) == 1
    mended = dataclasses.replace(after, params=after.params | {"log_scale": jnp.float32(2.0)})
    healed, _ = trainer.step(mended, to_global(trainer.mesh, tiny.batch(2)))
    assert (int(healed.skipped), int(healed.nonfinite)) == (1, 0)


def test_bank_holds_the_last_rows_in_their_slots(trainer):
    state = trainer.init(0)
    for i in range(4):
        state, _ = trainer.step(state, to_global(trainer.mesh, tiny.batch(i)))
    index = np.full(48, -1)
    for t in range(4):
        index[(t * 16 + np.arange(16)) % 48] = tiny.batch(t).index
    assert state.bank.index.tolist() == index.tolist()
    chex.assert_trees_all_close(jnp.linalg.norm(state.bank.text, axis=1), jnp.ones(48), rtol=1e-4)


def test_bank_keeps_images_and_texts_apart(trainer):
    state, batch = trainer.init(0), tiny.batch(0)
    text = batch.inputs["text"]
    image, words = (
        trainer.encode_image(state.params, batch.inputs["image"].values).pooled,
        trainer.encode_text(state.params, text.values, text.mask).pooled,
    )
    image, words = jax.device_get((image, words))
    state, _ = trainer.step(state, to_global(trainer.mesh, batch))
    chex.assert_trees_all_close(state.bank.anchor[:16], image, atol=1e-5)
    chex.assert_trees_all_close(state.bank.text[:16], words, atol=1e-5)


def test_scale_is_projected_after_the_update():
    config = dataclasses.replace(tiny.plain(max_scale=15.0), optim=OptimConfig(lr=1.0, warmup_steps=0))
    t = build(config, tiny.VOCABULARY, tiny.one_device())
    state = t.init(0)
    for i in range(5):
        state, metrics = t.step(state, to_global(t.mesh, tiny.batch(i)))
        assert float(metrics["temperature"]) >= 1 / 15 - 1e-6


def test_same_seed_same_towers_whatever_the_objective(trainer):
    plain, full = build(tiny.plain(), tiny.VOCABULARY, tiny.one_device()).init(7), trainer.init(7)
    chex.assert_trees_all_equal(plain.params["towers"], full.params["towers"])
    assert set(full.params) - set(plain.params) == {"policy", "cross_attention"}


@pytest.mark.parametrize("change", [{"kind": "sigmoid", "init_scale": 10.0}, {"same_id": "mask"}])
def test_other_objectives_run(change):
    t = build(tiny.plain(**change), tiny.VOCABULARY, tiny.one_device())
    state, metrics = t.step(t.init(0), to_global(t.mesh, tiny.batch(0)))
    assert np.isfinite(float(metrics["loss"]))
    assert int(state.skipped) == 0


def test_a_step_that_makes_blocks_again_needs_less_memory():
    """On a CPU, without a scan, too (`compiler_options`)."""
    temp = {}
    for remat in ("none", "dots", "full"):
        image = VisionConfig(kind="vit", width=32, depth=6, heads=2, patch=4)
        model = dataclasses.replace(tiny.config().model, image=image, remat=remat)
        trainer = build(dataclasses.replace(tiny.config(), model=model), tiny.VOCABULARY, tiny.one_device())
        batch = to_global(trainer.mesh, tiny.batch(0))
        compiled = trainer.step.lower(trainer.abstract_state(), batch).compile()
        temp[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert temp["full"] < temp["dots"] < temp["none"], temp


def test_average_follows_the_parameters():
    config = dataclasses.replace(tiny.plain(), optim=OptimConfig(ema_decay=0.5))
    t = build(config, tiny.VOCABULARY, tiny.one_device())
    state = t.init(0)
    first = jax.device_get(state.params)
    state, _ = t.step(state, to_global(t.mesh, tiny.batch(0)))
    state, _ = t.step(state, to_global(t.mesh, tiny.batch(1)))
    chex.assert_trees_all_equal(t.eval_params(state), state.ema)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params["towers"], state.ema["towers"])
    assert max(jax.tree.leaves(moved)) > 0
    chex.assert_trees_all_equal_shapes(first, state.ema)


def test_batch_that_does_not_divide_is_refused():
    config = dataclasses.replace(tiny.config(), train=dataclasses.replace(tiny.config().train, batch_size=12))
    with pytest.raises(ConfigError, match=r"train.batch_size 12 does not divide over the 8 devices: use 8 or 16"):
        build(config, tiny.VOCABULARY, make_mesh(MeshConfig()))


def test_rows_that_stand_alone_train_with_captions_of_the_bank():
    """Those of the batch are there from the first step on, and all stay there. One device, eight, and micro-batches agree."""
    states = []
    for mesh, parts in ((tiny.one_device(), 1), (make_mesh(MeshConfig()), 1), (tiny.one_device(), 2)):
        config = tiny.unpaired(groups=8)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=parts))
        t = build(config, tiny.VOCABULARY, mesh)
        state, accepted = t.init(3), []
        for i in range(3):
            state, metrics = t.step(state, to_global(t.mesh, tiny.batch(i, paired=8)))
            accepted.append(float(metrics["unpaired_accepted"]))
        assert accepted == [1, 1, 1]
        assert 0 <= float(metrics["unpaired_recall"]) <= float(metrics["unpaired_precision"]) <= 1
        states.append(jax.device_get((state, metrics)))
    for other in states[1:]:
        chex.assert_trees_all_close(states[0][0].params, other[0].params, atol=1e-4)
        chex.assert_trees_all_equal(states[0][0].bank.caption_id, other[0].bank.caption_id)
    bank = states[0][0].bank
    np.testing.assert_array_equal(bank.paired, np.arange(48) % 16 < 8)
    np.testing.assert_array_equal(bank.caption_id, np.concatenate([tiny.batch(i, paired=8).caption_id for i in range(3)]))


def test_a_probable_pair_weighs_what_it_is_likely_to_be():
    config = tiny.unpaired()
    settings = dataclasses.replace(config.objective.unpaired, weight=1.5)
    t = build(config, tiny.VOCABULARY, tiny.one_device())
    state, batch = t.init(3), jax.tree.map(jnp.asarray, tiny.batch(0, paired=8))
    pairs, kept, _ = jax.jit(lambda *args: encode_with_partners(t.model, *args, settings))(
        state.params, batch, state.bank, jnp.float32(0.5)
    )
    seen = memory.push(state.bank, write=jnp.bool_(True), index=batch.index, **kept)
    found = unpaired.find(pairs.anchor.pooled, batch.anchor_id, batch.paired, seen, jnp.float32(0.5), config=settings)
    assert 0 < float(found.likely[8:].min()) < float(found.likely[8:].max()) < 1
    np.testing.assert_allclose(pairs.weight, np.where(batch.paired, 1, 1.5 * found.likely), rtol=1e-5)
    np.testing.assert_array_equal(pairs.caption_id[8:], np.asarray(seen.caption_id)[found.slot[8:]])
    np.testing.assert_array_equal(kept["caption_id"], batch.caption_id)


def test_the_truth_changes_nothing_but_what_is_logged():
    t = build(tiny.unpaired(), tiny.VOCABULARY, tiny.one_device())
    states = []
    for turn in (0, 1):
        state = t.init(3)
        for i in range(3):
            batch = tiny.batch(i, paired=8)
            batch = dataclasses.replace(batch, truth=np.roll(batch.truth, turn, 0))
            state, _ = t.step(state, to_global(t.mesh, batch))
        states.append(jax.device_get(state))
    chex.assert_trees_all_equal(*states)
