"""Published weights in and out without the peers: one round trip, strict reading, hostile files, other sizes."""

import dataclasses
import io
import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from bacl_jax import interop
from bacl_jax.config import ConfigError, flatten
from bacl_jax.data.files import located
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.interop import card, export, sizes
from bacl_jax.interop.files import Stored, open_weights
from bacl_jax.interop.layouts import OPEN_CLIP_SIGLIP
from bacl_jax.interop.pretrained import resized_grid
from bacl_jax.mesh import make_mesh, to_host
from bacl_jax.models import Model
from bacl_jax.paths import named
from bacl_jax.train.step import build

CAPTIONS = [f"{colour} {shape} on a {ground}" for colour in ("red", "blue") for shape in ("circle", "square") for ground in ("hill", "sea")]


def config(**changes):
    """Towers of CLIP's form; changes: fields by dotted name."""
    base = tiny.plain()
    image = dataclasses.replace(base.model.image, kind="clip", width=16, depth=2, activation="gelu", pixels="clip")
    text = dataclasses.replace(base.model.text, kind="clip", depth=2, activation="gelu")
    data = dataclasses.replace(base.data, tokenizer="clip", vocab_size=600, resample="bicubic", context_length=12)
    found = dataclasses.replace(base, data=data, model=dataclasses.replace(base.model, image=image, text=text))
    for name, value in changes.items():
        found = changed(found, name.split("__"), value)
    return found


def changed(group, names, value):
    first, *rest = names
    return dataclasses.replace(group, **{first: changed(getattr(group, first), rest, value) if rest else value})


def both(place, **changes):
    return config(model__image__pretrained=str(place), model__text__pretrained=str(place), **changes)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, config().data)


@pytest.fixture(scope="module")
def params(tokenizer):
    """Every parameter at random, biases and norms too."""
    fresh = jax.jit(Model(config(), tokenizer.vocab_size).init)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(fresh)
    r = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [np.asarray(x) + 0.1 * r.standard_normal(x.shape, np.float32) for x in leaves])


@pytest.fixture(scope="module", params=["hf", "open_clip"])
def exported(request, params, tokenizer, tmp_path_factory):
    return export.write(tmp_path_factory.mktemp("out") / request.param, config(), tokenizer, params, request.param, "card")


@pytest.fixture
def hf(params, tokenizer, tmp_path):
    return export.write(tmp_path / "hf", config(), tokenizer, params, "hf", "card")


def shapes(one, vocab_size):
    return {path: leaf.shape for path, leaf in named(jax.eval_shape(Model(one, vocab_size).init, jax.random.key(0)))}


def read(one, tokenizer):
    return interop.weights(one, shapes(one, tokenizer.vocab_size))


def test_a_round_trip_is_equal_in_every_bit(exported, params, tokenizer):
    found = read(both(exported), tokenizer)
    expected = dict(named(params))
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_the_config_that_describes_what_was_exported(exported):
    """All that the model was, told by the folder."""
    found, one = interop.described(str(exported)), flatten(config())
    same = {name for name in found if not name.endswith(("pretrained", "tokenizer", "tokenizer_path", "vocab_size"))}
    assert {name: found[name] for name in same} == {name: one[name] for name in same}
    assert {"model.image.heads", "model.image.pixels", "model.embed_dim", "data.image_size", "data.context_length"} <= same
    assert (found["data.tokenizer"], found["data.tokenizer_path"]) == ("file", f"{exported}/tokenizer.json")


def test_a_folder_that_does_not_tell_all_is_refused(hf):
    with pytest.raises(ConfigError, match=r"does not tell model.image.activation, model.image.heads, model.image.pixels, model.text"):
        interop.described(str(hf / "model.safetensors"))


def test_another_tower_is_an_error_with_the_flags_that_fit(hf, tokenizer):
    with pytest.raises(ConfigError, match=r"--config.model.image.width=16 --config.model.image.depth=2"):
        read(both(hf, model__image__width=8, model__image__depth=1), tokenizer)
    with pytest.raises(ConfigError, match=r"set --config.model.text.activation=gelu$"):
        read(both(hf, model__text__activation="quick_gelu"), tokenizer)
    with pytest.raises(ConfigError, match=r"set --config.model.image.pixels=clip$"):
        read(both(hf, model__image__pixels="half"), tokenizer)
    with pytest.raises(ConfigError, match=r"set --config.model.image.mlp_ratio=4.0$"):
        read(both(hf, model__image__mlp_ratio=3.0), tokenizer)


def test_one_tower_alone_brings_no_temperature(hf, tokenizer):
    found = read(config(model__text__pretrained=str(hf)), tokenizer)
    assert found
    assert all(path.startswith("towers/text/") for path in found)


def altered(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = "text_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), rf"1 tensors missing: {NAME}"),
        (lambda t: t.pop("visual_projection.weight"), r"1 tensors missing: visual_projection.weight"),
        (lambda t: t.update({"text_projection.weight": np.zeros(4, np.float32)}), r"text_projection.weight \[4\] for head/kernel"),
        (lambda t: t.update({"text_model.adapter.weight": np.zeros(3, np.float32)}), r"1 tensors unknown: text_model.adapter.weight"),
        (
            lambda t: t.update({NAME: t[NAME][:, :3].copy()}),
            rf"1 tensors of another shape: {NAME} \[64, 3\] for blocks/1/mlp/up/kernel \[16, 64\]",
        ),
        (lambda t: t.update({NAME: t[NAME] * np.float32(np.nan)}), rf"{NAME} has 1,024 of 1,024 values that are not finite"),
        (lambda t: t.update({NAME: t[NAME].astype(np.int32)}), rf"{NAME} is of type I32; known: F64"),
        (lambda t: t.update({"logit_scale": np.ones(2, np.float32)}), r"log_scale must be one number"),
        (lambda t: [t.pop(name) for name in list(t) if not name.startswith("text")], r"has no image tower"),
        (
            lambda t: t.update({"vision_model.embeddings.patch_embedding.weight": np.zeros(4, np.float32)}),
            r"has no image tower of the form",
        ),
        (lambda t: t.update({"x\ny\x1b": np.zeros(1, np.float32)}), r"'x\\ny\\x1b' is no name of a tensor"),
        (lambda t: (t.clear(), t.update({"a": np.zeros(1, np.float32)})), r"of no known form .* its tensors are a"),
    ],
)
def test_tensors_that_are_not_the_towers_are_listed(hf, tokenizer, change, message):
    altered(hf, change)
    with pytest.raises(ConfigError, match=message) as raised:
        read(both(hf), tokenizer)
    assert "\n" not in str(raised.value)


class Executes:
    """A pickle that, read, writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def pickled(path, protocol):
    return pickle.dumps(Executes(path), protocol=protocol)


def zipped(path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(path, 2))
    return out.getvalue()


def hostile(kind, good, trap):
    header = int.from_bytes(good[:8], "little")
    return {
        "pickle": lambda: pickled(trap, 4),
        "old pickle": lambda: pickled(trap, 0),
        "torch zip": lambda: zipped(trap),
        "empty": lambda: b"",
        "cut in the header": lambda: good[: header // 2],
        "cut in the tensors": lambda: good[: len(good) // 2],
        "a byte too many": lambda: good + b"\0",
        "a header of 2^60 bytes": lambda: (2**60).to_bytes(8, "little") + good[8:],
        "no JSON": lambda: good[:8] + b"\xff" * header + good[8 + header :],
        "an offset beyond the end": lambda: (
            good[:8] + good[8 : 8 + header].replace(b'"data_offsets":[0,', b'"data_offsets":[9,') + good[8 + header :]
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "old pickle",
        "torch zip",
        "empty",
        "cut in the header",
        "cut in the tensors",
        "a byte too many",
        "a header of 2^60 bytes",
        "no JSON",
        "an offset beyond the end",
    ],
)
def test_hostile_files_are_one_line_and_execute_nothing(hf, tokenizer, tmp_path, kind):
    file, trap = hf / "model.safetensors", tmp_path / "executed"
    file.write_bytes(hostile(kind, file.read_bytes(), trap))
    for place in (hf, file):
        with pytest.raises(ConfigError) as raised:
            read(both(place), tokenizer)
        assert "\n" not in str(raised.value)
        assert str(file) in str(raised.value)
        assert ("weights_only=True" in str(raised.value)) == (kind in ("pickle", "torch zip"))
    assert not trap.exists()


def test_a_folder_with_a_pickle_alone_names_the_command_that_converts_it(tmp_path, tokenizer):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin: a pickle, .* convert it: python -c"):
        read(both(tmp_path), tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[1]", r"config.json: holds no JSON object"),
        ("config.json", "{", r"config.json: no JSON"),
        ("config.json", json.dumps({"text_config": [1]}), r"text_config of its config file is no object"),
        ("config.json", json.dumps({"text_config": {"layer_norm_eps": 1e-3}}), r"its norms add 0.001"),
        ("config.json", json.dumps({"vision_config": {"hidden_act": "relu"}}), r"hidden_act = 'relu'; known: gelu"),
        ("preprocessor_config.json", json.dumps({"image_mean": [0.1] * 3, "image_std": [1.0] * 3}), r"wants pixels of mean"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": "../model.safetensors"}}),
            r"must map each tensor to a .safetensors file of this",
        ),
        ("model.safetensors.index.json", json.dumps({"weight_map": {"a": "a\0.safetensors"}}), r"must map each tensor to a .safetensors"),
        ("config.json", json.dumps({"vision_config": {"hidden_act": []}}), r"hidden_act = \[\]; known: gelu"),
        ("config.json", json.dumps({"vision_config": {"num_attention_heads": "2"}}), r"num_attention_heads = '2' .* a whole number"),
        ("preprocessor_config.json", json.dumps({"image_mean": ["a"] * 3, "image_std": [1.0] * 3}), r"must be lists of numbers"),
        ("model.safetensors.index.json", json.dumps({"weight_map": {"a": "absent.safetensors"}}), r"absent.safetensors: cannot be read"),
    ],
)
def test_other_files_of_the_folder_are_read_as_strictly(hf, tokenizer, name, content, message):
    (hf / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read(config(model__text__pretrained=str(hf)) if "text_config" in content else both(hf), tokenizer)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_width", 0, r"vision_cfg.head_width = 0 .* a whole number"),
        ("norm_kwargs", {"eps": 1e-3}, r"its norms add 0.001 \(vision_cfg.norm_kwargs.eps\)"),
        ("pool_type", "avg", r"vision_cfg.pool_type = 'avg'; known: 'tok'"),
    ],
)
def test_a_config_of_open_clip_is_read_as_strictly(params, tokenizer, tmp_path, field, value, message):
    folder = export.write(tmp_path / "out", config(), tokenizer, params, "open_clip", "card")
    rewritten(folder / "open_clip_config.json", lambda content: content["model_cfg"]["vision_cfg"].update({field: value}))
    with pytest.raises(ConfigError, match=message):
        read(both(folder), tokenizer)


@pytest.mark.parametrize("left_out", ["no_causal_mask", "pool_type", "norm_kwargs"])
def test_what_a_config_of_open_clip_leaves_out_is_its_default(left_out):
    """The default of open_clip's text towers is CLIP's: a SigLIP without these fields is none of ours."""
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}, "heads": 2}
    names = {"visual.trunk.attn_pool.latent": (1, 1, 16), "text.token_embedding.weight": (9, 16)}
    names |= {"text.transformer.resblocks.0.mlp.c_fc.weight": (64, 16)}
    stored = Stored("place", {"text_cfg": text}, None, names, {})
    assert sizes.sizes(stored, OPEN_CLIP_SIGLIP, "text")["text.heads"] == 2
    del text[left_out]
    with pytest.raises(ConfigError, match=left_out):
        sizes.sizes(stored, OPEN_CLIP_SIGLIP, "text")


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_pixels_are_told_by_either_file_or_by_the_user(hf):
    """transformers 5 writes one file for the processors of both modalities."""
    alone = hf / "preprocessor_config.json"
    (hf / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
    alone.unlink()
    assert interop.described(str(hf))["model.image.pixels"] == "clip"
    (hf / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"does not tell model.image.pixels; .* or set --config.model.image.pixels="):
        interop.described(str(hf))
    assert "model.image.pixels" not in interop.described(str(hf), ["model.image.pixels"])


@pytest.mark.parametrize("name", ["vision_model", "text_model"])
@pytest.mark.parametrize("shape", [(7,), (0, 16)])
def test_positions_of_no_table_describe_nothing(hf, name, shape):
    altered(hf, lambda t: t.update({f"{name}.embeddings.position_embedding.weight": np.zeros(shape, np.float32)}))
    with pytest.raises(ConfigError, match=r"has no table of positions in its (image|text) tower"):
        interop.described(str(hf))


def test_numbers_of_eight_bits_are_refused(hf, tokenizer):
    """numpy has no such type."""
    file = hf / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[NAME] |= {"dtype": "F8_E4M3", "shape": [header[NAME]["shape"][0], 4 * header[NAME]["shape"][1]]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ConfigError, match=rf"{NAME} is of type F8_E4M3; known: F64, F32, F16, BF16"):
        read(both(hf), tokenizer)


def test_open_clips_bias_of_the_logits_is_read(params, tokenizer, tmp_path):
    folder = export.write(tmp_path / "out", config(), tokenizer, params, "open_clip", "card")
    tensors = load_file(folder / "open_clip_model.safetensors")
    save_file(tensors | {"logit_bias": np.float32(-3) * np.ones(1, np.float32)}, folder / "open_clip_model.safetensors")
    assert read(both(folder, objective__kind="sigmoid"), tokenizer)["bias"] == -3


def test_weights_in_several_files_and_in_half_precision(hf, params, tokenizer):
    tensors = load_file(hf / "model.safetensors")
    halves = {"a": list(tensors)[::2], "b": list(tensors)[1::2]}
    (hf / "model.safetensors").unlink()
    for part, names in halves.items():
        save_file({name: tensors[name].astype(np.float16) for name in names}, hf / f"{part}.safetensors")
    where = {name: f"{part}.safetensors" for part, names in halves.items() for name in names}
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for path, array in read(both(hf), tokenizer).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.asarray(dict(named(params))[path]).astype(np.float16), err_msg=path)


def test_a_place_in_an_installed_package():
    assert located("package:bacl_jax/interop").joinpath("files.py").is_file()
    for place in ("package:no_such_package/model", "package:../x"):
        with pytest.raises(DataError, match="no Python package"):
            open_weights(place)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_weights("no/such/folder")


def test_other_sizes(hf, params, tokenizer):
    """Image positions follow the grid, text positions and embedding are cut; more than there is is refused."""
    ours = dict(named(params))
    larger = read(both(hf, data__image_size=32), tokenizer)["towers/image/positions"]
    assert larger.shape == (1 + 64, 16)
    np.testing.assert_array_equal(larger[0], ours["towers/image/positions"][0])
    np.testing.assert_allclose(larger[1:].mean(0), ours["towers/image/positions"][1:].mean(0), atol=0.05)
    shorter = read(both(hf, data__context_length=5), tokenizer)["towers/text/positions"]
    np.testing.assert_array_equal(shorter, ours["towers/text/positions"][:5])
    with pytest.raises(ConfigError, match=r"has 12 positions, and the run needs 13; set --config.data.context_length=12"):
        read(both(hf, data__context_length=13), tokenizer)
    one = both(hf)
    fewer = interop.weights(one, shapes(one, tokenizer.vocab_size - 3))["towers/text/embedding"]
    assert len(fewer) == tokenizer.vocab_size - 3
    with pytest.raises(ConfigError, match=r"tokens in its embedding, and the run needs .* name the tokenizer that belongs to it"):
        interop.weights(one, shapes(one, tokenizer.vocab_size + 1))


def test_a_grid_is_resized_and_what_is_none_is_left():
    flat = np.broadcast_to(np.linspace(0, 1, 4, dtype=np.float32)[None, :, None], (4, 4, 3)).reshape(16, 3)
    half = resized_grid(flat, 4).reshape(2, 2, 3)
    np.testing.assert_allclose(half[0], half[1], atol=1e-6)
    assert (half[:, 0] < half[:, 1]).all()
    assert resized_grid(flat[:15], 9).shape == (15, 3)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_run_begins_with_them_on_any_mesh_and_so_does_its_average(hf, params, tokenizer, fsdp):
    one = both(hf, mesh__fsdp=fsdp, mesh__fsdp_floor=64, optim__ema_decay=0.9)
    trainer = build(one, tokenizer.vocab_size, make_mesh(one.mesh))
    fresh = trainer.init(0)
    state = trainer.with_weights(fresh, read(one, tokenizer))
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, to_host(tree), params)
    assert jax.tree.map(lambda x: x.sharding, state.params) == jax.tree.map(lambda x: x.sharding, fresh.params)
    with pytest.raises(KeyError, match="no parameters: towers/image/nothing"):
        trainer.with_weights(fresh, {"towers/image/nothing": np.zeros(1)})


def test_what_clip_has_no_place_for_is_named(params, tokenizer, tmp_path):
    words = Tokenizer.train(CAPTIONS, config(data__tokenizer="bpe").data)
    for one, own, target, message in (
        (
            config(model__image__kind="vit"),
            tokenizer,
            "hf",
            r"config.model.image.kind = 'vit': CLIPModel's image tower is a vision transformer",
        ),
        (config(model__text__kind="bert"), tokenizer, "hf", r"config.model.text.kind = 'bert': CLIPModel's text tower is causal"),
        (config(data__tokenizer="bpe"), words, "hf", r"config.data.tokenizer = 'bpe': the end of a text has the id 2"),
        (config(data__tokenizer="bpe"), words, "open_clip", r"by which open_clip finds it"),
        (config(model__image__activation="gelu_tanh"), tokenizer, "open_clip", r"one for both, gelu or quick_gelu"),
    ):
        with pytest.raises(ConfigError, match=message):
            export.write(tmp_path / "out", one, own, params, target, "card")
        assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_replaced_whole_or_not_at_all(hf, params, tokenizer, monkeypatch):
    with pytest.raises(ConfigError, match="is there already"):
        export.write(hf, config(), tokenizer, params, "hf", "card")
    before = sorted(path.name for path in hf.iterdir())
    with monkeypatch.context() as broken:
        broken.setattr(export, "_files", lambda *_: {"config.json": object()})
        with pytest.raises(TypeError):
            export.write(hf, config(), tokenizer, params, "hf", "card", replace=True)
    assert sorted(path.name for path in hf.iterdir()) == before
    assert [path.name for path in hf.parent.iterdir()] == [hf.name]
    export.write(hf, config(), tokenizer, params, "open_clip", "card", replace=True)
    assert (hf / "open_clip_config.json").is_file()
    assert not (hf / "config.json").exists()


def test_the_card_tells_what_the_run_scored(tmp_path):
    folder = tmp_path / "eval" / "20"
    folder.mkdir(parents=True)
    metrics = {"i2t_R@1": 61.234, "halftrue_pairwise/colour": 3.0}
    (folder / "retrieval.json").write_text(json.dumps({"task": "retrieval", "data": "emoji/test", "metrics": metrics}))
    text = card.card(config(), 20, "hf", card.read_results(tmp_path, 20), 12345)
    assert "| retrieval | emoji/test | i2t_R@1 | 61.23 |" in text
    assert "colour" not in text
    assert "12,345 parameters" in text
    assert "CLIPModel.from_pretrained" in text
    assert "not evaluated" in card.card(config(), 20, "open_clip", {}, 1)
    adopted = card.card(both("published/clip"), 0, "hf", {}, 1)
    assert "began as those of published/clip" in adopted
    assert "not trained further" in adopted
    assert "for 20 steps" in text


def test_the_tokenizer_in_clips_form(tokenizer):
    ids, mask = tokenizer.encode(["red circle on a hill", "zebra ünïcode", ""])
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 == tokenizer.bos_id + 1
    assert (ids[:, 0] == tokenizer.bos_id).all()
    assert (ids.max(1) == tokenizer.eos_id).all()
    assert (np.take_along_axis(ids, mask.sum(1)[:, None] - 1, 1)[:, 0] == tokenizer.eos_id).all()
    assert tokenizer.tokens(ids[0])[1:6] == ["red</w>", "circle</w>", "on</w>", "a</w>", "hill</w>"]
    assert tokenizer.unk_id in (None, tokenizer.eos_id)
    assert Tokenizer.train(CAPTIONS[::-1], config().data).to_json() == tokenizer.to_json()
    with pytest.raises(ConfigError, match="needs at least 514"):
        Tokenizer.train(CAPTIONS, config(data__vocab_size=513).data)
    assert jnp.asarray(ids).shape == (3, 12)
