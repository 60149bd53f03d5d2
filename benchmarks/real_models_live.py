"""Whether `real_models`' recordings decide as live cascades do, through the core, LangChain and LlamaIndex."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from confcascade import Cascade, KnowledgeProbe, Stage, TokenProbability, TransformersModel
from confcascade.bench.recording import Columns, Row
from confcascade.bench.recording.row import RecordedScore
from confcascade.bench.replay import PolicyStage, Replay, replay
from confcascade.bench.replay.replay import DECISIONS, NOT_ASKED
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.types import Message, Request
from real_models_scores import Material
from real_models_sets import QuestionSet

NEAR = 1e-3  # sums depend on who else is in a pass: a score so near its threshold may fall on either side
Record: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True)
class Agreement:
    """One way in, compared with the replay of the recording.

    Attributes:
        way: Through what.
        questions: That were asked.
        near: Left out, for a score next to its threshold.
        decisions: How many of the others were decided otherwise, at any stage.
        grades: How many, decided alike, were graded otherwise: another answer.
        costs: How many, decided alike with the same answer, have another cost.
        widest: The greatest difference of a score.
        seconds: For a question, on average.
    """

    way: str
    questions: int
    near: int
    decisions: int
    grades: int
    costs: int
    widest: float
    seconds: float


def probe_of(material: Material, held_out: Sequence[str], model: TransformersModel, layer: int) -> KnowledgeProbe:
    """A probe to deploy: a logistic regression on all questions but those that are asked live."""
    rows = [i for i, each in enumerate(material.questions) if each.id not in set(held_out)]
    states = material.states.read([material.keys[i] for i in rows], layer)
    return KnowledgeProbe.fit(model, states, material.right[rows].tolist(), layer=layer, hidden_layers=())


def recorded(material: Material, asked: Sequence[Example], probe: KnowledgeProbe, large: str, layers: int) -> Columns:
    """The recording of these questions, with that probe's scores."""
    at = {each.id: i for i, each in enumerate(material.questions)}
    layer = probe.card.layer
    scores = probe.predict(material.states.read([material.keys[at[each.id]] for each in asked], layer))
    rows: list[Row] = []
    for example, value in zip(asked, scores, strict=True):
        p_ik = RecordedScore(value=float(value), phase="pre", prefill=True, depth=layer / layers)
        small = material.rows[example.id]
        rows += [
            small.model_copy(update={"scores": {"p_ik": p_ik, "p_t": small.scores["p_t"]}}),
            material.others[large][example.id],
        ]
    return Columns.of(rows)


def compared(
    material: Material,
    asked: Sequence[Example],
    models: tuple[TransformersModel, TransformersModel],
    probe: KnowledgeProbe,
    threshold: float,
    told: Callable[[str], None],
) -> list[Agreement]:
    """Each way in, asked the same questions."""
    small, large = models
    thresholds = {"p_ik": threshold, "p_t": threshold}
    columns = recorded(material, asked, probe, large.name, small.capability.layers)
    sizes = {model.name: model.architecture for model in models}
    played = replay(columns, [PolicyStage(small.name, thresholds), PolicyStage(large.name)], architectures=sizes)
    stages = [Stage(small, [probe, TokenProbability()], thresholds), Stage(large)]
    found = []
    for way, ask in WAYS.items():
        told(way)
        began = time.perf_counter()
        answers = ask(stages, material.asked, asked)
        seconds = (time.perf_counter() - began) / len(asked)
        found.append(_agreement(way, material.asked, asked, columns, played, answers, thresholds, small.name, seconds))
    return found


def _agreement(
    way: str,
    asked: QuestionSet,
    examples: Sequence[Example],
    columns: Columns,
    played: Replay,
    answers: Sequence[tuple[str, Record]],
    thresholds: Mapping[str, float],
    small: str,
    seconds: float,
) -> Agreement:
    place = {question: i for i, question in enumerate(columns.questions)}
    near = decisions = grades = costs = 0
    widest = 0.0
    for example, (text, record) in zip(examples, answers, strict=True):
        i = place[example.id]
        first = record["attempts"][0]["scores"]
        known = {name: columns.signal(small, name).values[i] for name in thresholds}
        for name, score in first.items():
            if score["value"] is not None and not record["attempts"][0]["aborted"]:
                widest = max(widest, abs(score["value"] - known[name]))
        if any(abs(known[name] - at) < NEAR for name, at in thresholds.items()):
            near += 1
            continue
        live = [DECISIONS[attempt["decision"]] for attempt in record["attempts"]]
        if live != [decision for decision in played.decision[i] if decision != NOT_ASKED]:
            decisions += 1
        elif is_right(asked.grader.grade(example, text).value or 0.0) != is_right(float(played.grade[i])):
            grades += 1
        elif not math.isclose(record["cost"]["flops"], played.cost.flops[i]):
            costs += 1
    return Agreement(way, len(examples), near, decisions, grades, costs, widest, seconds)


# ---------------------------------------------------------------------- ways in


def core(stages: Sequence[Stage], asked: QuestionSet, examples: Sequence[Example]) -> list[tuple[str, Record]]:
    """`Cascade.run_batch`."""
    requests = [Request(asked.prompt.messages(each), max_tokens=asked.max_tokens) for each in examples]
    outcomes = Cascade(stages).run_batch(requests)
    found = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        found.append((outcome.text, outcome.record.as_dict()))
    return found


def langchain(stages: Sequence[Stage], asked: QuestionSet, examples: Sequence[Example]) -> list[tuple[str, Record]]:
    """`batch` of a chain."""
    from langchain_confcascade import ConfidenceCascadeLLM

    llm = ConfidenceCascadeLLM(stages=list(stages)).bind(max_tokens=asked.max_tokens)
    answers = llm.batch([_turns(asked.prompt.messages(each)) for each in examples])
    return [(answer.text, answer.response_metadata["confcascade"]) for answer in answers]


def llamaindex(stages: Sequence[Stage], asked: QuestionSet, examples: Sequence[Example]) -> list[tuple[str, Record]]:
    """`achat`, all at a time."""
    import asyncio

    from llama_index.core.llms import ChatMessage

    from llamaindex_confcascade import ConfidenceCascadeLLM

    llm = ConfidenceCascadeLLM(stages=list(stages))

    async def ask() -> list[Any]:
        turns = [[ChatMessage(m.content, role=m.role) for m in asked.prompt.messages(each)] for each in examples]
        return await asyncio.gather(*(llm.achat(each, max_tokens=asked.max_tokens) for each in turns))

    answers = asyncio.run(ask())
    return [(each.message.content or "", each.additional_kwargs["confcascade"]) for each in answers]


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


WAYS: Mapping[str, Callable[[Sequence[Stage], QuestionSet, Sequence[Example]], list[tuple[str, Record]]]] = {
    "core": core,
    "LangChain": langchain,
    "LlamaIndex": llamaindex,
}


def lines(found: Sequence[Agreement]) -> list[str]:
    """As Markdown."""
    head = "| way | questions | next to a threshold | decided otherwise | answered otherwise | other cost |"
    rows = [f"{head} widest difference of a score | seconds a question |", "|---" * 8 + "|"]
    rows += [
        f"| {each.way} | {each.questions} | {each.near} | {each.decisions} | {each.grades} | {each.costs} "
        f"| {each.widest:.1e} | {each.seconds:.2f} |"
        for each in found
    ]
    return [*rows, "", f"median seconds: {statistics.median(each.seconds for each in found):.2f}"]
