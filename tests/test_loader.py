import dataclasses
import io
import itertools
import time

import jax
import numpy as np
import pytest
from PIL import Image

from bacl_jax.config import Config, ConfigError
from bacl_jax.data import Tokenizer, batches, eval_batches, synthetic, transforms
from bacl_jax.data.loader import BatchBuilder
from bacl_jax.data.order import PartnerList, PartnerLists, batch_rows, with_partners
from bacl_jax.data.source import Example, hash_ids, normalise
from bacl_jax.data.stages import Stages

BASE = Config()
CONFIG = dataclasses.replace(
    BASE, train=dataclasses.replace(BASE.train, batch_size=24), data=dataclasses.replace(BASE.data, image_size=16, context_length=8)
)


@pytest.fixture(scope="module")
def data():
    return synthetic.load(CONFIG.data)


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer.train(data.captions, CONFIG.data)


def _first(count, *args, **options):
    return list(itertools.islice(batches(*args, **options), count))


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_batch_is_what_its_rows_say(data, tokenizer):
    (step, batch), *_ = _first(1, data, tokenizer, CONFIG, start_step=3)
    assert step == 3
    rows = batch_rows(CONFIG.seed, 3, 24, len(data.train))
    np.testing.assert_array_equal(batch.index, rows)
    examples = [data.train[row] for row in rows.tolist()]
    np.testing.assert_array_equal(batch.caption_id, hash_ids([each.caption for each in examples]))
    np.testing.assert_array_equal(batch.anchor_id, hash_ids([each.anchor_key for each in examples]))
    ids, mask = tokenizer.encode([each.caption for each in examples])
    np.testing.assert_array_equal(batch.inputs["text"].values, ids)
    np.testing.assert_array_equal(batch.inputs["text"].mask, mask)
    assert batch.inputs["image"].values.shape == (24, 16, 16, 3)
    assert batch.inputs["image"].values.dtype == np.uint8
    assert batch.index.dtype == np.int32
    assert all(present.all() and present.shape == (24,) for present in batch.present.values())


def test_restarted_at_any_step_it_goes_on_the_same(data, tokenizer):
    whole = _first(12, data, tokenizer, CONFIG, start_step=0)
    assert [step for step, _ in whole] == list(range(12))
    for start in (1, 5, 11):
        _equal(whole[start:], _first(12 - start, data, tokenizer, CONFIG, start_step=start))


def test_threads_and_read_ahead_do_not_change_a_thing(data, tokenizer):
    one = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, threads=1, prefetch=1))
    many = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, threads=4, prefetch=9))
    _equal(_first(8, data, tokenizer, one, start_step=2), _first(8, data, tokenizer, many, start_step=2))


def _partners(data, active_from=0):
    n = len(data.train)
    return PartnerList.from_bank(active_from, np.arange(n), np.random.default_rng(active_from).integers(-1, n, (n, 4)))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_hosts_together_make_the_batch_of_one(data, tokenizer, processes, share):
    def first(shard):
        lists = PartnerLists()
        lists.put(_partners(data))
        return _first(3, data, tokenizer, CONFIG, start_step=4, partners=lists, partner_share=lambda step: share, shard=shard)

    parts = [first(((process,), processes)) for process in range(processes)]
    for (step, expected), *hosts in zip(first(((0,), 1)), *parts, strict=True):
        assert {host_step for host_step, _ in hosts} == {step}
        _equal(expected, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(batch for _, batch in hosts)))


def test_partners_take_their_rows_as_full_pairs(data, tokenizer):
    lists = PartnerLists()
    lists.put(_partners(data, active_from=2))
    share = {0: 0.5, 1: 0.5, 2: 0.25, 3: 0.5}
    got = _first(4, data, tokenizer, CONFIG, start_step=0, partners=lists, partner_share=lambda step: share.get(step, 0.0))
    for step, batch in got:
        rows = batch_rows(CONFIG.seed, step, 24, len(data.train))
        if step >= 2:
            base, rows = rows, with_partners(rows, _partners(data, active_from=2), share[step], CONFIG.seed, step)
            assert lists.replaced_at(step) == (base != rows).sum() > 0
        else:
            assert lists.replaced_at(step) == 0
        np.testing.assert_array_equal(batch.index, rows)
        np.testing.assert_array_equal(batch.anchor_id, hash_ids([data.train[row].anchor_key for row in rows.tolist()]))


def test_a_list_put_after_its_step_is_in_time(data, tokenizer):
    """The loop puts the list of step t after step t was handed out; list_delay = prefetch + threads + 1 is enough, at any speed."""
    settings = dataclasses.replace(CONFIG.data, threads=2, prefetch=3)
    bns = dataclasses.replace(CONFIG.objective.bns, list_delay=6)
    config = dataclasses.replace(CONFIG, data=settings, objective=dataclasses.replace(CONFIG.objective, bns=bns))
    lists = PartnerLists()
    for step, batch in itertools.islice(batches(data, tokenizer, config, start_step=0, partners=lists, partner_share=lambda s: 0.5), 40):
        if step:  # one batch is fetched before the list of the step before is ready
            lists.put(_partners(data, active_from=step - 1 + 6))
        rows = batch_rows(config.seed, step, 24, len(data.train))
        if step >= 6:
            rows = with_partners(rows, _partners(data, active_from=step), 0.5, config.seed, step)
        np.testing.assert_array_equal(batch.index, rows)


def test_restart_from_the_live_lists(data, tokenizer):
    def run(start, count, saved):
        lists = PartnerLists()
        for each in saved:
            lists.put(each)
        return _first(count, data, tokenizer, CONFIG, start_step=start, partners=lists, partner_share=lambda step: 0.4), lists

    every = [_partners(data, active_from=step) for step in (2, 5, 9)]
    whole, lists = run(0, 12, every)
    for start in (3, 6, 9):
        _equal(whole[start:], run(start, 12 - start, lists.live(start))[0])


def test_augmentation_differs_by_step_and_is_off_when_told(data, tokenizer):
    plain = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, augment_scale=0.0, augment_shift=0.0))
    build = BatchBuilder(data, tokenizer, plain, partners=None, partner_share=lambda step: 0.0, shard=((0,), 1))
    _, batch = build(0)
    images, count = next(eval_batches(data.train, plain.data, len(data.train)))
    assert count == len(data.train)
    np.testing.assert_array_equal(batch.inputs["image"].values, images[batch.index])
    _, augmented = _first(1, data, tokenizer, CONFIG, start_step=0)[0]
    assert (augmented.inputs["image"].values != batch.inputs["image"].values).any()


def test_eval_batches_are_padded_to_one_shape(data):
    source = data.splits["test"].source
    got = list(eval_batches(source, CONFIG.data, 5))
    assert [count for _, count in got] == [5, 5, 5, 1]
    assert {images.shape for images, _ in got} == {(5, 16, 16, 3)}
    assert (got[-1][0][1:] == 0).all()
    assert not list(eval_batches(dataclasses.replace(source, images=[]), CONFIG.data, 5))


def test_settings_that_cannot_be(data, tokenizer):
    with pytest.raises(ConfigError, match=r"train.batch_size = 24 must be a multiple of the number of blocks that processes hold, 5"):
        batches(data, tokenizer, CONFIG, start_step=0, shard=((0,), 5))
    slow = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, prefetch=6, threads=2))
    with pytest.raises(ConfigError, match=r"list_delay = 8 must be more than data.prefetch \+ data.threads = 6 \+ 2"):
        batches(data, tokenizer, slow, start_step=0, partners=PartnerLists())
    batches(data, tokenizer, slow, start_step=0)


class Arrows:
    """Pictures with a dark left half; every second caption says so."""

    captions = ("a plain arrow", "the LEFT arrow")

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[:, :8] = 0
        return Example(image, normalise(self.captions[index % 2]), str(index))


def test_a_picture_whose_caption_says_left_or_right_is_never_mirrored(tokenizer):
    augment = dataclasses.replace(CONFIG.data, augment_scale=0.0, augment_shift=0.0, augment_flip=True)
    config = dataclasses.replace(CONFIG, data=augment, train=dataclasses.replace(CONFIG.train, batch_size=40))
    data = dataclasses.replace(synthetic.load(CONFIG.data), train=Arrows())
    for step, batch in _first(4, data, tokenizer, config, start_step=0):
        mirrored = batch.inputs["image"].values[:, 8, 0, 0] == 255
        assert not mirrored[batch.index % 2 == 1].any(), step
        assert 3 < mirrored.sum() < 17


def test_stages_tell_what_takes_the_readers_time(tokenizer):
    class Slow(Arrows):
        def __getitem__(self, index):
            time.sleep(0.002)
            return super().__getitem__(index)

    stages = Stages()
    _first(3, dataclasses.replace(synthetic.load(CONFIG.data), train=Slow()), tokenizer, CONFIG, start_step=0, stages=stages)
    found = stages.seconds()
    assert found["reading"] >= 3 * 24 * 0.002
    assert found["reading"] > max(found["decoding"], found["tokenising"]) > 0


@pytest.mark.parametrize("crop", ["square", "resized"])
def test_batches_of_stored_pictures_are_the_same_on_any_number_of_threads_and_after_a_restart(tokenizer, crop):
    class Stored(Arrows):
        def __getitem__(self, index):
            pixels = np.random.default_rng(index).integers(0, 255, (5, 7, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).resize((60 + index, 90), Image.Resampling.BICUBIC).save(file, ("JPEG", "PNG")[index % 2])
            return Example(transforms.Encoded(file.getvalue(), str(index), "", 10**6, 32), "an arrow", str(index))

    data = dataclasses.replace(synthetic.load(CONFIG.data), train=Stored())
    one = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, augment_crop=crop, threads=1, prefetch=1))
    many = dataclasses.replace(one, data=dataclasses.replace(one.data, threads=4, prefetch=6))
    whole = _first(5, data, tokenizer, one, start_step=0)
    _equal(whole, _first(5, data, tokenizer, many, start_step=0))
    _equal(whole[3:], _first(2, data, tokenizer, many, start_step=3))
