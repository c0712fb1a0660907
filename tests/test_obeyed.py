"""Every setting changes something, or is refused where it cannot: nothing that a user sets is ignored in silence."""

import itertools
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from adapter.api.upstream import Upstream
from adapter.chain import changed
from adapter.rows import Splits, write_splits
from grpo.config import Algorithm, Config
from grpo.types import UserError
from symbols.base.pretrain import read_recipe
from symbols.settings import Settings, make_notation, make_range
from symbols.task import SymbolTask
from tests.conftest import ROOT, run_train, tiny_config
from tests.reference import by_grpo, drawn_step
from tests.symbol_rows import build

TINY = tiny_config("rollout.max_new_tokens=4")
STEP = drawn_step(seed=3, groups=12, size=6, spread=1.5)  # ratios on both sides of every bound
OTHERS = {"advantage": "centred", "ratio": "sequence", "loss": "dual_clip", "aggregation": "constant", "eps_low": 0.5,
          "eps_high": 0.9, "dual_clip_at": 1.5, "beta": 0.3, "kl": "k1", "correction": "masked", "correction_low": 0.8,
          "correction_high": 1.3, "overlong": "masked", "overlong_buffer": 0.7}
CHOICES = [[{}, {"loss": "dual_clip"}, {"loss": "cispo"}, {"loss": "reinforce"}], [{}, {"ratio": "sequence"}],
           [{}, {"correction": "truncated"}, {"correction": "masked"}],
           [{}, {"overlong": "masked"}, {"overlong": "penalised"}], [{}, {"beta": 0.2}], [{}, {"advantage": "maxrl"}]]


def outcome(keys: dict) -> tuple:
    """What the algorithm makes of STEP. Raises ValidationError where the keys do not go together."""
    found = by_grpo(STEP, TINY.model_copy(update={"algorithm": Algorithm(**keys)}))
    return found.loss, found.gradient, found.advantages, found.sums


def test_a_key_of_the_algorithm_changes_the_outcome_or_is_refused():
    """In the company of 288 combinations of the choices. Refills and epochs are the loop's, and no equation's."""
    assert {*OTHERS, "preset", "refills", "epochs"} == set(Algorithm.model_fields)
    met = dict.fromkeys(OTHERS, 0)
    for parts in itertools.product(*CHOICES):
        beside = {key: value for part in parts for key, value in part.items()}
        try:
            before = outcome(beside)
        except ValidationError:
            continue
        for key, value in OTHERS.items():
            if beside.get(key) == value:
                continue
            try:
                after = outcome({**beside, key: value})
            except ValidationError:
                continue
            assert after != before, f"{key}={value} does nothing beside {beside}"
            met[key] += 1
    assert all(met.values()), met


@pytest.mark.parametrize("keys", [
    ["algorithm=cispo", "algorithm.eps_low=0.1"], ["algorithm.loss=reinforce", "algorithm.eps_high=1.0"],
    ["algorithm.kl=k2"], ["algorithm.dual_clip_at=9.0"], ["algorithm.overlong_buffer=0.9"],
    ["algorithm.correction_high=9.0"], ["algorithm.correction=truncated", "algorithm.correction_low=0.1"],
    ["algorithm.loss=reinforce", "algorithm.epochs=8"]], ids=str)
def test_what_nothing_reads_is_refused_in_one_line(keys):
    key, value = keys[-1].removeprefix("algorithm.").split("=")
    says = rf"^algorithm = [^\n]*: {key} {value} needs [^\n]*; choose that, or leave {key} out$"
    with pytest.raises(UserError, match=says):
        tiny_config(*keys)
    assert tiny_config(*keys[:-1])  # what a preset or a default says is no mistake of the user's


def test_every_other_key_of_the_config_is_read():
    """By name, somewhere beside its own definition."""
    code = "".join(path.read_text() for path in [*(ROOT / "grpo").rglob("*.py"), ROOT / "train.py"]
                   if path.name not in ("config.py", "presets.py"))
    for section, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and section != "task":
            for key in set(field.annotation.model_fields) - {"tensor_parallel_size"}:  # which has one value
                assert re.search(rf"\.{key}\b", code), f"{section}.{key}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of 60, 10 and 20 rows within a limit of 999."""
    s, place = Settings(limit=999, train=60, validation=10, test=20), tmp_path_factory.mktemp("data")
    write_splits(place, build(0, Splits(s.train, s.validation, s.test), make_range(s), make_notation(s), 0))
    return place


@pytest.mark.parametrize(("key", "false", "true", "says"), [
    ("train", 10, 60, "task.train = 10: {}/train.jsonl has 60 rows; set task.train=60"),
    ("validation", 5, 10, "task.validation = 5: {}/validation.jsonl has 10 rows"),
    ("test", 5, 20, "task.test = 5: {}/test.jsonl has 20 rows"),
    ("operands", [1, 9], [1, 200], "task.operands = [1, 9]: {}/train.jsonl: line "),
    ("terms", [2, 2], [2, 5], "task.terms = [2, 2]: {}/train.jsonl: line "),
    ("limit", 50, 999, "task.limit = 50: {}/train.jsonl: line ")])
def test_a_key_beside_a_data_set_is_true_of_it(folder, key, false, true, says):
    with pytest.raises(UserError) as caught:
        SymbolTask(Settings(data=str(folder), **{key: false}), 0)
    assert str(caught.value).startswith(says.format(folder))
    assert "\n" not in str(caught.value)
    task = SymbolTask(Settings(data=str(folder), **{key: true}), 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (60, 10, 20)


def upstream(settings: Settings) -> Upstream:
    return SymbolTask.make_upstream(settings, 0, SymbolTask.make_corrector(settings))


API = {"api_model": "claude-x", "api_max_tokens": 9, "api_answers": "x.jsonl", "api_concurrency": 2, "api_batch": True}


@pytest.mark.parametrize("key", API)
def test_a_key_of_an_api_needs_one(key):
    with pytest.raises(ValidationError, match="upstream"):
        Settings(**{key: API[key]})
    with_it, without = (upstream(Settings(upstream="anthropic", **keys)) for keys in ({key: API[key]}, {}))
    assert vars(with_it) != vars(without)


@pytest.mark.parametrize("beside", [{"data": "data/x"}, {"api_concurrency": 2}])
def test_a_batch_where_nothing_is_asked_in_one_is_refused(beside):
    with pytest.raises(ValidationError, match="leave"):
        Settings(upstream="anthropic", api_batch=True, **beside)


def test_of_a_run_the_api_in_front_can_be_changed_alone():
    with pytest.raises(UserError, match="terms: says nothing of the API in front"):
        changed(Settings(), {"terms": [2, 2]})


def test_a_recipe_without_bare_samples_has_no_number_of_them():
    with pytest.raises(ValueError, match="bare_samples 5 needs bare above 0"):
        read_recipe(["bare_samples=5"])
    assert read_recipe(["bare_samples=5", "bare=0.5"]).bare_samples == 5


def test_a_change_is_allowed_to_a_resumed_run_alone(tmp_path):
    done = run_train("configs/tiny.yaml", f"run.dir={tmp_path}/run", "--allow-change", "optim.lr")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: --allow-change optim.lr: a change since a checkpoint; add --resume" in done.stderr
