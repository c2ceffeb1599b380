"""Planted wrong pairs, duplicates and false negatives are found; the searches equal plain numpy, in tiles and on several devices."""

import dataclasses
import io
import re
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image
from rich.console import Console
from vocabularies import CLIP_SIZE, clip_file

from bacl_jax.config import ConfigError, DataConfig, MeshConfig
from bacl_jax.config_eval import AuditConfig
from bacl_jax.data.source import Example
from bacl_jax.data.tokenizer import Tokenizer as RealTokenizer
from bacl_jax.errors import DataError
from bacl_jax.eval import audit_report, corpus, neighbours
from bacl_jax.eval.audit import Scores, audit, find_duplicates, find_false_negatives, scores, wrongness
from bacl_jax.eval.corpus import Corpus
from bacl_jax.eval.encoder import Encoder
from bacl_jax.mesh import make_mesh
from bacl_jax.objective.shards import Shards
from benchmarks import audit as figures
from benchmarks import noisy_copy
from launch.auditing import audited_steps

DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"


def made(image, caption, z, w, **replaced) -> Corpus:
    """A corpus with one row a pair, from embeddings alone."""
    a, c = len(z), len(w)
    image = np.asarray(image)
    fields = {
        "row": np.arange(len(image)),
        "image": image,
        "caption": np.asarray(caption),
        "keys": [f"picture {i}" for i in range(a)],
        "shards": ["0.tar"] * a,
        "captions": [f"caption {i}" for i in range(c)],
        "shown": np.asarray([np.flatnonzero(image == i)[0] for i in range(a)]),
        "digest": np.arange(a, dtype=np.uint64),
        "thumbnails": np.random.default_rng(0).integers(0, 256, (a, 12, 12, 3), dtype=np.uint8),
        "z": unit(z),
        "w": unit(w),
        "unreadable": [],
    }
    return Corpus(**(fields | replaced))


def some(pairs=60, pictures=40, captions=30, width=8, seed=0) -> Corpus:
    """Pictures with several captions and captions of several pictures, by chance; each occurs."""
    r = np.random.default_rng(seed)
    image = np.concatenate([np.arange(pictures), r.integers(0, pictures, pairs - pictures)])
    caption = np.concatenate([np.arange(captions), r.integers(0, captions, pairs - captions)])
    return made(image, caption, r.normal(size=(pictures, width)), r.normal(size=(captions, width)))


def clean(n=40, width=16, seed=1):
    """Embeddings of n pairs, each picture near its caption and far from the others."""
    r = np.random.default_rng(seed)
    w = unit(r.normal(size=(n, width)))
    return unit(w + 0.02 * r.normal(size=w.shape)), w


def reference(data: Corpus, k: int):
    """The k nearest of either side that are in no row with it, by the whole matrix."""
    s = data.z @ data.w.T
    s[data.image, data.caption] = -np.inf
    for matrix in (s, s.T):
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
        yield np.take_along_axis(matrix, order, 1), order


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("k", "chunk"), [(1, 64), (5, 7), (5, 1024)])
def test_neighbours_are_those_of_plain_numpy(devices, k, chunk):
    data = some()
    mesh = make_mesh(MeshConfig(), on=jax.devices()[:devices])
    spare = 4  # a search passes over the first partner; of the k it finds, further partners are taken out
    found = neighbours.pictures_and_captions(data, k + spare, chunk=chunk, shards=Shards(mesh, 16))
    for ours, (similarity, column) in zip(found, reference(data, k), strict=True):
        np.testing.assert_allclose(ours.similarity[:, :k], similarity, atol=1e-6)
        np.testing.assert_array_equal(ours.column[:, :k], column)
    alike = data.z @ data.z.T - 2 * np.eye(len(data.z), dtype=np.float32)
    np.testing.assert_allclose(neighbours.among_pictures(data, k, chunk=chunk).similarity, -np.sort(-alike, axis=1)[:, :k], atol=1e-6)


def test_no_matrix_of_all_against_all():
    """64 times the columns take the memory of the columns more, and nothing that grows with their square."""
    temp = {}
    for n in (2**11, 2**17):
        x, number = np.zeros((n, 16), np.float32), np.arange(n)
        side = neighbours.Side(x, number, number)
        query, columns = side.rows(0, 1024), side.rows(0, n)
        compiled = neighbours._search.lower(query, columns, k=10, shards=Shards(None, 256)).compile()
        temp[n] = compiled.memory_analysis().temp_size_in_bytes
    assert temp[2**17] < 3 * 2**17 * (4 * 16 + 20) + 2**23, temp
    assert temp[2**17] < 1024 * 2**17 * 4 / 8, temp


def test_wrong_pairs_come_first():
    z, w = clean()
    caption = np.arange(40)
    caption[[3, 11, 20]] = caption[[11, 20, 3]]
    found = audit([lambda: made(np.arange(40), caption, z, w)], AuditConfig(k=3))
    assert set(found.pairs.row[:3]) == {3, 11, 20}
    better = dict(zip(found.pairs.row[:3], found.pairs.better_caption[:3], strict=True))
    assert better == {3: "caption 3", 11: "caption 11", 20: "caption 20"}
    assert not found.pairs.mutual[:3].any()
    assert found.pairs.mutual[3:].all()
    assert found.metrics["mutual"] == pytest.approx(100 * 37 / 40)
    assert (found.pairs.caption_rank[:3] == 4).all()  # beyond the 3 nearest
    assert found.false_negatives.empty  # what fits the parts of wrong pairs is told above


def test_the_score_of_a_pair_is_the_documented_one():
    data = some()
    one = scores(data, *neighbours.pictures_and_captions(data, 8))
    s = data.z @ data.w.T
    own = s[data.image, data.caption]
    s[data.image, data.caption] = -np.inf
    np.testing.assert_allclose(one.similarity, own, atol=1e-6)
    np.testing.assert_allclose(one.boundary_image, s.max(1)[data.image] - own, atol=1e-6)
    np.testing.assert_allclose(one.boundary_text, s.max(0)[data.caption] - own, atol=1e-6)
    np.testing.assert_allclose(wrongness(one), (s.max(1)[data.image] + s.max(0)[data.caption]) / 4 - own, atol=1e-6)
    rank = 1 + (s[data.image] > own[:, None] + 1e-6).sum(1)
    near = rank <= 6
    np.testing.assert_array_equal(one.caption_rank[near], rank[near])


def test_pairs_are_ranked_by_the_mean_over_checkpoints():
    """The newest has learnt the wrong pair by heart; the one before has not."""
    z, w = clean()
    caption = np.arange(40)
    caption[[3, 11]] = caption[[11, 3]]
    learnt = z.copy()
    learnt[[3, 11]] = w[[11, 3]]
    early, late = made(np.arange(40), caption, z, w), made(np.arange(40), caption, learnt, w)
    assert set(audit([lambda: late], AuditConfig(k=3)).pairs.row[:2]) != {3, 11}
    found = audit([lambda: early, lambda: late], AuditConfig(k=3))
    assert set(found.pairs.row[:2]) == {3, 11}
    assert found.metrics["n_checkpoints"] == 2
    assert dict(zip(found.pairs.row[:2], found.pairs.better_caption[:2], strict=True)) == {3: "caption 3", 11: "caption 11"}
    with pytest.raises(DataError, match="changed while the audit read them again"):
        audit([lambda: early, lambda: some()], AuditConfig())


def test_duplicates():
    z, w = clean()
    z[7], z[9] = z[5], unit(z[5] + 0.001)
    data = made(np.arange(40), np.arange(40), z, w)
    data.digest[7] = data.digest[5]
    data.thumbnails[7] = data.thumbnails[5]
    data.thumbnails[9] = (data.thumbnails[5] * 0.98).astype(np.uint8)
    data.thumbnails[30], z[30] = data.thumbnails[31], -z[31]  # equal thumbnails alone are no duplicate
    found = find_duplicates(data, neighbours.among_pictures(data, 5), AuditConfig())
    assert found[["kind", "row", "other_row"]].to_numpy().tolist() == [["exact", 5, 7], ["near", 5, 9], ["near", 7, 9]]
    assert not found.same_caption.any()
    assert found.pixels[0] == 0 < found.pixels[1] <= 0.05
    fewer = find_duplicates(data, neighbours.among_pictures(data, 5), AuditConfig(pixels=0.001))
    assert fewer.kind.tolist() == ["exact"]


def test_false_negatives():
    z, w = clean()
    w[21] = unit(w[8] + 0.05 * w[21])  # another text of the same meaning, and a picture of it
    z[21] = unit(z[8] + 0.01 * z[21])
    data = made(np.arange(40), np.arange(40), z, w)
    near = neighbours.pictures_and_captions(data, 5)
    found = find_false_negatives(data, scores(data, *near), near[0], AuditConfig(tolerance=0.05))
    assert sorted(zip(found.caption, found.other_caption, strict=True)) == [("caption 21", "caption 8"), ("caption 8", "caption 21")]
    assert (found.image_similarity > 0.99).all()
    none = find_false_negatives(data, scores(data, *near), near[0], AuditConfig(tolerance=-0.5))
    assert none.empty
    assert list(none) == list(found)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Row number r is painted with it; rows in `bad` cannot be read."""

    captions: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]
    bad: tuple[int, ...] = ()

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, row):
        if row in self.bad:
            raise DataError(f"row {row} is no picture", kind="unreadable", shard="1.tar")
        first, *others = self.captions[row]
        number = self.keys.index(self.keys[row])
        return Example(np.full((32, 32, 3), number, np.uint8), first, self.keys[row], tuple(others), "0.tar")


SKIP = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, on_error="skip"))
PARAMS = {"z": np.eye(40, dtype=np.float32), "w": np.eye(40, dtype=np.float32)[::-1].copy()}


def read(source, config=SKIP, tokenizer=None):
    return corpus.read(Trainer(), PARAMS, tokenizer or Tokenizer(), source, config)


def test_a_picture_and_a_caption_are_encoded_once():
    captions = [(f"caption {i % 20}",) for i in range(35)]
    captions[4] = ("caption 4", "caption 30", "caption 4")
    keys = [f"{i}" for i in range(35)]
    keys[34] = keys[0]
    trainer = Trainer()
    data = corpus.read(trainer, PARAMS, Tokenizer(), Rows(tuple(captions), tuple(keys), bad=(2, 33)), SKIP)
    assert trainer.encoded_images == 32  # two batches of 16
    assert len(data.keys) == 32
    assert len(data.captions) == 21
    assert data.row.tolist() == sorted([4, *(row for row in range(35) if row not in (2, 33))])
    assert data.image[-1] == 0  # the same picture as row 0
    numbers = [int(key) for key in data.keys]
    np.testing.assert_array_equal(data.z, PARAMS["z"][numbers])
    np.testing.assert_array_equal(data.w, PARAMS["w"][[int(text.split()[1]) for text in data.captions]])
    assert [(bad.row, bad.kind, bad.shard) for bad in data.unreadable] == [(2, "unreadable", "1.tar"), (33, "unreadable", "1.tar")]
    assert len(set(data.digest.tolist())) == 32
    assert (data.thumbnails[:, 5, 5, 0] == numbers).all()


def test_rows_that_cannot_be_read_stop_the_audit_unless_they_are_skipped():
    source = Rows((("caption 1",), ("caption 2",), ("caption 3",)), ("a", "b", "c"), bad=(1,))
    with pytest.raises(DataError, match="row 1 is no picture"):
        read(source, CONFIG)
    assert len(read(source)) == 2
    with pytest.raises(DataError, match="1 pictures and 1 captions in 3 rows, 2 of them unreadable: an audit compares"):
        read(dataclasses.replace(source, bad=(1, 2)))


def test_a_tokenizer_of_other_captions_is_refused():
    class Foreign(Tokenizer):
        def encode(self, captions):
            ids, mask = super().encode(captions)
            return np.where(ids > 3, 3, ids), mask

    with pytest.raises(ConfigError, match="does not know 100 % of the captions' tokens"):
        read(Rows((("caption 1",), ("caption 2",)), ("a", "b")), tokenizer=Foreign())


def test_the_end_of_a_row_is_no_unknown_token(tmp_path):
    """In CLIP's file one token is both; a caption of one word has as many ends as tokens."""
    config = dataclasses.replace(DataConfig(), tokenizer="file", tokenizer_path=clip_file(tmp_path), vocab_size=CLIP_SIZE)
    clip = RealTokenizer.read(config)
    assert clip.unk_id == clip.eos_id
    corpus.check_known(clip, ["red", "blue"])
    assert Encoder(None, None, clip, CONFIG).text_statistics(["red", "blue"]) == {"unknown_tokens": 0, "cut_captions": 0}
    words = RealTokenizer.train(["red", "blue"], dataclasses.replace(DataConfig(), tokenizer="word"))
    corpus.check_known(words, ["red", "green"])
    with pytest.raises(ConfigError, match="does not know 67 % of the captions' tokens"):
        corpus.check_known(words, ["red", "green grass"])


def found(n=12):
    """Findings in which every list has a row, with captions that a careless writer would take for markup or mathematics."""
    z, w = clean(n)
    z[5] = z[4]
    texts = [f"caption {i}" for i in range(n)]
    texts[4:7] = ["a, b", "[red]$x_1", 'say "$\\frac$"']
    w[7] = unit(w[6] + 0.01 * w[8])
    data = made(np.arange(n), np.arange(n), z, w, captions=texts)
    data.digest[5] = data.digest[4]
    data.unreadable.append(corpus.Unreadable(99, "missing", "2.tar", "gone"))
    return audit([lambda: data], AuditConfig(k=3, tolerance=0.5))


def test_lists_are_files_with_the_documented_columns(tmp_path):
    findings = found()
    for path in audit_report.write(tmp_path, findings):
        section = DOCUMENT.read_text().split("## Audit")[1].split("\n## ")[0]
        (block,) = re.findall(rf"`{path.name}`[^|]*\n\n\| column.*?\n\n", section, re.DOTALL)
        documented = [name for cell in re.findall(r"^\| (`.*?) \|", block, re.M) for name in re.findall(r"`(\w+)`", cell)]
        table = pd.read_csv(path)
        assert list(table) == documented, path.name
        assert len(table) > 0, path.name
    assert pd.read_csv(tmp_path / "pairs.csv").caption.isin(["[red]$x_1", "a, b", 'say "$\\frac$"']).sum() == 3
    empty = dataclasses.replace(findings, duplicates=findings.duplicates.iloc[:0])
    audit_report.write(tmp_path, empty)
    assert (tmp_path / "duplicates.csv").read_text().startswith("place,kind,row,")


def test_lists_do_not_depend_on_the_run(tmp_path):
    first, second = ([path.read_bytes() for path in audit_report.write(tmp_path / name, found())] for name in "ab")
    assert first == second


def test_contact_sheets_and_tables(tmp_path):
    findings = found()
    source = Rows(tuple((text,) for text in ("caption",) * 12), tuple(map(str, range(12))))
    paths = audit_report.draw(tmp_path, findings, source, 5)
    assert [path.name for path in paths] == ["pairs.png", "duplicates.png", "false_negatives.png"]
    assert all(np.asarray(Image.open(path).convert("L")).std() > 5 for path in paths)
    assert audit_report.draw(tmp_path, findings, source, 0) == []
    out = io.StringIO()
    audit_report.print_findings(findings, Console(file=out, width=100))
    for text in ("12 pairs of 12 images", "likely wrong pairs", "likely duplicates", "likely false negatives", "[red]$x_1"):
        assert text in out.getvalue()


def test_which_checkpoints_are_averaged():
    assert audited_steps([100, 200, 300], (), 200) == [100, 200]
    assert audited_steps([100, 200, 300], (300, 100), 300) == [100, 300]
    with pytest.raises(ConfigError, match=r"audit.steps: no checkpoint of step 150, 300; there are 100, 200"):
        audited_steps([100, 200, 300], (100, 150, 300), 200)


def test_the_noisy_copy(tmp_path):
    """On six captions, two pictures of each."""
    random = np.random.default_rng(0)
    captions = [f"caption {i // 2}" for i in range(12)]
    changed = noisy_copy.shuffled(captions, 0.5, random)
    assert sum(a != b for a, b in zip(captions, changed, strict=True)) == 6
    assert sorted(captions) == sorted(changed)
    with pytest.raises(ValueError, match="cannot be shuffled"):
        noisy_copy.shuffled(["same"] * 4, 0.5, random)


def test_figures_of_a_known_order():
    wrong, score = np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0])
    assert figures.precision(score, wrong) == 0.5
    assert figures.average_precision(score, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert figures.roc_auc(score, wrong) == 0.75
    assert all(isinstance(score(one), np.ndarray) for one in [one_score()] for score in figures.SCORES.values())


def one_score() -> Scores:
    column = np.ones(3, np.float32)
    return Scores(column, column, column, np.ones(3, int), np.ones(3, int), np.ones(3, bool), np.zeros(3, int))
