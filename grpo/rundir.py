"""The run directory before step 1: a new one never buries an earlier run, a resumed one goes on with its own settings."""

from pathlib import Path
from typing import Any

from grpo.config import Config
from grpo.types import UserError

CONFIG = "config.yaml"
MAY_CHANGE = ("run.steps", "run.dir", "eval.every", "checkpoint.every", "checkpoint.keep")  # between start and resume


def begin(config: Config, resume: bool) -> list[str]:
    """Make `run.dir` and write config.yaml. An earlier run there is kept under another name, which the lines returned say.

    Raises UserError where the place holds something that is no run, or cannot be written.
    """
    folder, said = Path(config.run.dir), []
    try:
        if not resume and folder.is_dir() and any(folder.iterdir()):
            if not (folder / CONFIG).is_file():
                raise UserError(f"run.dir = {folder}: holds files that are no run; choose another name")
            kept = next(p for n in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{n}")).exists())
            folder.rename(kept)
            said = [f"the earlier run in {folder} is now in {kept}"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(config.dump())
    except OSError as error:
        raise UserError(f"run.dir = {folder}: cannot be written ({error.strerror}); choose another") from None
    return said


def check_resumable(config: Config, saved: dict[str, Any]) -> None:
    """Raises UserError where the config differs from the checkpoint's in more than MAY_CHANGE."""
    now, then = _flat(config.model_dump(mode="json")), _flat(saved)
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key) and key not in MAY_CHANGE:
            raise UserError(f"--resume: {key} is {now.get(key)!r} here and {then.get(key)!r} in the checkpoint; "
                            "resume with the run's own settings, or start another run")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
