"""Tiny benchmarks in exactly the published forms; every picture is of one grey value, which the fake model looks its answers up by."""

import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.data.transforms import Window
from bacl_jax.errors import DataError
from bacl_jax.eval import benchmark_report, report, suite
from bacl_jax.eval.benchmarks import chance, expected
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.formats import READERS

VOTED, REJECTED = {"caption": 3, "foil": 0, "other": 0}, {"caption": 1, "foil": 2, "other": 0}


def picture(path, value, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(task, z, w, **settings):
    """z[v]: embedding of the picture with grey value v; w[i]: of the text "caption i"."""
    config = from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {task: settings}})
    params = {"z": unit(z), "w": unit(w)}
    return suite.BENCHMARKS[task](Encoder(Trainer(), params, Tokenizer(), config))


def crepe(*rows):
    return {str(i): {"filename": f, "caption": f"caption {a}", "negative_caption": f"caption {b}"} for i, (f, a, b) in enumerate(rows)}


@pytest.fixture
def sugarcrepe(tmp_path):
    """Two categories; pictures 0 to 2, of which entry 1 of swap_obj lacks its own."""
    for value in range(3):
        picture(tmp_path / "val2017" / f"{value:012d}.jpg", value)
    write(tmp_path / "data" / "add_att.json", crepe(("000000000000.jpg", 0, 1), ("000000000001.jpg", 1, 0)))
    write(tmp_path / "data" / "swap_obj.json", crepe(("000000000002.jpg", 2, 3), ("000000000009.jpg", 0, 1), ("000000000000.jpg", 1, 0)))
    return {"path": str(tmp_path / "data"), "images": str(tmp_path / "val2017")}


def test_sugarcrepe_by_hand(sugarcrepe):
    # picture 0 is caption 0, picture 1 caption 1, picture 2 is between 2 and 3
    z = np.eye(4)[[0, 1, 2]]
    z[2, 3] = 1
    found = run("sugarcrepe", z, np.eye(4), **sugarcrepe)
    m = found.metrics
    assert (m["n"], m["n_entries"], m["n_pictures"], m["left_out/missing"]) == (4, 5, 3, 1)
    assert m["accuracy"] == pytest.approx(100 * (1 + 1 + 0.5 + 0) / 4)
    assert (m["accuracy/add_att"], m["accuracy/swap_obj"]) == (100, pytest.approx(25))
    assert m["accuracy_macro"] == pytest.approx(62.5)
    assert {m[name] for name in m if name.endswith("_chance")} == {50}
    # blind: the other two pictures. Entry 0: 1 and 2, caption 1 wins; entry 1: 0 and 2, caption 0 wins; 2: ties; 3: entry 0 turned round
    assert (m["accuracy/add_att_blind"], m["accuracy/swap_obj_blind"]) == (0, pytest.approx(75))
    assert m["accuracy_blind"] == m["accuracy_macro_blind"] == pytest.approx(37.5)
    assert (m["n/add_att"], m["n/swap_obj"], m["unknown_tokens"], m["cut_captions"]) == (2, 2, 0, 0)


def test_missing_and_broken_pictures_are_listed_by_reason(sugarcrepe, tmp_path):
    (tmp_path / "val2017" / "000000000001.jpg").write_bytes(b"no picture")
    write(tmp_path / "data" / "add_obj.json", crepe(("../data/add_att.json", 0, 1)))
    found = run("sugarcrepe", np.eye(4), np.eye(4), **sugarcrepe)
    assert {name: value for name, value in found.metrics.items() if name.startswith("left_out/")} == {
        "left_out/missing": 1,
        "left_out/outside": 1,
        "left_out/unreadable": 1,
    }
    path = benchmark_report.write_left_out(tmp_path / "deep" / "left_out.csv", found.left_out)
    lines = path.read_text().splitlines()
    assert lines[0] == "file,key,picture,reason,error"
    assert len(lines) == 4
    assert any(line.startswith(f"{tmp_path}/data/swap_obj.json,1,000000000009.jpg,missing,") for line in lines)


def test_without_any_picture_all_rows_are_reported(tmp_path):
    rows = 7511  # as many as SugarCrepe has
    write(tmp_path / "add_obj.json", crepe(*((f"{row:012d}.jpg", row % 7, (row + 1) % 7) for row in range(rows))))
    found = run("sugarcrepe", np.eye(8), np.eye(8), path=str(tmp_path))
    assert found.metrics == {"n": 0, "n_entries": rows, "n_pictures": 0, "left_out/missing": rows}
    assert len(found.left_out) == rows
    assert benchmark_report.table("sugarcrepe", found.metrics).row_count == 2


def test_a_picture_is_encoded_once_and_pixels_are_bounded(sugarcrepe, tmp_path):
    rows = [(f"{row % 3:012d}.jpg", 0, 1) for row in range(50)]
    write(tmp_path / "data" / "replace_rel.json", crepe(*rows))
    config = from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"sugarcrepe": sugarcrepe}})
    trainer = Trainer()  # refuses other batches than 16 rows
    suite.BENCHMARKS["sugarcrepe"](Encoder(trainer, {"z": unit(np.eye(4)), "w": unit(np.eye(4))}, Tokenizer(), config))
    assert trainer.encoded_images == 16


def test_sugarcrepe_pp_by_hand(tmp_path):
    """A list with ids, as published. Right above both wrongs; one of two; all tied."""
    for value in range(3):
        picture(tmp_path / "images" / f"{value}.jpg", value)
    rows = [(0, 0, 1, 2), (1, 0, 2, 1), (2, 3, 3, 3)]
    entries = [
        {"id": i, "filename": f"{v}.jpg", "caption": f"caption {a}", "caption2": f"caption {b}", "negative_caption": f"caption {n}"}
        for i, (v, a, b, n) in enumerate(rows)
    ]
    write(tmp_path / "replace_rel.json", entries)
    w = np.eye(4)
    w[1] = [0.8, 0.6, 0, 0]
    m = run("sugarcrepe_pp", [[1, 0.5, 0, 0], [1, 0.1, 0.9, 0], [0, 0, 0, 1]], w, path=str(tmp_path / "replace_rel.json")).metrics
    # entry 0: captions 0, 1 above 2. Entry 1: 0 (1.0) and 2 (0.9) against 1 (0.86): right. Entry 2: 1/3
    assert m["accuracy"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    # text: w0 w1 = 0.8 above w0 w2 = w1 w2 = 0; w0 w2 = 0 below w0 w1; all tied
    assert m["text_only"] == pytest.approx(100 * (1 + 0 + 1 / 3) / 3)
    assert m["accuracy_chance"] == m["text_only_chance"] == pytest.approx(100 / 3)
    assert "text_only_blind" not in m


def wino(i, tag="Object", **other):
    captions = {"caption_0": f"caption {2 * i}", "caption_1": f"caption {2 * i + 1}"}
    images = {"image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1"}
    return {"id": i, **images, **captions, "tag": "Noun", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": tag} | other


def test_winoground_by_hand(tmp_path):
    for i in range(3):
        for j in (0, 1):
            picture(tmp_path / "images" / f"ex_{i}_img_{j}.png", 2 * i + j)
    lines = [wino(0), wino(1, "Relation"), wino(2, "Relation")]
    write(tmp_path / "examples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    z = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.9], [0, 0, 1, 0.5], [1, 1, 1, 1], [1, 1, 1, 1]]
    w = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    m = run("winoground", z, w, path=str(tmp_path)).metrics
    # entry 0: all right. Entry 1: picture 3 prefers caption 2, caption 2 prefers picture 3: all wrong. Entry 2: all tied
    for name, tied in (("text_score", 1 / 4), ("image_score", 1 / 4), ("group_score", 1 / 6)):
        assert m[name] == pytest.approx(100 * (1 + 0 + tied) / 3), name
        assert m[f"{name}_chance"] == pytest.approx(100 * tied)
        assert (m[f"{name}/Object"], m[f"{name}/Relation"]) == (pytest.approx(100), pytest.approx(50 * tied))
        assert m[f"{name}_macro"] == pytest.approx((100 + 50 * tied) / 2)
    # without the picture, both pictures of a caption tie, and one caption is best for both: nothing is right unless captions tie, too
    others = np.sum(unit(z)[2:], axis=0)  # of entry 0
    assert others[0] == pytest.approx(others[1])  # captions 0 and 1 tie
    assert m["text_score/Object_blind"] == m["image_score/Object_blind"] == pytest.approx(25)


def vg(value, part, name, count=1, **other):
    label = {"relation_name": name} if part == "relation" else {"attributes": name.split("_"), "obj1_name": "a", "obj2_name": "b"}
    box = {"bbox_x": 0, "bbox_y": 8, "bbox_w": 16, "bbox_h": 16}
    captions = {"true_caption": "caption 0", "false_caption": "caption 1"}
    return [{"image_id": value, "image_path": f"{value}.jpg", **box, **captions, **label} | other] * count


def test_aro_looks_into_the_box(tmp_path):
    """Picture 0 is 0 at its left, where the box is, else white; relations count as soon as they occur, attributes from 25 entries on."""
    pixels = np.full((32, 48, 3), 255, np.uint8)
    pixels[:, :16] = 0
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "0.jpg", quality=100)
    picture(tmp_path / "images" / "1.jpg", 1)
    write(tmp_path / "visual_genome_relation.json", vg(0, "relation", "behind", 2) + vg(1, "relation", "on"))
    attributes = vg(0, "attribute", "red_old", 25) + vg(1, "attribute", "white_small", 3)
    write(tmp_path / "visual_genome_attribution.json", attributes)
    write(tmp_path / "other.json", "[]")
    m = run("aro", np.eye(4), np.eye(4), path=str(tmp_path)).metrics
    assert (m["accuracy/relation"], m["accuracy/relation/behind"], m["accuracy/relation/on"]) == (pytest.approx(200 / 3), 100, 0)
    assert m["accuracy_macro/relation"] == 50
    assert (m["accuracy/attribution"], m["accuracy/attribution/red_old"]) == (pytest.approx(2500 / 28), 100)
    assert m["accuracy_macro/attribution"] == 100
    assert "accuracy/attribution/white_small" not in m
    assert m["accuracy_macro"] == pytest.approx((200 / 3 + 2500 / 28) / 2)
    assert (m["n/relation"], m["n/attribution"]) == (3, 28)


def test_a_box_may_reach_out_of_the_picture(tmp_path):
    picture(tmp_path / "images" / "0.jpg", 0)
    write(tmp_path / "visual_genome_relation.json", vg(0, "relation", "on", bbox_x=0, bbox_y=-1, bbox_w=64, bbox_h=16))
    (entry,) = READERS["aro"](tmp_path)[0]
    assert entry.pictures[0].where(40, 30) == Window(24, -1, 16, 16)
    write(tmp_path / "visual_genome_relation.json", vg(0, "relation", "on", bbox_x=0, bbox_y=-9, bbox_w=200, bbox_h=200))
    assert run("aro", np.eye(256), np.eye(2, 256), path=str(tmp_path)).metrics["n"] == 1


def test_valse_takes_validated_foils_alone(tmp_path):
    base = {"original_split": "test", "linguistic_phenomena": "actions", "caption": "caption 0", "foil": "caption 1"}
    picture(tmp_path / "images" / "SWiG" / "a.jpg", 0)
    picture(tmp_path / "images" / "b.jpg", 1)
    write(
        tmp_path / "actant-swap.json",
        {
            "actions_test_0": base | {"dataset": "SWiG", "image_file": "a.jpg", "mturk": VOTED},
            "actions_test_1": base | {"dataset": "SWiG", "image_file": "a.jpg", "mturk": REJECTED},
        },
    )
    write(tmp_path / "plurals.json", {"p": base | {"dataset": "coco", "image_file": "b.jpg", "mturk": VOTED | {"caption": 2}}})
    found = run("valse", np.eye(2), np.eye(2), path=str(tmp_path))
    m = found.metrics
    assert (m["n"], m["n_entries"], m["left_out/not_validated"]) == (2, 3, 1)
    assert (m["accuracy/actant-swap"], m["accuracy/plurals"], m["accuracy_macro"]) == (100, 0, 50)
    assert [one.key for one in found.left_out] == ["actions_test_1"]


def test_one_picture_alone_gives_nothing_away_to_the_blind(tmp_path):
    picture(tmp_path / "images" / "a.jpg", 0)
    write(tmp_path / "swap_att.json", crepe(("a.jpg", 0, 1)))
    m = run("sugarcrepe", np.eye(2), np.eye(2), path=str(tmp_path)).metrics
    assert (m["accuracy"], m["accuracy_blind"]) == (100, 50)


def test_a_collapsed_model_scores_chance_everywhere(sugarcrepe):
    m = run("sugarcrepe", np.ones((4, 3)), np.ones((4, 3)), **sugarcrepe).metrics
    assert all(m[name] == pytest.approx(50) for name in m if name.startswith("accuracy"))


def test_ties_are_the_share_of_orders():
    group = ((0, 1), (3, 2), (0, 2), (3, 1))
    assert chance(group) == pytest.approx(1 / 6)
    assert expected(np.asarray([[0.5, 0.5 + 1e-8, 0.1, 0.7]]), group)[0] == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(100_000, 4))
    assert expected(scores, group).mean() == pytest.approx(1 / 6, abs=0.005)  # random scores, too, hit chance


@pytest.mark.parametrize(
    ("task", "name", "content", "said"),
    [
        ("sugarcrepe", "a.json", "{", "a.json: is not JSON"),
        ("sugarcrepe", "a.json", "3", "a.json: holds a int; must be an object or a list"),
        ("sugarcrepe", "a.json", "{}", "a.json: has no entry"),
        ("sugarcrepe", "a.json", '{"7": 5}', "a.json, entry 7: is a int; must be an object of fields"),
        ("sugarcrepe", "a.json", '{"7": {"filename": "x"}}', "a.json, entry 7, field 'caption': missing; its fields are filename"),
        ("sugarcrepe", "a.json", '{"7": {"filename": 3}}', "a.json, entry 7, field 'filename': 3; must be a text"),
        ("sugarcrepe", "a.json", '{"7": {"filename": "x", "caption": "\\ud800"}}', "field 'caption'"),
        ("sugarcrepe", "a.json", "[" * 100_000, "a.json: is not JSON"),
        ("sugarcrepe_pp", "a.json", [{"filename": "x", "caption": "y"}], "a.json, entry 0, field 'caption2': missing"),
        ("winoground", "examples.jsonl", "\n\n", "examples.jsonl: has no entry"),
        ("winoground", "examples.jsonl", '{"id": 0}\n', "entry of line 1, field 'image_0': missing"),
        ("winoground", "examples.jsonl", json.dumps(wino(0)) + "\n{\n", "examples.jsonl, line 2: is not JSON"),
        ("aro", "relation.json", [], "must be named visual_genome_relation.json or visual_genome_attribution.json"),
        ("aro", "visual_genome_relation.json", vg(0, "relation", "on", bbox_w=0), "field 'bbox_w': 0; must be a whole number >= 1"),
        ("aro", "visual_genome_relation.json", vg(0, "relation", "on", bbox_x=None), "field 'bbox_x': None"),
        ("aro", "visual_genome_relation.json", "[" + '{"bbox_x": 1e999}' + "]", "field 'bbox_x': inf"),
        ("aro", "visual_genome_attribution.json", vg(0, "attribute", "red"), "field 'attributes': ['red']; must be a list of two"),
        ("valse", "a.json", {"x": {"mturk": None}}, "a.json, entry x, field 'mturk': None"),
        ("valse", "a.json", {"x": {"mturk": {"caption": True}}}, "field 'mturk.caption': True"),
    ],
)
def test_a_file_of_another_form_is_one_line(task, name, content, said, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        READERS[task](path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.eval\.aro\.path = None: must name .* --config\.eval\.aro\.path="):
        run("aro", np.eye(2), np.eye(2))
    with pytest.raises(ConfigError, match=r"config\.eval\.aro\.images = '/nowhere': is no folder"):
        run("aro", np.eye(2), np.eye(2), path=str(tmp_path), images="/nowhere")
    for task in READERS:
        with pytest.raises(DataError, match=r"cannot be read|not in this folder|must be named"):
            READERS[task](tmp_path)
        with pytest.raises(DataError, match=r"nothing\.json: (cannot be read|must be named)"):
            READERS[task](tmp_path / "nothing.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.json: is not UTF-8"):
        READERS["valse"](tmp_path / "a.json")


def test_the_table_shows_score_blind_and_chance(sugarcrepe, capsys):
    report.print_tables({"sugarcrepe": run("sugarcrepe", np.eye(4), np.eye(4), **sugarcrepe).metrics})
    lines = capsys.readouterr().out.splitlines()
    assert "4 of 5 entries" in lines[0]
    (row,) = [line for line in lines if "add att" in line]
    assert [part.strip() for part in row.strip("│").split("│")][1:] == ["100.0", "0.0", "50.0", "2"]
    assert any("left out: missing" in line for line in lines)
