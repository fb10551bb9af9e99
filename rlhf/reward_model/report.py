"""The report of a run that has scored held-out rankings, in its folder and on the terminal."""

from rlhf.reward_model.metrics import plot_ranking_report
from rlhf.runs.progress import sample_table
from rlhf.runs.run import Run


def show_report(run: Run, report: dict) -> None:
    """Record the numbers, write ranking.json and plots/ranking.png, and print the most misranked pairs."""
    for name, value in report.items():
        if isinstance(value, int | float):
            run.metrics({name: value})
    run.write("ranking.json", report)
    (run.folder / "plots").mkdir(exist_ok=True)
    plot_ranking_report(report, run.folder / "plots" / "ranking.png")
    if report["worst"]:
        run.say("The most misranked pairs that were held out:")
        columns = ["prompt", "ranked higher", "scored higher", "margin"]
        run.say(sample_table(report["worst"], columns=columns, limit=5))
