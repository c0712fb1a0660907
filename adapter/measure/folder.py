"""RUN/evaluate: the tables, the data and the pictures of an evaluation, whole or not at all."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from adapter.confidence import FILE, FOLDER
from adapter.measure import plots, report
from adapter.measure.confidence_plots import draw_confidence
from adapter.measure.report import Evaluated
from adapter.measure.sections import Section
from grpo.types import UserError

FILES = {"report.txt", "report.json", "completions.jsonl", "validation.jsonl", FILE,
         *(f"{name}.png" for name in report.PICTURES)}


def check_replaceable(run: Path, sections: list[Section], target: str) -> None:
    """Raises UserError where RUN/evaluate holds what no evaluation wrote, or the task's sections cannot be written there."""
    folder = run / FOLDER
    try:
        pictures = {f"{name}.png" for name in report.check_names(sections)}
    except ValueError as error:
        raise UserError(f"task.target = {target}: {error}") from None
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {"file"} if folder.exists() else set()
    if others := there - FILES - pictures:
        raise UserError(f"{folder}: holds what no evaluation wrote ({min(others)}); move it away, the report goes there")


def write(found: Evaluated, printed: str) -> Path:
    """Write RUN/evaluate, whole or not at all, in place of an earlier one. Returns it. Raises UserError where it cannot."""
    final = found.run / FOLDER
    texts = {"report.txt": printed, "report.json": json.dumps(report.data(found), indent=1, ensure_ascii=False) + "\n",
             "completions.jsonl": report.completion_lines(found.outcomes),
             "validation.jsonl": report.completion_lines({"adapter": list(found.confidence.validation)}),
             FILE: json.dumps(asdict(found.confidence.calibration)) + "\n"}
    try:
        with tempfile.TemporaryDirectory(dir=found.run, prefix=f".{FOLDER}-") as place:
            new = Path(place) / "new"
            new.mkdir()
            for name, text in texts.items():  # half a surrogate pair, which no file holds, becomes JSON's escape for it
                (new / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            draw(found, new)
            if final.exists():
                shutil.move(final, Path(place) / "earlier")  # where an image holds it, no rename goes
            new.rename(final)
    except OSError as error:
        raise UserError(f"{final}: cannot be written ({error.strerror}); make room in the run's folder, or evaluate a "
                        "copy of it") from None
    return final


def draw(found: Evaluated, folder: Path) -> None:
    """The pictures."""
    the = "the " if found.api.endswith(" API") else ""
    subtitle = f"Adapter on {Path(found.base).name}, behind {the}{found.api}"
    colours = plots.colours_of(plots.drawn_kinds(found.kinds))
    if any(found.rewards.get(kind) for kind in colours):
        plots.reward_plot(folder / "reward.png", found.rewards, colours, subtitle)
    others = {"API alone": found.entries["api"]}
    if len(colours) <= plots.FEW:
        others |= {entry.label.partition(",")[0]: entry for name, entry in found.entries.items()
                   if name not in ("api", "always_correct", "base", "adapter")}
    references = [(f"{who},\n{plots.with_value(kind, s.value, 1)}", kind, s.value) for who, entry in others.items()
                  for kind, s in entry.accuracy.items()
                  if s.of and (who == "API alone" or s.value < 1)]  # a line along the top says nothing
    plots.accuracy_plot(folder / "accuracy.png", *(dict(sorted(of.items())) for of in (found.measured, found.validation)),
                        found.step, references, colours, subtitle)
    draw_confidence(found.confidence, found.entries["api"], folder, subtitle)
    for section in found.sections:
        if section.draw is not None:
            section.draw(folder / f"{section.name}.png", subtitle)
