"""The code blocks of the documents: each is run or says why not. Those that take long are run by tests/long/test_documents.py."""

import importlib
import os
from pathlib import Path

import pytest
import tiny
from absl import flags
from ml_collections import config_flags
from test_docs import DOCUMENTS, ROOT, commands

from bacl_jax.config import from_config_dict
from benchmarks.document import DocumentError, blocks, prepare, run

CHECKED_BY_NAME = {  # by test_docs.py; commands that stand for themselves, on data that nobody has here
    *("README.md", "CONTRIBUTING.md"),
    *(f"docs/{name}.md" for name in ("benchmarks", "data", "evaluation", "frozen", "internals", "method", "report", "scale", "theory")),
    *(f"docs/{name}.md" for name in ("robustness_to_wrong_pairs", "towers", "unpaired")),
    *(f"docs/{name}.md" for name in ("launch", "sweeps", "watching", "check")),
}
RUN = [name for name in DOCUMENTS if name not in CHECKED_BY_NAME and blocks(ROOT / name)]


@pytest.mark.parametrize("name", RUN)
def test_what_takes_seconds_runs(name, tmp_path):
    prepare(tmp_path)
    for block in blocks(ROOT / name):
        if block.run and not block.long:
            run(block, tmp_path, tiny.FLAGS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_command_describes_a_run(name):
    """Every field that it sets goes with all others; what a pod or a download is needed for is checked so far."""
    for command in commands(name):
        files = [Path(argument.removeprefix("--config=")) for argument in command if argument.startswith("--config=")]
        for file in files:
            settings, values = importlib.import_module(f"configs.{file.stem}").get_config(), flags.FlagValues()
            settings.data.path = settings.data.path or "pairs.csv"
            given = ["command", *(argument for argument in command if argument.startswith("--config."))]
            config_flags.DEFINE_config_dict("config", settings, flag_values=values, sys_argv=given)
            values(given)
            from_config_dict(settings)


def test_a_block_says_whether_it_is_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```bash\ntrue\n```\n")
    with pytest.raises(DocumentError, match=r"page\.md:3: '' above the block: must be run, run long,"):
        blocks(page)
    page.write_text("<!-- not run: -->\n```bash\ntrue\n```\n")
    with pytest.raises(DocumentError, match="above the block"):
        blocks(page)
    page.write_text("<!-- not run: a pod -->\n```bash\ntrue\n```\n```json\n{}\n```\n<!-- run long small -->\n```python\n1\n```\n")
    assert [(one.run, one.long, one.small) for one in blocks(page)] == [(False, False, False), (True, True, True)]


def test_a_block_fails_with_its_output(tmp_path):
    page = tmp_path / "page.md"
    mark, prints = "<!-- run small -->\n```bash\n", "```\n<!-- prints -->\n```text\n"
    page.write_text(
        f"{mark}echo one \\\n  --config=a\n{prints}one ... --b=1\n```\n{mark}echo two; false\n```\n{mark}echo 3\n{prints}4\n```\n"
    )
    first, second, third = blocks(page)
    assert run(first, tmp_path, ["--b=1"]) == f"one --config=a --b=1{os.linesep}"
    with pytest.raises(DocumentError, match=r"page\.md:\d+: exit code 1\necho two; false\n\ntwo"):
        run(second, tmp_path)
    with pytest.raises(DocumentError, match="must print\n4\n\nand printed\n3"):
        run(third, tmp_path)
