"""Presets in a config, and dynamic sampling, which is a loop and not an equation."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config import Algorithm, load
from grpo.presets import PRESETS
from grpo.rollout import advantages, sampling_seed, step_groups
from grpo.types import Group, Problem, Prompt, Sample, Score, UserError
from tests.conftest import ROOT, TINY, tiny_config

# ---- presets

PUBLISHED = {  # advantage, ratio, loss, aggregation, eps_low, eps_high, beta, overlong, refills
    "grpo": ("grpo", "token", "clip", "sequence_mean", 0.2, 0.2, 0.04, "kept", 0),
    "dr_grpo": ("centred", "token", "clip", "constant", 0.2, 0.2, 0.0, "kept", 0),
    "dapo": ("grpo", "token", "clip", "token_mean", 0.2, 0.28, 0.0, "penalised", 3),
    "gspo": ("grpo", "sequence", "clip", "sequence_mean", 3e-4, 4e-4, 0.0, "kept", 0),
    "cispo": ("grpo", "token", "cispo", "token_mean", 0.2, 4.0, 0.0, "kept", 0),
    "rloo": ("rloo", "token", "reinforce", "constant", 0.2, 0.2, 0.0, "kept", 0),
    "maxrl": ("maxrl", "token", "reinforce", "token_mean", 0.2, 0.2, 0.0, "kept", 0),
}


def written(path: Path, algorithm: str, base: str = str(TINY)) -> Path:
    """A config file: configs/tiny.yaml, or another, with this under `algorithm`."""
    path.write_text(f"extends: {base}\nalgorithm: {algorithm}\n")
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_replaces_what_the_file_had(name, tmp_path):
    a = tiny_config(f"algorithm={name}").algorithm
    assert PUBLISHED[name] == (
        a.advantage, a.ratio, a.loss, a.aggregation, a.eps_low, a.eps_high, a.beta, a.overlong, a.refills)
    assert (a.preset, a.kl, a.correction, a.epochs, a.overlong_buffer) == (name, "k3", "none", 1, 0.2)
    before = tiny_config("algorithm.correction=masked", "algorithm.refills=2", "algorithm.aggregation=constant",
                         f"algorithm={name}")
    assert before.algorithm == a.model_copy(update={"correction": "masked", "refills": 2, "aggregation": "constant"})
    assert load(written(tmp_path / "word.yaml", name)).algorithm == a  # as a word in a file that extends another
    assert load(written(tmp_path / "keys.yaml", "{eps_low: 0.7, epochs: 3}"), [f"algorithm={name}"]).algorithm == a
    assert tiny_config(f"algorithm={name}").model_copy(update={"algorithm": tiny_config().algorithm}) == tiny_config()


def test_the_presets_are_those_of_the_config():
    annotation, _ = get_args(Algorithm.model_fields["preset"].annotation)
    assert set(get_args(annotation)) == set(PRESETS) == set(PUBLISHED)
    assert Algorithm() == Algorithm(preset=None)


def test_single_keys_go_on_top_in_either_order(tmp_path):
    dapo = tiny_config("algorithm=dapo").algorithm
    expected = dapo.model_copy(update={"eps_high": 0.3, "refills": 1})
    keys = ["algorithm.eps_high=0.3", "algorithm.refills=1"]
    assert tiny_config("algorithm=dapo", *keys).algorithm == expected
    assert tiny_config(*keys, "algorithm=dapo").algorithm == expected
    assert tiny_config(keys[0], "algorithm=dapo", keys[1]).algorithm == expected
    plain = "\n".join(line for line in TINY.read_text().splitlines() if not line.startswith("algorithm:"))
    (tmp_path / "dapo.yaml").write_text(f"{plain}\nalgorithm: dapo\n")
    assert load(tmp_path / "dapo.yaml", keys).algorithm == expected
    assert load(written(tmp_path / "mine.yaml", "{eps_high: 0.3, refills: 1}", "dapo.yaml")).algorithm == expected
    (tmp_path / "beside.yaml").write_text(f"{plain}\nalgorithm: {{preset: dapo, eps_high: 0.3, refills: 1}}\n")
    assert load(tmp_path / "beside.yaml").algorithm == expected
    assert load(tmp_path / "beside.yaml", ["algorithm=gspo"]).algorithm == tiny_config("algorithm=gspo").algorithm
    assert tiny_config("algorithm=dapo", "algorithm=gspo").algorithm == tiny_config("algorithm=gspo").algorithm
    assert load(ROOT / "configs" / "vague.yaml", ["algorithm=dapo"]).algorithm == dapo
    (tmp_path / "whole.yaml").write_text(tiny_config("algorithm=gspo").dump())  # with every key
    for path in ("whole.yaml", "beside.yaml"):
        assert load(tmp_path / path, ["algorithm.preset=dapo", *keys]).algorithm == expected
    child = written(tmp_path / "child.yaml", "{preset: dapo, eps_high: 0.3, refills: 1}", "whole.yaml")
    assert load(child).algorithm == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_preset_reads_back_equal(name, tmp_path):
    config = tiny_config(f"algorithm={name}", "algorithm.aggregation=constant", "algorithm.beta=0.2")
    (tmp_path / "config.yaml").write_text(config.dump())
    assert load(tmp_path / "config.yaml") == config
    assert all(f"  {key}:" in config.dump() for key in Algorithm.model_fields)  # all there, whatever a preset says later


@pytest.mark.parametrize(("overrides", "words"), [
    (["algorithm=dapoo"], ["algorithm.preset = 'dapoo'", "'grpo', 'dr_grpo', 'dapo'", "such as algorithm.preset=dapo"]),
    (["algorithm.preset=ppo"], ["algorithm.preset = 'ppo'", "'maxrl'"]),
    (["algorithm=5"], ["algorithm = 5"]),
    (["algorithm=dapo", "algorithm.eps_hi=1"], ["algorithm.eps_hi", "unknown key", "eps_high?"]),
    (["algorithm=rloo", "algorithm.ratio=sequence"], ["algorithm = ", "no ratio", "choose clip, dual_clip or cispo"]),
    (["algorithm=gspo", "algorithm.loss=reinforce"], ["no ratio"]),
    (["algorithm=dapo", "algorithm.advantage=maxrl"], ["rewards of 0 or more", "choose overlong masked"]),
    (["algorithm.epochs=0"], ["algorithm.epochs = 0"]), (["algorithm.refills=-1"], ["algorithm.refills = -1"]),
    (["algorithm.dual_clip_at=1"], ["algorithm.dual_clip_at = 1", "greater than 1"]),
    (["algorithm.correction_low=1"], ["correction_low"]), (["algorithm.correction_high=0.9"], ["correction_high"]),
    (["algorithm.overlong_buffer=0"], ["overlong_buffer"]), (["algorithm.beta=-1"], ["algorithm.beta = -1"]),
    (["algorithm.kl=k4"], ["algorithm.kl = 'k4'", "'k3' or 'unbiased'"]),
])
def test_wrong_algorithms_are_one_line(overrides, words):
    with pytest.raises(UserError) as error:
        tiny_config(*overrides)
    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


# ---- dynamic sampling. The sampler is a stand-in: what is tested is which prompts it is asked for


@dataclass
class Scripted:
    """Sampler, policy and task in one. A problem named ...m has rewards 1, 0, 0; ...r is all right, ...w all wrong."""

    calls: list[list[str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def as_they_end(self, prompts, seeds, group_size) -> Iterator[tuple[int, int, Sample]]:
        self.calls.append([prompt.problem.name for prompt in prompts])
        self.seeds += seeds
        rewards = {"m": [1, 0, 0], "r": [1, 1, 1], "w": [0, 0, 0]}
        for place, prompt in reversed(list(enumerate(prompts))):
            for index, reward in enumerate(rewards[prompt.problem.name[-1]][:group_size]):
                yield place, index, Sample((reward, 2), (-1.0, -1.0), "stop")

    def decode(self, token_ids) -> str:
        return str(token_ids[0])

    def score(self, problem, text) -> Score:
        return Score(float(text))


def prompts_of(kinds: str) -> list[Prompt]:
    return [Prompt(Problem(f"{at}{kind}", "custom", ()), (5, 6), "") for at, kind in enumerate(kinds)]


def names(groups: list[Group]) -> list[str]:
    return [group.prompt.problem.name for group in groups]


def sampled(kinds: str, per_step: int, refills: int, step: int = 1, seed: int = 1):
    """(the stand-in, the step's groups, what was replaced)."""
    script = Scripted()
    config = tiny_config(f"rollout.prompts_per_step={per_step}", "rollout.group_size=3", f"algorithm.refills={refills}",
                         f"run.seed={seed}")
    return script, *step_groups(script, script, script, prompts_of(kinds), step, config)


@settings(max_examples=40, deadline=None)
@given(st.text("mrw", min_size=3, max_size=14), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.integers(0, 9))
def test_refills_by_their_rules(kinds, per_step, refills, step, seed):
    per_step = min(per_step, len(kinds))
    script, groups, replaced = sampled(kinds, per_step, refills, step, seed)
    asked = [name for call in script.calls for name in call]
    assert len(asked) == len(set(asked)) == len(set(script.seeds)) or step > 1  # a later step may cross two shuffles
    assert len(groups) == per_step
    assert len(script.calls) <= 1 + refills
    assert sorted(names(groups) + names(replaced)) == sorted(asked)  # nothing that was sampled is lost
    assert not any(name.endswith("m") for name in names(replaced))
    for before, after in zip(script.calls, script.calls[1:], strict=False):
        assert len(after) <= sum(not name.endswith("m") for name in before)  # as many as were without a signal, or are left
    if len(script.calls) <= refills and not all(advantages([g], tiny_config()).any() for g in groups):
        assert len(set(asked)) == len(kinds)  # it stopped early: there was nothing fresh
    again = sampled(kinds, per_step, refills, step, seed)
    assert (again[0], names(again[1]), names(again[2])) == (script, names(groups), names(replaced))


def test_groups_without_a_signal_are_replaced_in_their_places():
    plain, first, nothing = sampled("mwrmmmmmmmmm", 8, 0)
    assert (len(plain.calls), nothing) == (1, [])
    empty = [p for p, name in enumerate(names(first)) if name[-1] != "m"]
    assert empty  # seed 1 draws at least one of the two
    script, groups, replaced = sampled("mwrmmmmmmmmm", 8, 3)
    assert [len(call) for call in script.calls] == [8, len(empty)]  # the second round's all have one
    assert names(replaced) == [names(first)[p] for p in empty]
    assert [name for p, name in enumerate(names(groups)) if p not in empty] == [
        name for p, name in enumerate(names(first)) if p not in empty]
    assert [names(groups)[p] for p in empty] == script.calls[1]
    prompts = {prompt.problem.name: prompt for prompt in prompts_of("mwrmmmmmmmmm")}
    assert script.seeds == [sampling_seed(1, 1, place, prompts[name])  # the second round's places go on from the first's
                            for place, name in enumerate(script.calls[0] + script.calls[1])]
    assert all(advantages([group], tiny_config()).any() for group in groups)


def test_refills_are_bounded_and_what_is_still_empty_stays():
    script, groups, replaced = sampled("w" * 20, 3, 2)
    assert [len(call) for call in script.calls] == [3, 3, 3]
    assert (names(groups), names(replaced)) == (script.calls[2], script.calls[0] + script.calls[1])
    script, groups, replaced = sampled("wwww", 3, 9)  # one is fresh, and then there is nothing
    assert [len(call) for call in script.calls] == [3, 1]
    assert (names(groups), names(replaced)) == (script.calls[1] + script.calls[0][1:], script.calls[0][:1])


def test_a_group_is_without_a_signal_by_its_rewards_not_by_its_lengths():
    """DAPO replaces what is all right or all wrong, whatever the overlong penalty takes off."""
    class Uneven(Scripted):
        def as_they_end(self, prompts, seeds, group_size) -> Iterator[tuple[int, int, Sample]]:
            for place, n, sample in super().as_they_end(prompts, seeds, group_size):
                yield place, n, replace(sample, token_ids=(*sample.token_ids, *(3,) * n))

    script = Uneven()
    config = tiny_config("rollout.prompts_per_step=2", "rollout.group_size=3", "rollout.max_new_tokens=4", "algorithm=dapo",
                         "algorithm.overlong_buffer=1")
    groups, replaced = step_groups(script, script, script, prompts_of("rrmm"), 1, config)
    assert replaced
    assert all(advantages([group], config).any() for group in replaced)  # by the penalty alone
    assert all(name[-1] == "m" for name in names(groups))
    assert sorted(names(groups) + names(replaced)) == sorted(name for call in script.calls for name in call)


def test_fresh_prompts_differ_from_step_to_step_and_seed_to_seed():
    drawn = {(step, seed): tuple(sampled("w" * 30, 1, 5, step, seed)[0].calls[1][0] for _ in range(2))
             for step in (1, 2, 3) for seed in (1, 2)}
    assert all(first == second for first, second in drawn.values())
    assert len(set(drawn.values())) > 3
