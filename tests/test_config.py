import dataclasses
import json
import math
import shlex
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from bacl_jax.config import (
    Config,
    ConfigError,
    changed_fields,
    check_resumable,
    default_config_dict,
    flatten,
    from_config_dict,
    is_changeable,
    sha256,
    to_dict,
)
from bacl_jax.settings import Range, describe_field

FIELDS = flatten(Config())


def nested(name, value):
    *groups, leaf = name.split(".")
    result = {leaf: value}
    for group in reversed(groups):
        result = {group: result}
    return result


def refused(name, value):
    with pytest.raises(ConfigError) as error:
        from_config_dict(nested(name, value))
    message = str(error.value)
    assert "\n" not in message
    assert f"config.{name}" in message
    return message


def test_defaults_come_back():
    assert from_config_dict(default_config_dict()) == Config()
    assert from_config_dict({}) == Config()
    assert from_config_dict(json.loads(json.dumps(to_dict(Config())))) == Config()


def test_unknown_keys_are_refused_with_the_nearest():
    assert refused("objective.bns.kk", 3) == "config.objective.bns.kk is unknown: did you mean --config.objective.bns.k?"
    assert "the fields of config are seed, data, model" in refused("qqqqqq", 3)
    with pytest.raises(ConfigError, match=r"^config.a\\nb is unknown"):
        from_config_dict({"a\nb": 1})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("seed", 1.5, "an integer >= 0 and <= 4294967295"),
        ("seed", True, "an integer >= 0 and <= 4294967295"),
        ("seed", -1, "an integer >= 0 and <= 4294967295"),
        ("seed", "1", "an integer >= 0 and <= 4294967295"),
        ("seed", 2**32, "an integer >= 0 and <= 4294967295"),
        ("train.keep_best", "i2t_median_rank", "one of i2t_R@1, i2t_R@5"),
        ("train.keep_best", 1, "v2t_R@1, v2t_R@5, v2t_R@10, v2t_mAP or None"),
        ("optim.lr", 0, "a finite number > 0"),
        ("optim.lr", "0.1", "a finite number > 0"),
        ("optim.lr", True, "a finite number > 0"),
        ("optim.lr", math.nan, "a finite number > 0"),
        ("optim.lr", math.inf, "a finite number > 0"),
        ("optim.lr", 10**400, "a finite number > 0"),
        ("optim.b2", 1.0, "a finite number >= 0 and < 1"),
        ("optim.ema_decay", "no", "a finite number >= 0 and < 1 or None"),
        ("train.steps", None, "an integer >= 1"),
        ("train.save_minutes", 0, "a finite number > 0 or None"),
        ("data.path", 3, "a text or None"),
        ("data.vendors", "Goog", "a tuple, each entry a text"),
        ("data.vendors", ["Goog", 1], "a tuple, each entry a text"),
        ("data.augment_flip", 1, "True or False"),
        ("data.kind", "imagenet", "one of emoji, manifest"),
        ("data.kind", 1, "one of emoji, manifest"),
        ("eval.tasks", ("retrieval", "vqa"), "each entry one of retrieval, halftrue, localization"),
        ("objective.bns.partner_share", 0.95, ">= 0 and <= 0.9"),
        ("mesh.whole", (".*", "("), "a tuple, each entry a text that is a regular expression"),
    ],
)
def test_wrong_values_are_refused_with_the_allowed_ones(name, value, allowed):
    message = refused(name, value)
    assert allowed in message
    assert f"--config.{name}=" in message


def test_a_group_is_no_value():
    assert "must be a group of fields" in refused("objective", 3)
    assert f"e.g. --config.train.steps={FIELDS['train.steps']}" in refused("train", None)


@pytest.mark.parametrize(
    ("name", "value"), [("optim.lr", 1), ("train.save_minutes", 3), ("train.save_minutes", None), ("data.vendors", ["Goog"])]
)
def test_numbers_and_sequences_are_converted(name, value):
    found = flatten(from_config_dict(nested(name, value)))[name]
    assert found == (tuple(value) if isinstance(value, list) else value)
    assert not isinstance(found, int)


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({"data": {"kind": "manifest"}}, "data.path", "must name a CSV, JSONL or Parquet file"),
        ({"data": {"tokenizer": "file", "vocab_size": 9}}, "data.tokenizer_path", "must name a tokenizer.json, CLIP's"),
        ({"data": {"tokenizer": "bpe", "tokenizer_path": "vocab.txt"}}, "data.tokenizer_path", "must be None where data.tokenizer is bpe"),
        ({"data": {"vendors": []}}, "data.vendors", "at least one"),
        ({"data": {"holdout": "vendor", "holdout_vendors": ["Noto"]}}, "data.holdout_vendors", "some, not all, of data.vendors"),
        ({"data": {"holdout": "vendor", "holdout_vendors": ["Goog", "Twtr"]}}, "data.holdout_vendors", "some, not all"),
        ({"data": {"image_size": 30}}, "model.image.patch", "must divide data.image_size = 30"),
        ({"model": {"text": {"heads": 3}}}, "model.text.heads", "must divide model.text.width = 128"),
        ({"model": {"image": {"kind": "vit", "heads": 3}}}, "model.image.heads", "must divide model.image.width = 64"),
        ({"objective": {"cla": {"heads": 3}}}, "objective.cla.heads", "must divide objective.cla.width = 64"),
        ({"objective": {"init_scale": 200}}, "objective.init_scale", "<= objective.max_scale = 100"),
        ({"objective": {"bns": {"k": 600}}}, "objective.bns.pool", ">= objective.bns.k = 600"),
        (
            {"objective": {"bank_size": 100, "bns": {"enabled": True, "pool": 512}}},
            "objective.bns.pool",
            "<= objective.bank_size + train.batch_size = 356",
        ),
        (
            {"objective": {"bank_size": 20, "bns": {"enabled": True, "k": 8, "pool": 8, "partner_share": 0.5}}},
            "objective.bns.partner_k",
            "bank_size = 20",
        ),
        (
            {"objective": {"bns": {"enabled": True, "list_delay": 6, "partner_share": 0.5}}},
            "objective.bns.list_delay",
            "> data.prefetch + data.threads = 6",
        ),
        ({"objective": {"cla": {"stop_gradient": "all"}}}, "objective.cla.beta", "must be 0"),
        ({"train": {"steps": 50}}, "optim.warmup_steps", "< train.steps = 50"),
        ({"eval": {"tasks": ["halftrue"]}}, "eval.tasks", "must hold retrieval, which gives train.keep_best = i2t_R@1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(settings, name, said):
    with pytest.raises(ConfigError) as error:
        from_config_dict(settings)
    assert str(error.value).startswith(f"config.{name} = ")
    assert said in str(error.value)


def test_rules_of_what_is_off_do_not_bite():
    from_config_dict({"objective": {"bns": {"enabled": False, "list_delay": 1, "partner_share": 0.5}}})
    from_config_dict({"objective": {"bns": {"enabled": True, "list_delay": 1, "partner_share": 0}}})
    from_config_dict({"eval": {"tasks": []}, "train": {"keep_best": None}})


def test_sha256_is_of_the_content():
    assert sha256(from_config_dict(default_config_dict())) == sha256(Config())
    digests = {sha256(from_config_dict({"seed": seed})) for seed in range(5)}
    assert len(digests) == 5
    assert sha256(from_config_dict({"train": {"save_minutes": 1}})) == sha256(Config())


def test_only_changeable_fields_may_change():
    old = Config()
    new = from_config_dict({"train": {"steps": 2000, "save_minutes": None}, "mesh": {"fsdp": 2}, "data": {"path": "x", "prefetch": 3}})
    assert changed_fields(old, new)["train.steps"] == (FIELDS["train.steps"], 2000)
    check_resumable(old, new)
    with pytest.raises(
        ConfigError, match=r"config.optim.lr was [0-9.]+, is now 0.1\. Take another --workdir, or set back: --config.optim.lr="
    ):
        check_resumable(old, from_config_dict({"optim": {"lr": 0.1}, "train": {"steps": 2000}}))


def test_the_way_back_can_be_pasted_into_a_shell():
    old = from_config_dict({"data": {"vendors": ["Goog"]}})
    with pytest.raises(ConfigError) as refusal:
        check_resumable(old, from_config_dict({}))
    back = str(refusal.value).partition("set back: ")[2]
    assert shlex.split(back) == ["--config.data.vendors=('Goog',)"]


def test_what_may_change_is_what_the_architecture_lists():
    changeable = {name for name in FIELDS if is_changeable(name)}
    assert changeable == {
        "data.path",
        "data.index",
        "data.folder",
        "data.on_error",
        "data.max_error_share",
        "data.cache_mib",
        "data.threads",
        "data.features",
        "data.prefetch",
        "data.clips.folder",
        "model.image.pretrained",
        "model.text.pretrained",
        "model.remat",
        "model.scan_layers",
        "objective.contrast",
        "objective.tile",
        *(name for name in FIELDS if name.startswith(("mesh.", "eval.", "watch."))),
        *(name for name in FIELDS if name.startswith("train.") and name != "train.batch_size"),
    }


def test_ranges():
    assert 0 in Range(0, 1)
    assert 0 not in Range(0, 1, open_low=True)
    assert 1 not in Range(0, 1, open_high=True)
    assert str(Range(0, 1, open_low=True)) == "> 0 and <= 1"
    assert describe_field(Config, "data.path") == "a text or None"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3) | st.tuples(inner),
    max_leaves=6,
)
names = st.sampled_from([*FIELDS, "data", "objective.bns", "train"]) | st.text(max_size=12).filter(lambda text: "." not in text)


@given(st.lists(st.tuples(names, anything), max_size=4))
def test_whatever_comes_is_a_config_or_a_config_error(settings):
    mapping = {}
    for name, value in settings:
        *groups, leaf = name.split(".")
        place = mapping
        for group in groups:
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place[leaf] = value
    config, message = read_or_refused(mapping)
    if config is None:
        assert message.startswith("config")
        assert "\n" not in message
        return
    assert_types(config)
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config


def read_or_refused(mapping):
    try:
        return from_config_dict(mapping), ""
    except ConfigError as error:
        return None, str(error)


def assert_types(config):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            assert_types(value)
        elif field.type is bool:
            assert type(value) is bool
        elif typing.get_origin(field.type) is typing.Annotated:
            base, allowed = typing.get_args(field.type)
            assert type(value) is base
            assert value in allowed


def test_a_locked_config_dict_with_references_is_read():
    settings = default_config_dict()
    settings.train.save_minutes = None
    settings.optim.warmup_steps = 3
    settings.lock()
    config = from_config_dict(settings)
    assert (config.train.save_minutes, config.optim.warmup_steps) == (None, 3)
    assert isinstance(default_config_dict().objective.bns, ConfigDict)
