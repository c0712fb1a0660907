"""The report in a real browser, from disk and without a network: what is read, clicked and typed."""

import json
import re

import pytest

from grpo.config import load
from grpo.report.__main__ import report
from grpo.report.records import read_rollout
from grpo.report.tokens import step_tokens
from tests.conftest import lines, write_lines
from tests.report_run import SMALL, add_comparison, fabricate, shown

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'> \u2028\u202e{{data}} \\u003c & <b>"


def number(text: str) -> float:
    """As the page writes it: 9.77 × 10⁻⁵."""
    text = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789"))
    return float(re.sub(r"\s×\s10", "e", text))


def numbers(page) -> dict[str, float]:
    """The inspector's six, in full."""
    return {row.get_attribute("data-quantity"): float(row.query_selector(".number").get_attribute("data-value"))
            for row in page.query_selector_all("#inspector .row")}


def mixed_group(config, recorded) -> int:
    size = config.rollout.group_size
    return next(g for g in range(len(recorded) // size) if len({x.reward for x in recorded[g * size : (g + 1) * size]}) > 1)


def test_a_token_shows_the_recorded_numbers_and_their_equation(fabricated, opened):
    config = load(fabricated / "config.yaml")
    recorded = read_rollout(fabricated / "rollouts" / "step-00004.jsonl.gz", config.rollout)
    tokens = step_tokens(recorded, config.algorithm, config.rollout)
    g = mixed_group(config, recorded)
    page = opened(fabricated / "report.html", f"#step=4&group={g + 1}&show=contribution")
    shown(page, 4, g + 1, "contribution")
    rows = sorted(range(8 * g, 8 * g + 8), key=lambda b: (-recorded[b].reward, b))
    seen = 0
    for place, b in list(enumerate(rows))[::3]:
        line, t = recorded[b], len(recorded[b].token_ids) // 2
        page.hover(f".completion:nth-child({place + 1}) .token:nth-child({t + 1})")
        row = tokens.rows.index(b)
        expected = {"contribution": tokens.contribution_BT[row, t].item(), "logp": line.logp_trainer[t],
                    "gap": line.logp_trainer[t] - line.logp_sampler[t], "entropy": line.entropy[t],
                    "ratio": tokens.terms.ratio_BT[row, t].item(), "clip": float(tokens.terms.clipped_BT[row, t])}
        assert numbers(page) == pytest.approx(expected, rel=1e-5, abs=1e-9)
        assert f"id {line.token_ids[t]}" in page.inner_text("#inspector .where")
        assert number(page.inner_text("[data-quantity=logp] .number")) == line.logp_trainer[t]
        assert number(page.inner_text("[data-quantity=entropy] .number")) == line.entropy[t]
        equation = page.query_selector_all("[data-quantity=contribution] .equation")[1].inner_text()
        assert number(equation.rsplit("= ", 1)[1]) == pytest.approx(expected["contribution"], rel=6e-3)
        if not expected["clip"]:
            weight, *others = equation.removeprefix("= ").rsplit("= ", 1)[0].split(" × ")
            assert weight == f"1/{sum(len(x.token_ids) for x in recorded)}"
            assert number(others[0]) == pytest.approx(expected["ratio"], rel=6e-4)
            assert number(others[1].strip("()").split(")")[0]) == pytest.approx(line.advantage, rel=6e-4)
            seen += 1
    assert seen > 0


def test_clicks_choose_step_group_and_quantity(fabricated, opened):
    page = opened(fabricated / "report.html", "#step=1&group=1&show=contribution")
    shown(page, 1, 1, "contribution")
    page.select_option("#step", "3")
    shown(page, 3, 1, "contribution")
    page.click("#step-on")
    shown(page, 4, 1, "contribution")
    page.click("#step-back")
    page.click("#group-on")
    shown(page, 3, 2, "contribution")
    page.click("#groups button:nth-child(3)")
    shown(page, 3, 3, "contribution")
    assert page.get_attribute("#groups button:nth-child(3)", "aria-pressed") == "true"
    problem = lines(fabricated / "rollouts" / "step-00003.jsonl.gz")[16]["problem"]
    assert page.inner_text("#composition").startswith(problem)
    before = page.eval_on_selector_all(".token", "tokens => tokens.map(t => t.className)")
    page.select_option("#show", "entropy")
    shown(page, 3, 3, "entropy")
    after = page.eval_on_selector_all(".token", "tokens => tokens.map(t => t.className)")
    assert before != after
    assert page.url.endswith("#step=3&group=3&show=entropy")
    page.reload()
    shown(page, 3, 3, "entropy")
    assert page.input_value("#show") == "entropy"


def test_the_keyboard_is_enough(fabricated, opened):
    page = opened(fabricated / "report.html", "#step=1&group=1&show=contribution")
    shown(page, 1, 1, "contribution")
    for key, state in (("]", (2, 1)), ("j", (2, 2)), ("j", (2, 3)), ("k", (2, 2)), ("]", (3, 2)), ("[", (2, 2)),
                       ("[", (1, 2)), ("[", (1, 2))):
        page.keyboard.press(key)
        shown(page, *state, "contribution")
    for n, name in enumerate(("contribution", "logp", "gap", "entropy", "ratio", "clip"), 1):
        page.keyboard.press(str(n))
        shown(page, 1, 2, name)
    page.focus(".token[tabindex='0']")
    page.keyboard.press("Home")
    where = page.inner_text("#inspector .where")
    assert "token 1 of" in where
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.inner_text("#inspector .where")
    spoken = page.inner_text("#spoken")
    assert "Clip" in spoken
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('.completion').dataset.place") == "1"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('.completion').dataset.place") == "0"
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.keyboard.press("t")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.keyboard.press("m")
    page.wait_for_function("document.querySelector('#composition').textContent.match(/: [1-7] of 8 right/)")


def test_with_a_kl_equal_rewards_train_and_the_page_says_so(fabricated, opened):
    recorded = read_rollout(fabricated / "rollouts" / "step-00001.jsonl.gz", load(fabricated / "config.yaml").rollout)
    g = next(g for g in range(3) if len({line.reward for line in recorded[8 * g : 8 * g + 8]}) == 1)
    page = opened(fabricated / "report.html", f"#step=1&group={g + 1}&show=clip")
    shown(page, 1, g + 1, "clip")
    assert page.inner_text("#composition").endswith("of 8 right; it trains.")


def test_the_penalty_on_length_and_the_dual_clip_are_in_the_equations(tmp_path, opened):
    config = fabricate(tmp_path / "run", *SMALL, "algorithm=dapo", "algorithm.loss=dual_clip", "algorithm.dual_clip_at=1.25",
                       "algorithm.epochs=2", "rollout.max_new_tokens=60", tokens=(40, 60))
    report(tmp_path / "run", tmp_path / "report.html")
    recorded = read_rollout(tmp_path / "run" / "rollouts" / "step-00001.jsonl.gz", config.rollout)
    g = mixed_group(config, recorded)
    page = opened(tmp_path / "report.html", f"#step=1&group={g + 1}&show=contribution")
    shown(page, 1, g + 1, "contribution")
    rows = sorted(range(8 * g, 8 * g + 8), key=lambda b: (-recorded[b].reward, b))
    place = next(n for n, b in enumerate(rows) if len(recorded[b].token_ids) > 48)  # 60 less a fifth
    page.click(f"[data-place='{place}'] .token")
    said, line = page.inner_text("#inspector"), recorded[rows[place]]
    assert f"= {line.reward:g} − " in said.replace("\n", "")
    assert "its length is near the limit" in said
    assert re.search(r"\(R\s*i\s*− m\)/\(s \+ ε\) =", said.replace("\n", "")), said
    bounded = [(n, t) for n, b in enumerate(rows) if recorded[b].advantage < 0
               for t, (a, c) in enumerate(zip(recorded[b].logp_last, recorded[b].logp_trainer, strict=True)) if a - c > 0.25]
    n, t = bounded[0]
    page.click(f"[data-place='{n}'] .token >> nth={t}")
    assert "bounded at c A" in page.inner_text("#inspector")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(fabricated, opened, scheme):
    page = opened(fabricated / "report.html", "#step=1&group=1&show=clip", scheme=scheme)
    shown(page, 1, 1, "clip")
    contrast = """element => {
      const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const of = name => getComputedStyle(element)[name];
      const back = of("backgroundColor") === "rgba(0, 0, 0, 0)" ? getComputedStyle(document.documentElement).backgroundColor
        : of("backgroundColor");
      const [a, b] = [light(of("color")), light(back)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); }"""
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(21, 23, 26)") == (scheme == "dark")
    page.evaluate("""document.body.insertAdjacentHTML("beforeend", ["d", "s"].flatMap(name => [...Array(33).keys()]
      .map(n => `<i class="probe ${name}${n}">x</i>`)).join(""))""")
    probes = page.query_selector_all(
        ".probe, .about, #lead, .completion h4 span, .right, .wrong, #inspector .why, button:enabled, .equation")
    assert len(probes) > 66
    assert min(page.evaluate(contrast, probe) for probe in probes) >= 4.5
    clipped = page.query_selector("#completions .token.clipped")
    assert "underline" in clipped.evaluate("token => getComputedStyle(token).textDecorationLine")
    assert {"✓ right", "✗ wrong"} <= {b.inner_text() for b in page.query_selector_all(".completion b")}
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == {"light": "dark", "dark": "light"}[scheme]
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != paper


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_one_way(fabricated, opened, width):
    page = opened(fabricated / "report.html", "#step=1&group=1&show=logp", width=width, height=844)
    shown(page, 1, 1, "logp")
    for name in ("learning", "optimisation", "lora", "mismatch", "compare", "alarms", "settings"):
        page.evaluate(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
        page.wait_for_timeout(150)
    page.wait_for_selector("[data-chart=lora] .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_hostile_text_is_inert(tmp_path, opened):
    run = tmp_path / "run"
    fabricate(run, *SMALL, prompt=HOSTILE)
    for path in (run / "rollouts").iterdir():
        recorded = [line | {"problem": HOSTILE, "kind": HOSTILE} for line in lines(path)]
        path.unlink()
        write_lines(path, recorded)
    metrics = [json.dumps(line | {f"reward/{HOSTILE}": 0.5, f"alarm/{HOSTILE}": 1.0})
               for line in lines(run / "metrics.jsonl")]
    (run / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    add_comparison(run, 2)
    comparison = (run / "compare" / "step-00002.json").read_text()
    (run / "compare" / "step-00002.json").write_text(comparison.replace('"maxrl"', json.dumps(HOSTILE)))
    report(run, run / "report.html")
    page = opened(run / "report.html", "#step=2&group=1&show=logp")
    shown(page, 2, 1, "logp")
    page.wait_for_selector("[data-chart=reward] .main-svg")
    page.evaluate("document.querySelector('#compare').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#compare-charts .main-svg >> nth=1")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelector('#prompt pre').textContent") == HOSTILE
    assert HOSTILE[:40] in page.inner_text("#composition")
    assert page.query_selector("img") is None
