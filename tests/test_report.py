import dataclasses
import io
import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, dataset, unit
from PIL import Image
from rich.console import Console

from bacl_jax.config import Config, TrainConfig, to_dict
from bacl_jax.config_eval import EvalConfig
from bacl_jax.config_model import ModelConfig, TextConfig, VisionConfig
from bacl_jax.config_objective import CLAConfig, ObjectiveConfig
from bacl_jax.data import synthetic
from bacl_jax.data.tokenizer import Tokenizer as RealTokenizer
from bacl_jax.eval import examples, page, pictures, report, suite
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.look import look
from bacl_jax.mesh import make_mesh
from bacl_jax.train.step import build


def printed(results):
    out = io.StringIO()
    report.print_tables(results, Console(file=out, width=100))
    return out.getvalue()


def drawn(path):
    """The picture is there, and is not a blank page."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return path.suffix == ".png" and pixels.std() > 5


def test_tables_show_every_number_once():
    retrieval = {"i2t_R@1": 81.25, "i2t_R@5": 95.0, "i2t_R@10": 97.0, "i2t_mAP": 88.0, "i2t_median_rank": 1.0}
    halftrue = {"halftrue_pairwise": 93.4, "halftrue_beat_all": 77.8, "halftrue_pairwise/skin tone": 91.5}
    halftrue |= {"halftrue_pairwise/skin tone_blind": 52.5, "halftrue_beat_all_chance": 11.5}
    localization = {"ael": 55.5, "ael_foreground": 56.5, "ael_token": 99.0, "ael_chance": 31.0, "ael_untrained": 30.0}
    text = printed(
        {
            "retrieval": retrieval | {"n": 400, "n_captions": 200},
            "halftrue": halftrue | {"n": 300, "n_pairs": 4000},
            "localization": localization | {"n": 7},
            "probe": {"accuracy": 12.5},
        }
    )
    for number in (
        "81.2",
        "95.0",
        "88.0",
        "200",
        "93.4",
        "77.8",
        "skin tone",
        "91.5",
        "52.5",
        "11.5",
        "55.5",
        "56.5",
        "99.0",
        "31.0",
        "30.0",
        "12.5",
    ):
        assert number in text
    assert text.count("skin tone") == 1
    assert "text to image" not in text
    assert "baseline" not in text


def test_tables_say_when_there_was_nothing_to_measure():
    text = printed({"halftrue": {"n": 0, "n_pairs": 0}, "localization": {"n": 0}})
    assert "no caption of this split has a half-true neighbour" in text
    assert "no half-true pair with both images in one style" in text


def test_curves_draw_what_was_logged(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss": 5 / s, "alpha": None, "validation/retrieval/i2t_R@1": s}) for s in range(1, 9)]
    log.write_text("\n".join(lines) + '\n{"step": 9, "lo')
    records = report.read_metrics(log)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert drawn(report.training_curves(records, tmp_path / "plots" / "curves.png"))
    with pytest.raises(ValueError, match="no record holds a known metric"):
        report.training_curves([{"step": 1}], tmp_path / "none.png")


@pytest.mark.parametrize("own", [[0], list(range(12)), [0, 0, 1]])
def test_gallery_of_few_and_of_many_rows(tmp_path, own):
    rng = np.random.default_rng(0)
    params = {"z": unit(rng.normal(size=(20, 4))), "w": unit(rng.normal(size=(20, 4)))}
    embeddings = Embeddings(Trainer(), params, dataset(own, total=13), Tokenizer(), CONFIG, "test")
    assert drawn(pictures.retrieval_gallery(embeddings, tmp_path / "gallery.png"))


def test_boxes_are_the_patches_of_the_largest_entries():
    delta = np.zeros((3, 4), np.float32)
    delta[0, 2], delta[1, 2], delta[2, 0], delta[1, 3] = 5, 4, 3, 1
    assert pictures.top_patches(delta, 3) == [0, 2]
    assert pictures.top_patches(delta, 4) == [0, 2, 3]


def in_one_style(data):
    """The data set with keys that say that all its pictures are of one style."""

    def renamed(source):
        return dataclasses.replace(source, anchor_keys=[f"shapes/{key}" for key in source.anchor_keys])

    splits = {name: dataclasses.replace(split, source=renamed(split.source)) for name, split in data.splits.items()}
    return dataclasses.replace(data, train=renamed(data.train), splits=splits)


def test_the_real_trainer_through_all_tasks_and_plots(tmp_path):
    config = Config(
        data=dataclasses.replace(CONFIG.data, vocab_size=64),
        model=ModelConfig(embed_dim=16, image=VisionConfig(width=16, depth=1, heads=2), text=TextConfig(width=16, depth=1, heads=2)),
        objective=ObjectiveConfig(bank_size=32, cla=CLAConfig(enabled=True, width=16, heads=2)),
        train=TrainConfig(batch_size=16),
        eval=EvalConfig(batch_size=64, chunk=16),
    )
    data = in_one_style(synthetic.load(config.data))
    tokenizer = RealTokenizer.train(data.captions, config.data)
    trainer = build(config, tokenizer.vocab_size, make_mesh(config.mesh))
    params = trainer.eval_params(trainer.init(0))
    results = suite.evaluate(
        trainer, params, data, tokenizer, config, tuple(suite.TASKS), "test", options={"localization": {"untrained_seeds": (1,)}}
    )
    assert results["retrieval"]["i2t_R@1_all"] < 60
    assert results["retrieval"]["n_captions_all"] == len(data.captions)
    assert results["halftrue"]["n"] == len(data.splits["test"].source)
    located = results["localization"]
    assert located["n"] > 50
    assert {f"ael{side}{of}" for side in ("", "_foreground") for of in ("", "_untrained", "_chance")} <= set(located)
    suite.write(tmp_path, 0, results, config_sha256="", data="synthetic/test")
    assert printed(results).count("\n") > 15
    embeddings = Embeddings(trainer, params, data, tokenizer, config, "test")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    paths = report.write_plots(tmp_path, embeddings)
    assert [path.name for path in paths] == ["curves.png", "gallery.png", "attention.png"]
    assert all(drawn(path) for path in paths)
    seen = look(embeddings, "test")
    assert list(seen.pictures) == [f"test/attention/{number}" for number in range(1, 5)]
    assert all(picture.ndim == 3 and picture.std() > 10 for picture in seen.pictures.values())
    assert seen.numbers.keys() == {f"parameter_norm/{name}" for name in ("image", "text", "cross_attention")}
    found = examples.gather(embeddings, 0)
    assert len(found.attention) == 6
    assert all(shown.region is not None and 0 < shown.region.mean() <= 0.5 for shown in found.attention)
    wrong = 100 * found.to_text.wrong / found.to_text.asked
    assert wrong == pytest.approx(100 - results["retrieval"]["i2t_R@1_all"], abs=1)  # but for ties
    assert sum(each.pairs for each in found.attributes) == results["halftrue"]["n_pairs"]
    fooled = 100 * sum(each.fooled for each in found.attributes) / results["halftrue"]["n_pairs"]
    assert fooled == pytest.approx(100 - results["halftrue"]["halftrue_pairwise"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    text = page.write(tmp_path, found).read_text(encoding="utf-8")
    assert text.count("attention to “") == 12
    embeddings.config = dataclasses.replace(config, data=dataclasses.replace(config.data, kind="manifest"))
    other = pictures.triptychs(embeddings, 3)  # no styles: any half-true pair, without a second image
    assert [shown.other for shown in other] == [None] * 3
    assert all(len(set(shown.caption.split()) - set(shown.false_caption.split())) == 1 for shown in other)
    assert drawn(pictures.save(pictures.attention_triptych(other, trainer.grid), tmp_path / "other.png"))


def test_half_true_captions_have_a_table_for_each_anchor():
    metrics = {"n": 3, "n_pairs": 9, "halftrue_pairwise": 60.0, "halftrue_pairwise_chance": 50.0}
    (alone,) = report.tables({"halftrue": metrics})
    assert alone.title == "half-true captions, 3 images, 9 pairs (percent)"
    sounds = report.tables({"retrieval": {"n": 3, "n_captions": 3, "a2t_R@1": 1.0}, "halftrue": metrics})[1]
    assert sounds.title == "half-true captions, 3 sounds, 9 pairs (percent)"
    several = {f"{anchor}/{name}": value for anchor in ("image", "audio", "fused") for name, value in metrics.items()}
    assert [table.title.split(", ")[1] for table in report.tables({"halftrue": several})] == ["3 images", "3 sounds", "3 rows"]
    assert several["audio/halftrue_pairwise"] == 60


def test_each_anchor_has_its_panels():
    one = [{"step": 1, "loss_contrast": 1.0, "validation/retrieval/v2t_R@1": 2.0, "validation/halftrue/halftrue_pairwise": 3.0}]
    assert list(report.step_panels(one, report.STEP_PANELS)) == list(report.STEP_PANELS)
    assert ("validation/retrieval/t2v_R@1", "text to clip R@1") in report.eval_panels(one, "validation")["validation"]
    assert ("validation/halftrue/halftrue_pairwise", "half-true, pairwise") in report.eval_panels(one, "validation")["validation"]
    several = [{"audio/loss": 1.0} | {f"test/retrieval/{way}_R@1": 2.0 for way in ("i2t", "a2t", "f2t")}, {"image/loss": 1.0}]
    panels = report.step_panels(several, {"loss": (("loss", "total"),)})
    assert panels == {"loss": (("loss", "total"),), "loss, image": (("image/loss", "total"),), "loss, audio": (("audio/loss", "total"),)}
    panels = report.eval_panels(several, "test")
    assert list(panels) == ["test, image", "test, audio", "test, fused"]
    assert ("test/halftrue/audio/halftrue_beat_all", "half-true, beats all") in panels["test, audio"]
    assert report.eval_panels([{"loss": 1.0}], "test")["test"][0] == ("test/retrieval/i2t_R@1", "image to text R@1")
