"""DIR/report/index.html: what it shows, that it trusts no text of the data, and that it needs nothing but itself."""

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from page_fakes import BACL, HOSTILE, NEIGHBOURS, embeddings, examples, result, write_run
from PIL import Image

from bacl_jax.config import Config, ConfigError, to_dict
from bacl_jax.eval import page, page_charts
from bacl_jax.eval.compositional import scored_pairs
from bacl_jax.eval.examples import captions_to_images, confusion, gather, images_to_captions
from bacl_jax.eval.page_charts import Line
from bacl_jax.eval.page_record import grouped, read
from bacl_jax.train import goodput

VOID = {"meta", "link", "img", "br", "path", "rect", "image"}


class Page(HTMLParser):
    """Elements as (name, attributes), texts inside of each named kind, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.tables = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag="main"):
        return " ".join("".join(self.texts.get(tag, [])).split())

    def table(self, *wanted):
        (found,) = [table for table in self.tables if all(word in str(table) for word in wanted)]
        return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = write_run(tmp_path_factory.mktemp("runs") / "a<i>run")
    path = page.write(workdir, examples())
    assert path == workdir / "report" / "index.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(written):
    parsed = Page(written)
    assert parsed.open == []
    return parsed


def test_the_page_refers_to_nothing_outside_of_it(written, parsed):
    for tag, attributes in parsed.elements:
        assert not {"srcset", "action", "style", "data-src"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "poster"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), f"{tag} {name}"
    for tag, banned in {"style": ("url(", "@import", "http"), "script": ("fetch", "XMLHttpRequest", "import", "http", "eval")}.items():
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", written, re.DOTALL)
        assert not [word for word in banned if word in content]
    targets = {attributes.get("id") for _, attributes in parsed.elements}
    assert {attributes["href"][1:] for attributes in parsed.all("a")} <= targets


def test_only_its_own_script_and_style_run(written, parsed):
    assert [attributes.get("type") for attributes in parsed.all("script")] == ["application/json", None]
    (policy,) = [attributes["content"] for attributes in parsed.all("meta") if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", written, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert len(content) == 1
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_texts_of_the_data_stay_texts(written, parsed):
    shown = parsed.text()
    for caption in HOSTILE:
        assert " ".join(caption.split()) in shown, caption
    assert "<script>alert" not in written
    assert parsed.texts["title"][0] == "a<i>run: report"
    assert "coco/<b>sugar</b>" in shown
    assert "</td>other" in shown
    assert {"<i>", "<b>"}.isdisjoint(written.split("<body>")[1])
    data = json.loads(re.search(r'id="data">(.*?)</script>', written, re.DOTALL)[1])
    assert {attributes["data-chart"] for attributes in parsed.all("article") if "data-chart" in attributes} == set(data)


def test_pictures_are_pictures_and_have_texts_for_who_cannot_see_them(parsed):
    images = parsed.all("img")
    assert len(images) > 30
    assert all(attributes["alt"] for attributes in images)
    sources = {attributes["src"] for attributes in images} | {attributes["href"] for attributes in parsed.all("image")}
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/webp;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    for attributes in parsed.all("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_structure_for_screen_readers(parsed):
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in parsed.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(names)
    assert len(parsed.all("h1")) == len(parsed.all("main")) == len(parsed.all("nav")) == 1
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in parsed.all("th"))
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert parsed.all("html")[0]["lang"] == "en"


def test_every_result_of_every_step_stands_beside_chance_and_the_blind_baseline(parsed):
    assert parsed.table("70.0", "90.0") == [
        ["", "step 20", "step 40", "chance"],
        ["image to text, R@1", "70.0", "90.0", "0.2"],
        ["queries", "1,234", "1,234", "–"],
    ]
    assert parsed.table("61.5") == [["", "step 40", "blind", "chance"], ["accuracy", "61.5", "55.5", "50.0"]]
    assert parsed.table("31.2", "step 40")[1:] == [["image to text, R@1", "31.2"], ["queries", "7"]]


def test_the_curriculum_and_the_losses_are_drawn(parsed):
    heads = parsed.text("h3")
    for title in (
        "loss",
        "evaluation on validation",
        "alpha",
        "boundary score of what is drawn",
        "false-positive share",
        "ambiguous share",
    ):
        assert title in heads
    assert "retrieval over checkpoints" in heads
    assert "Step 60. total: 0.08333; contrastive: 0.06667" in parsed.text()
    assert len([attributes for attributes in parsed.all("path") if attributes.get("class") == "band"]) == 1
    assert parsed.table("total", "contrastive")[-1] == ["60", "0.08333", "0.06667"]


def test_marks_are_at_the_words_that_differ(parsed):
    marked = [" ".join(text.split()) for text in parsed.texts["mark"]]
    assert marked == [HOSTILE[0], "<b>cat</b>"] * 2
    assert len([attributes for attributes in parsed.all("svg") if (attributes.get("aria-label") or "").startswith("attention to")]) == 4
    assert parsed.text().count("boxed patches lie where the images differ") == 1


def test_wrong_answers_come_with_what_was_preferred_and_by_how_much():
    w = np.eye(8)
    z = w.copy()
    z[1] = w[2] + 0.5 * w[1]  # caption 2 wins by 0.5 / length
    z[3] = w[4] + 0.9 * w[5] + 0.2 * w[3]
    data = embeddings(z, w)
    found = images_to_captions(data, sample=2)
    assert (found.asked, found.among, found.wrong) == (8, 8, 2)
    first, second = found.worst
    assert (first.caption, first.place) == (HOSTILE[3], 3)
    assert [choice.caption for choice in first.choices[:2]] == [HOSTILE[4], HOSTILE[5]]
    assert first.choices[0].margin == pytest.approx(0.8 / np.linalg.norm(z[3]), abs=1e-6)
    assert (second.caption, second.place, second.choices[0].caption) == (HOSTILE[1], 2, HOSTILE[2])
    assert [choice.right for choice in second.choices[:2]] == [False, True]
    assert second.choices[1].margin == pytest.approx(0, abs=1e-6)
    assert [query.caption for query in found.sample] == [HOSTILE[0], HOSTILE[7]]
    assert [query.place for query in found.sample] == [1, 1]
    right = images_to_captions(embeddings(w, w))
    assert (right.wrong, right.worst) == (0, ())


def test_a_caption_for_which_another_image_scores_higher():
    w = np.eye(8)
    z = w.copy()
    z[0] = w[0] + 0.9 * (w[3] + w[4])
    z[6] = w[6] + 0.9 * w[0]
    found = captions_to_images(embeddings(z, w))
    assert (found.asked, found.among, found.wrong) == (8, 8, 1)
    (worst,) = found.worst
    assert (worst.caption, worst.place) == (HOSTILE[0], 2)
    assert [(choice.caption, choice.right) for choice in worst.choices[:2]] == [(HOSTILE[6], False), (HOSTILE[0], True)]
    assert worst.choices[0].margin == pytest.approx(0.9 / np.linalg.norm(z[6]) - 1 / np.linalg.norm(z[0]), abs=1e-6)
    assert worst.picture == worst.choices[1].picture != worst.choices[0].picture
    assert images_to_captions(embeddings(z, w)).wrong == 0


def test_attributes_whose_edits_fool_the_model():
    w = np.eye(8)
    z = w.copy()
    z[0] = w[1] + 0.5 * w[0]
    data = embeddings(z, w, NEIGHBOURS)
    first, second = confusion(data, scored_pairs(data))
    assert (first.name, first.pairs, first.fooled) == ("colour", 2, 1)
    assert [(edit.true, edit.false, edit.pairs, edit.fooled) for edit in first.edits] == [(HOSTILE[0], HOSTILE[1].split()[0], 1, 1)]
    assert (first.caption, first.false_caption) == (HOSTILE[0], HOSTILE[1])
    assert first.worst == pytest.approx(-0.5 / np.linalg.norm(z[0]), abs=1e-6)
    assert (second.name, second.fooled, second.edits) == ("</td>other", 0, ())


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(Config())))
    shown = Page(page.write(tmp_path).read_text(encoding="utf-8"))
    text = shown.text()
    for part in ("No evaluation has been written yet", "Nothing has been logged yet", "has no curriculum", "launch.report"):
        assert part in text
    assert json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "report" / "index.html").read_text(), re.DOTALL)[1]) == {}


def test_a_run_without_curriculum_and_attention(tmp_path):
    found = examples(attention=False)
    shown = Page(page.write(write_run(tmp_path / "clip", Config()), found).read_text(encoding="utf-8")).text()
    assert "This run has no curriculum: objective.bns.enabled is False." in shown
    assert "This run has no cross-modal attention: objective.cla.enabled is False." in shown
    nothing = gather(embeddings(np.eye(8), np.eye(8)), 1)
    shown = Page(page.write(tmp_path / "clip", nothing).read_text(encoding="utf-8")).text()
    assert "No caption of this split has a half-true neighbour." in shown
    assert "0 of 8 images (0.0 %) have a wrong answer first" in shown


def test_what_cannot_be_read_is_left_out_and_told(tmp_path):
    workdir = write_run(tmp_path / "run", steps=3)
    log = workdir / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + f'{{"step": 5, "loss": {10**400}, "alpha": "high"}}\n')
    assert "Step 3. total: 1.667" in Page(page.write(workdir).read_text(encoding="utf-8")).text()
    broken = '{"step": NaN}\n{"step": 1e999}\n[1]\nnonsense\n\xff{}\n{"step": "5"}\n{"step": 6, "lo'
    log.write_text(whole + '{"step": 4, "loss": NaN, "alpha": Infinity}\n' + broken, encoding="latin-1")
    files = {"empty": "", "list": "[]", "text": '{"task": "x", "step": 1, "metrics": "high"}', "cut": '{"task": "retr'}
    files["far"] = '{"task": "x", "step": 1e999, "metrics": {}}'
    for name, content in files.items():
        (workdir / "eval" / "40" / f"{name}.json").write_text(content)
    result(workdir, 40, "probe", {"accuracy": None, "loss": "?"})
    shown = Page(page.write(workdir).read_text(encoding="utf-8"))
    text = shown.text()
    assert "metrics.jsonl: 7 of 11 lines are not whole and were left out." in text
    for name in files:
        assert f"eval/40/{name}.json: not a result as an evaluation writes it; left out." in text
    assert shown.table("accuracy", "loss", "step 40") == [["", "step 40"], ["accuracy", "–"], ["loss", "–"]]
    assert "nan" not in "".join(attributes.get("d", "") for attributes in shown.all("path")).lower()


def test_several_runs_side_by_side(tmp_path):
    first, second = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", Config(seed=3))
    result(second, 60, "retrieval", {"i2t_R@1": 95.0, "i2t_R@1_chance": 0.25, "n": 1234})
    shown = Page(page.write(first, compare=[second]).read_text(encoding="utf-8"))
    assert "Comparison of 2 runs" in shown.text("h2")
    differ = shown.table("field", "run (2)")
    assert ["seed", "0", "3"] in differ
    assert ["objective.bns.enabled", "True", "False"] in differ
    assert shown.table("run, step 40", "run (2), step 60") == [
        ["", "run, step 40", "run (2), step 60", "chance"],
        ["image to text, R@1", "90.0", "95.0 (best)", "0.2"],
    ]
    assert "contrastive loss" in shown.text("h3")


def test_only_what_is_better_when_it_is_more_has_a_best_run(tmp_path):
    first, second = (write_run(tmp_path / name) for name in ("a", "b"))
    for run, lost in ((first, 10.0), (second, 30.0)):
        result(run, 40, "robustness", {"i2t_R@1/delete_0.1": 50 - lost, "i2t_R@1_lost/delete_0.1": lost, "weight": lost})
    shown = Page(page.write(first, compare=[second]).read_text(encoding="utf-8"))
    assert ["image to text, R@1: delete 0.1", "40.0 (best)", "20.0"] in shown.table("a, step 40", "b, step 40", "delete")
    for name in ("image to text, R@1 lost: delete 0.1", "weight"):
        assert [name, "10.0", "30.0"] in shown.table("a, step 40", "b, step 40", "delete")


def test_the_runs_own_results_come_before_those_on_files(tmp_path):
    run = write_run(tmp_path / "run")
    result(run, 40, "retrieval", {"n": 5}, data="/a.json", subfolder="a_test")
    keys = list(grouped(read(run).results))
    assert [key[2] for key in keys if key[0] == "retrieval"] == ["", "a_test", "validation"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no workdir of a run"):
        page.write(write_run(tmp_path / "run"), compare=[tmp_path])
    assert not (tmp_path / "run" / "report").exists()


def line(values, label="x"):
    return Line(label, tuple(float(step) for step in range(1, len(values) + 1)), tuple(values))


def test_a_line_has_gaps_where_values_lack():
    chart = page_charts.chart("k", "t", "", [line([1.0, None, 3.0, 4.0])])
    assert re.findall("[ML]", chart.lines[0].linear) == ["M", "M", "L"]
    assert chart.data["lines"][0]["texts"] == ["1", "–", "3", "4"]
    assert page_charts.chart("k", "t", "", [None]) is None
    assert page_charts.line([{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}, {"step": 3}], "loss", "") is None


def test_a_band_lies_between_two_lines_or_not_at_all():
    low, high = line([1.0, None, 2.0]), line([3.0, 4.0, 4.0])
    assert page_charts.chart("k", "t", "", [low, high], band=True).band[0].count("L") == 4
    assert page_charts.chart("k", "t", "", [None, low, high], band=True).band == ("", "")
    assert page_charts.chart("k", "t", "", [low, high]).band == ("", "")


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1e30, 1e30], [1e-12, 2e-12], [3, -4]])
@pytest.mark.parametrize("log_y", [False, True])
def test_any_numbers_fit_the_chart(values, log_y):
    chart = page_charts.chart("k", "t", "", [line(values)], log_y=log_y)
    for path in (chart.lines[0].linear, chart.lines[0].log):
        for x, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", path):
            assert page_charts.LEFT <= float(x) <= page_charts.RIGHT
            assert page_charts.TOP <= float(y) <= page_charts.BOTTOM
    assert all(len(ticks) < 12 for ticks in chart.ticks.values())


def test_a_long_line_is_thinned_and_keeps_its_extremes_and_ends():
    values = np.sin(np.arange(50_000) / 700).tolist()
    values[12_345], values[40_001] = 9.0, -9.0
    chart = page_charts.chart("k", "t", "", [line(values)])
    (kept,) = chart.data["lines"]
    assert len(kept["steps"]) <= page_charts.MOST + 2
    assert {1.0, 12_346.0, 40_002.0, 50_000.0} <= set(kept["steps"])
    assert len(chart.rows) == page_charts.ROWS
    assert chart.rows[0][0] == "1"
    assert chart.rows[-1][0] == "50,000"


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    """The ratio of WCAG 2.2."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_the_contrast_that_wcag_asks_for(theme):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    style = (resources.files("bacl_jax.eval") / "templates" / "report.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]))
    for ground in ("ground", "raised"):
        for name in ("text", "quiet", "link", "right", "wrong"):
            assert contrast(colours[name], colours[ground]) >= 4.5, f"{name} on {ground}"
        for name in ("s0", "s1", "s2", "s3", "s4", "s5"):
            assert contrast(colours[name], colours[ground]) >= 3, f"{name} on {ground}"
    for ground in ("right-ground", "wrong-ground"):
        assert contrast(colours["text"], colours[ground]) >= 4.5, ground


def test_a_run_is_read_as_its_files_are(tmp_path):
    run = read(write_run(tmp_path / "run"))
    assert (run.name, run.config, len(run.records), run.notes) == ("run", BACL, 60, [])
    assert [(one.step, one.subfolder) for one in run.results] == [(20, ""), (40, ""), (40, ""), (40, "validation")]


def test_where_the_time_went(tmp_path):
    workdir = write_run(tmp_path / "run", steps=20)
    assert "Goodput" not in page.write(workdir).read_text(encoding="utf-8")
    for number, steps in enumerate((300.0, 3000.0)):
        seconds = dict.fromkeys(goodput.ACTIVITIES, 0.0) | {"steps": steps, "start": 60.0, "lost": 240.0 * (1 - number)}
        line = {"began": 0.0, "ended": sum(seconds.values()), "step": 5, "clean": bool(number), "seconds": seconds}
        with (workdir / goodput.FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
    parsed = Page(page.write(workdir).read_text(encoding="utf-8"))
    assert "90.2 %" in parsed.text("dd")
    head, *rows = parsed.table("start 1", "lost")
    assert [cell for cell in head if cell] == ["share", "time", "start 1", "start 2"]
    assert ["lost", "6.6 %", "0:04:00", "0:04:00", "0:00:00"] in rows
    assert rows[-1] == ["all", "100.0 %", "1:01:00", "0:10:00", "0:51:00"]
