"""``confcascade fit``, and its policies in other commands: bundled models collected, fitted, evaluated, asked."""

from __future__ import annotations

import json

import pytest
from confcascade.bench.questions.prompts import prompt_from
from confcascade.cli.fit import _equivalence
from confcascade.demo.world import World
from confcascade.policy import Policy

CASCADE = """
stages:
  - model: bundled:small
    signals:
      - {type: p_ik, probe: "bundled:small"}
      - {type: p_t, aggregate: min}
  - model: bundled:large
"""


@pytest.fixture(scope="module")
def folder(confcascade, tmp_path_factory):
    """Collected answers to some questions, and to others."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "cascade.yaml").write_text(CASCADE)
    world = World()
    for name, split, tasks in (("seen", "calibration", ("facts", "sums", "refusals")), ("new", "test", ("sums",))):
        lines = [
            json.dumps({"question": each.prompt, "reference": each.reference, "group": each.task})
            for each in world.questions(split, tasks, per_task=140)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        done = confcascade(
            *("collect", f"{name}.jsonl", "-o", f"{name}.rec.jsonl", "--cascade", "cascade.yaml"),
            *("--grader", "normalized", "--max-tokens", 40),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
    return folder


FIT = ("fit", "seen.rec.jsonl", "--cascade", "cascade.yaml", "--parameters", "small=1e6,large=2e7")


@pytest.fixture(scope="module")
def fitted(confcascade, folder):
    done = confcascade(*FIT, "-o", "out/policy.json", "--max-drop", "0.15", "--confidence", "0.9", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def test_a_promise_in_plain_words(fitted, folder):
    said = fitted.stdout
    for part in (
        "Promised: accuracy at most 15.00 points below the largest model's, with 0.9 confidence.",
        "Evidence: on ",
        "It holds as long as:",
        "Expected: ",
        "Signals:\n  small.p_ik: ",
        "Policy: out/policy.json",
    ):
        assert part in said
    policy = Policy.load(folder / "out" / "policy.json")
    meta = json.loads((folder / "seen.rec.jsonl.meta.json").read_text())["identity"]
    assert policy.made_from.data == meta["data"]
    assert policy.made_from.grader == meta["grader"]
    small = policy.stages[0]
    assert small.build == meta["models"]["small"]["fingerprint"]
    assert small.prompt_version == prompt_from("plain").version
    assert set(small.needs) <= {"p_ik", "p_t"}
    assert small.identities["p_t"] == meta["models"]["small"]["signals"]["p_t"]


def test_a_promise_for_each_group(confcascade, folder):
    """Fitted, evaluated by the groups, and asked by one of them, from the command line and from a file."""
    options = ("-o", "out/groups.json", "--max-drop", "0.25", "--confidence", "0.8", "--per-group")
    done = confcascade(*FIT, *options, cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    policy = Policy.load(folder / "out" / "groups.json")
    assert set(policy.groups) == {"facts", "sums", "refusals"}
    assert "Groups that have a promise, " in done.stdout
    common = ("--policy", "out/groups.json", "--no-plots", "--parameters", "small=1e6,large=2e7")
    whole = confcascade("evaluate", "new.rec.jsonl", *common, cwd=folder)
    assert whole.returncode == 0, whole.stderr
    assert "promised at most" in whole.stdout
    assert not (folder / "report").exists()
    one = confcascade("evaluate", "seen.rec.jsonl", *common, "--group", "facts", "-o", "of_facts", cwd=folder)
    assert one.returncode == 0, one.stderr
    assert json.loads((folder / "of_facts" / "figures.json").read_text())["questions"] == 140
    question = ("ask", "How does Nebros Krurer earn a living?", "--json")
    given = confcascade(
        *question, "--cascade", "cascade.yaml", "--policy", "out/groups.json", "--group", "facts", cwd=folder
    )
    (folder / "groups.yaml").write_text(
        "models: ['bundled:small', 'bundled:large']\npolicy: out/groups.json\ngroup: facts\n"
    )
    written = confcascade(*question, "--cascade", "groups.yaml", cwd=folder)
    ids = {json.loads(each.stdout)["record"]["policy_id"] for each in (given, written)}
    assert len(ids) == 1
    without = confcascade(*question, "--cascade", "cascade.yaml", "--policy", "out/groups.json", cwd=folder)
    assert without.returncode == 2
    assert "each of 3 groups of questions: say which" in " ".join(without.stderr.split())


def test_a_question_is_asked_by_the_policy(confcascade, fitted, folder):
    """Live, its signals are made anew; the prompt is checked, and another one refused."""
    ask = ("ask", "How does Nebros Krurer earn a living?", "--cascade", "cascade.yaml", "--policy", "out/policy.json")
    done = confcascade(*ask, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "not known here" not in done.stderr
    record = json.loads(done.stdout)["record"]
    policy = Policy.load(folder / "out" / "policy.json")
    assert set(record["attempts"][0]["scores"]) <= set(policy.stages[0].thresholds)
    (folder / "named.yaml").write_text("models: ['bundled:small', 'bundled:large']\npolicy: out/policy.json\n")
    again = confcascade("ask", ask[1], "--cascade", "named.yaml", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["record"]["policy_id"] == record["policy_id"]

    other = confcascade(*ask, "--prompt", "open-ended", cwd=folder)
    assert other.returncode == 2
    assert "Another prompt makes other scores" in other.stderr


def test_another_model_is_refused(confcascade, fitted, folder):
    (folder / "other.yaml").write_text("models: ['bundled:medium', 'bundled:large']\npolicy: out/policy.json\n")
    done = confcascade("ask", "Who?", "--cascade", "other.yaml", cwd=folder)
    assert done.returncode == 2
    assert "other.yaml, line 2, `policy`: The policy was not fitted on model 'medium', but on small, " in done.stderr


def test_evaluate_tells_the_promise_and_who_was_seen(confcascade, fitted, folder):
    common = ("--policy", "out/policy.json", "--no-plots", "--parameters", "small=1e6,large=2e7")
    new = confcascade("evaluate", "new.rec.jsonl", "-o", "new", *common, cwd=folder)
    assert new.returncode == 0, new.stderr
    assert "The policy promises to lose at most 15.00 points against large" in new.stdout
    assert "fitted on" not in new.stdout
    assert "does not tell" not in _flat(new)  # who chose the thresholds, it does
    seen = confcascade("evaluate", "seen.rec.jsonl", "-o", "seen", *common, cwd=folder)
    figures = json.loads((folder / "seen" / "figures.json").read_text())
    assert "are among those that the policy was fitted on" in seen.stdout
    assert any("prove nothing" in note for note in figures["notes"])
    policy = json.loads((folder / "out" / "policy.json").read_text())
    alone = {**policy, "stages": [{**policy["stages"][0], "thresholds": {}}]}
    (folder / "out" / "alone.json").write_text(json.dumps(alone))
    common = ("--policy", "out/alone.json", *common[2:])
    small = confcascade("evaluate", "new.rec.jsonl", "-o", "small", *common, cwd=folder)
    assert small.returncode == 0, small.stderr
    assert "held against small, the last model that the policy asks, and not against large" in _flat(small)


def _flat(done):
    return " ".join(done.stdout.split())


def test_nothing_is_written_where_nothing_can_be_promised(confcascade, folder):
    done = confcascade(*FIT, "-o", "none.json", "--max-drop", "0.001", cwd=folder)
    assert done.returncode == 1
    assert "Nothing can be promised with " in done.stdout
    assert " more would do for a policy that saves" in done.stdout or "No number of questions" in done.stdout
    assert not (folder / "none.json").exists()


def test_a_note_of_the_library_names_the_option(confcascade, folder):
    """Beside the line that speaks of it, and not at the end of everything."""
    rows = [json.loads(line) for line in (folder / "seen.rec.jsonl").read_text().splitlines()]
    bare = [json.dumps({name: value for name, value in row.items() if name != "prompt"}) for row in rows]
    (folder / "bare.rec.jsonl").write_text("\n".join(bare) + "\n")
    arguments = ("bare.rec.jsonl", *FIT[2:], "-o", "bare.json", "--max-drop", "0.15", "--confidence", "0.9")
    done = confcascade("fit", *arguments, cwd=folder)
    (line,) = (line for line in done.stdout.splitlines() if "`keep_text=True`" in line)
    assert line.endswith("(Here: `keep_text` is --text.)"), done.stderr


def test_without_labels(confcascade, folder):
    done = confcascade(
        *FIT, "-o", "agree.json", "--max-drop", "0.2", "--no-labels", "--equivalence", "normalized", cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of the answers differ from the largest model's by 'normalized'" in done.stdout
    assert Policy.load(folder / "agree.json").certificates[0].kind == "agreement"


def test_a_judges_error_counts_for_every_smaller_model():
    """Its misses may all be of the one model whose answers a policy keeps."""
    (pair, _), (chain, _) = (_equivalence("judge:bundled:small", 400, 2, 0.95, smaller) for smaller in (1, 2))
    assert chain.error == pytest.approx(2 * pair.error)
    assert _equivalence("judge:bundled:small", 4, 2, 0.95, 2)[0].error < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "What shall be promised?"),
        (("--max-drop", "0.1", "--max-cost", "0.5"), "a mean cost that has no bound"),
        (("--max-drop", "0.1", "--timeout", "5"), "name a target, too"),
        (("--min-f1", "yes=0.8", "--per-group"), "--per-group goes with --max-drop or --max-cost alone"),
        (("--max-drop", "0.1", "--no-labels"), "--no-labels and --equivalence go together"),
        (("--max-drop", "0.1", "--no-labels", "--equivalence", "taste"), "--equivalence must be one of choice"),
        (("--max-drop", "0.1", "--no-labels", "--equivalence", "judge:bundled:large"), "check by hand some pairs"),
        (("--max-drop", "0.1", "--models", "small,large"), "Say either --models or --cascade FILE"),
        (("--max-drop", "0.1", "--prices", "small"), "--prices takes NAME=VALUE"),
        (("--max-drop", "0.1", "--prices", "larg=1,2"), "Model 'larg' is not in the recording"),
        (("--max-drop", "7"), "`max_drop` must be a share between 0 and 1"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(confcascade, folder, options, message):
    done = confcascade(*FIT, *options, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
