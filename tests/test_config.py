"""A user's mistakes: one line on stderr with path, value, rule and repair; exit code 2; nothing written."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import train
from grpo.config import Config, load
from grpo.run.schema import validated
from tests.conftest import ROOT, TINY, tiny_config, train_here


@pytest.fixture
def complaint(capsys, tmp_path, monkeypatch):
    """Run the command in an empty place and return its one line of complaint."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert train.main([str(a) for a in arguments]) == 2
        out = capsys.readouterr()
        assert out.out == ""
        assert out.err.count("\n") == 1
        assert "Traceback" not in out.err
        assert not list(tmp_path.glob("runs"))
        return out.err

    return run


@pytest.mark.parametrize(("override", "words"), [
    ("rollout.group_size=1", ["rollout.group_size = 1", "greater than or equal to 2", "relative to the group",
                              "such as rollout.group_size=64"]),
    ("lora.targets=all-linear", ["lora.targets = 'all-linear'", "valid list", "such as lora.targets=[q_proj,k_proj,"]),
    ("run.steps=-1", ["run.steps = -1", "greater than or equal to 1", "such as run.steps=100"]),
    ("run.steps=many", ["run.steps = 'many'", "integer"]),
    ("run.steps=1.5", ["run.steps = 1.5", "integer"]),
    ("run.steps=5.0", ["run.steps = 5.0", "integer"]),  # nothing is converted
    ("run.steps=true", ["run.steps = True", "integer"]),
    ("optim.lr='1e-3'", ["optim.lr = '1e-3'", "number"]),
    ("run.stepz=5", ["run.stepz", "unknown key", "did you mean steps?"]),
    ("runn.steps=5", ["runn", "unknown key", "did you mean run?"]),
    ("lora.alpha=24", ["lora.alpha = 24", "power of two", "with rank 16 try 16 or 32"]),
    ("algorithm.loss=ppo2", ["algorithm.loss = 'ppo2'", "'cispo' or 'reinforce'"]),
    ("algorithm.eps_low=1.5", ["algorithm.eps_low = 1.5", "less than 1"]),
    ("optim.lr=.nan", ["optim.lr", "finite"]),
    ("optim.lr=fast", ["optim.lr = 'fast'", "number"]),
    ("rollout=5", ["rollout = 5"]),
    ("model.dtype=int8", ["model.dtype = 'int8'", "'float32' or 'bfloat16'"]),
    ("optim.betas=[1.5,0.9]", ["optim.betas.0 = 1.5", "less than 1"]),
    ("lora.rank=1024", ["lora.rank = 1024", "less than or equal to 512"]),
    ("run.seed=5000000000", ["run.seed", "less than 4294967296"]),
    ("rollout.temperature=0.001", ["rollout.temperature", "0.01"]),
    ("task.operands=[10,99]", ["task.operands", "no operands from 10 to 99", "widen"]),
    ("--resume=nowhere", ["--resume nowhere: is no run", "a bare --resume begins one"]),
    ("--resume=run.steps=5", ["put overrides before --resume"]),
    ("task.upstreem=x", ["task.upstreem", "did you mean upstream?"]),
    ("task.target=nowhere", ["task.target", "nowhere"]),
    ("task.target=nowhere:Task", ["task.target", "nowhere", "module:Class"]),
    ("task.target=symbols.task:Nope", ["task.target", "Nope"]),
    ("steps", ["steps", "key.path=value"]),
    ("records.rollouts=some", ["records.rollouts = 'some': expected auto, all, none, or how many steps apart"]),
    ("records.rollouts=0", ["records.rollouts = 0: expected"]),
    ("records.rollouts=true", ["records.rollouts = True: expected"]),
    ("records.rollouts=[1]", ["records.rollouts = [1]: expected"]),
    ("model.path=models/nowhere", ["models/nowhere", "configs/tiny.yaml"]),
])
def test_mistakes_are_one_line(complaint, override, words):
    line = complaint(TINY, f"model.path={ROOT}/models/tiny", override)
    assert all(word in line for word in words), line


def test_files_that_are_no_configs(complaint, tmp_path):
    assert "cannot be read" in complaint("nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("run: [unclosed")
    assert "not a YAML config" in complaint(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "not a YAML config" in complaint(tmp_path / "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a YAML config" in complaint(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert "run: missing" in complaint(tmp_path / "empty.yaml")


def test_a_prompt_longer_than_the_model(tmp_path):
    done = train_here(str(TINY), f"run.dir={tmp_path}/run", "rollout.max_new_tokens=900")
    assert done.returncode == 2
    complaint = done.stderr.strip().splitlines()[-1]
    assert "rollout.max_new_tokens = 900" in complaint
    assert "1024 positions" in complaint


def test_the_flagship_says_what_is_missing_before_anything_heavy_is_imported(tmp_path):
    bare = {**os.environ, "PATH": "/nowhere", "HF_HOME": str(tmp_path), "ANTHROPIC_API_KEY": ""}
    code = ("import sys, train; code = train.main(sys.argv[1:]); print({'torch', 'transformers', 'vllm'} & {*sys.modules}); "
            "sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "configs/vague.yaml", f"run.dir={tmp_path}/run"], cwd=ROOT,
                          capture_output=True, text=True, check=False, env=bare)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.count("\n") == 1
    for word in ("NVIDIA GPU", "Qwen/Qwen3-8B", "ANTHROPIC_API_KEY", "configs/tiny.yaml"):
        assert word in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_flagship_has_the_experiments_settings():
    config = load(ROOT / "configs" / "vague.yaml")
    assert (config.model.path, config.lora.rank, config.lora.alpha, len(config.lora.targets)) == ("Qwen/Qwen3-8B", 32, 64, 7)
    assert (config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.temperature) == (16, 64, 1.0)
    assert config.rollout.gpu_memory_share == 0.5  # the source gave vLLM 0.3, and the trainer a base of its own
    assert (config.optim.lr, config.optim.warmup, config.run.steps, config.checkpoint.every) == (5e-6, 0.1, 1000, 200)


@pytest.mark.parametrize("name", ["vague", "explicit", "explicit_no_correct", "none_no_correct"])
def test_the_conditions_differ_in_what_the_prompt_tells_and_in_nothing_else(name):
    for place, base in (("", "vague"), ("tiny/", "tiny")):
        condition, reference = (load(ROOT / "configs" / f"{file}.yaml").model_dump() for file in (place + name, base))
        assert condition["task"].pop("condition") == name
        assert reference["task"].pop("condition") == "vague"
        assert name in condition["run"].pop("dir")
        reference["run"].pop("dir")
        assert condition == reference
    assert load(ROOT / "configs" / "tiny" / f"{name}.yaml").run.steps <= 100


def test_a_config_may_extend_another(tmp_path, complaint):
    (tmp_path / "mine.yaml").write_text(f"extends: {TINY}\nrun: {{dir: runs/mine}}\noptim: {{betas: [0.8, 0.9]}}\n")
    mine, tiny = load(tmp_path / "mine.yaml", ["run.steps=7"]), tiny_config()
    assert (mine.run.dir, mine.run.steps, mine.run.seed) == ("runs/mine", 7, tiny.run.seed)
    assert (mine.optim.betas, mine.optim.lr, mine.rollout) == ((0.8, 0.9), tiny.optim.lr, tiny.rollout)
    (tmp_path / "lost.yaml").write_text("extends: nowhere.yaml\n")
    assert "nowhere.yaml: cannot be read" in complaint(tmp_path / "lost.yaml")
    (tmp_path / "circle.yaml").write_text("extends: circle.yaml\n")
    assert "extends: unknown key" in complaint(tmp_path / "circle.yaml")
    (tmp_path / "list.yaml").write_text("extends: [a, b]\n")
    assert "list.yaml: not a YAML config" in complaint(tmp_path / "list.yaml")


def test_the_resolved_config_reads_back_equal():
    config = tiny_config("optim.lr=5e-6", "run.steps=7")
    assert config.optim.lr == 5e-6
    assert validated(Config, OmegaConf.to_container(OmegaConf.create(config.dump()))) == config
