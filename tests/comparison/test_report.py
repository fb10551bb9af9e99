"""A report as a table, as Markdown, as JSON and as plots; and every metric in it is in the manual."""

import inspect
import json
import re
from pathlib import Path

import torch

from rlhf.comparison.compare import ReportSettings, build_report
from rlhf.comparison.report import plot, to_json, to_markdown, to_table
from rlhf.completions.rollout import Rollout, statistics
from rlhf.models.load import save
from rlhf.policy_gradient import update
from rlhf.reward_model.metrics import ranking_report


def test_views(report, tmp_path):
    table, page, content = to_table(report), to_markdown(report), json.loads(to_json(report))
    for text in (table, page.replace("\\_", "_")):
        assert "score_even (%)" in text and "kl (nats)" in text and "win_rate_letters (%)" in text
    assert max(map(len, table.splitlines())) <= 140
    assert len(content["samples"]) == 3 and len(content["runs"]) == 6
    assert set(content["samples"][0]["scores"]["ppo"]) == {"score", "score_letters", "score_even"}
    entry = content["runs"][4]
    assert entry["metrics"]["kl"]["n"] == 4 and len(entry["values"]["kl"]) == 4
    pictures = plot(report, tmp_path)
    assert [path.name for path in pictures] == ["learning_curves.png", "score_kl.png", "scores.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_terminal_shows_no_control_codes(report, monkeypatch):
    column = report.columns[0]
    completions = list(column.completions)
    completions[report.samples[0]] = "\x1b[31m[bold]red"
    monkeypatch.setattr(column, "completions", completions)
    assert "\x1b" not in to_table(report) and "[bold]" in to_table(report).replace("\n", "")


def test_without_rewards_or_record(tokenizer, tiny, tmp_path):
    """One plain from_pretrained folder, no scores, no completions: the report holds the rest."""
    save(tiny(tokenizer, 1), tokenizer, tmp_path / "plain")
    settings = ReportSettings(max_completion_length=4)
    report = build_report([str(tmp_path / "plain")], [{"prompt": "Hello!"}], settings=settings)
    column = report.columns[0]
    assert column.label == "plain"
    assert set(column.metrics) >= {"completion_length", "eos_rate"}
    assert to_table(report) and plot(report, tmp_path) == []


# ---- the manual --------------------------------------------------------------------------------------------------


def test_every_metric_is_in_the_manual(report):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_0-9]+)`", page))
    grid = torch.ones(1, 1)
    rollout = Rollout(
        *[grid] * 2,
        grid,
        grid.bool(),
        grid.bool(),
        *[grid] * 4,
        torch.ones(1),
        {},
        grid,
        grid,
        grid,
    )
    ranking = {
        "ranks": [0, 1],
        "lengths": [1, 2],
        "places": [0, 1],
        "row": {"prompt": "", "completions": ["", ""]},
    }
    named = {*statistics(rollout), *ranking_report([[1.0, 0.0]], [ranking])}
    named |= {
        name
        for column in report.columns
        for name in column.metrics
        if not re.search("_(letters|even)$", name)
    }
    source = inspect.getsource(update)
    logged = re.findall(r'(?:sums|metrics)\["(\w+)"\]|"(\w+)": masked_sum', source)
    logged = {one or other for one, other in logged}
    assert {"approx_kl", "policy_loss", "ptx_loss", "first_ratio_error"} <= logged
    assert {*named, *logged} <= explained, {*named, *logged} - explained
