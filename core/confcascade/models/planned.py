"""Two models as one: the first plans, the second answers by the plan.

With it, plan escalation (COPE, arXiv 2506.11578) is the ordinary cascade: the small model plans and answers; else the
large one plans and the small one answers; else the large one does both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from confcascade.answers import parted
from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill
from confcascade.cost import Architecture, Prices, attempt_cost
from confcascade.errors import ConfigurationError, ModelError
from confcascade.types import Cost, Message, Prefilled, Request, Response

__all__ = ["EXECUTE_PROMPT", "PLAN_PROMPT", "PlannedModel"]

PLAN_PROMPT = (
    "{question}\n\nDo not answer yet. Write a short plan: what is asked, what is given, and which steps lead to the "
    "answer, in order. Do not carry them out."
)
EXECUTE_PROMPT = "{question}\n\nFollow this plan, and answer:\n{plan}"
_SAMPLING = ("top_p", "top_k", "seed")
_AT_A_TIME = 16  # calls to an API

Results: TypeAlias = Sequence[Response | Exception]
_Calls: TypeAlias = Generator[tuple[LanguageModel, Sequence[Generate]], Results, list[Response | Exception]]


@dataclass(frozen=True)
class _Planned:
    """The executor's ask, and the plan in it."""

    ask: Generate
    plan: Response

    @property
    def text(self) -> str:
        """The plan; empty if there is none."""
        return self.plan.answer.strip()


class PlannedModel:
    """A model made of two: `planner` writes a plan, `executor` answers by it.

    The tokens of the answer, their log-probabilities, and what ends or releases a stream early are the executor's. The
    plan is among its thoughts (`Response.thoughts`), unless the answer is a framework's own message, which goes through
    untouched. Tokens are those of both, and `Response.cost` is the cost of both, each by its own architecture and
    prices.

    The planner is asked without tools, output schema or stop strings, and of the request's options it is given only
    those of sampling. A plan that is cut off at `plan_tokens` is used as it stands. Without a plan (it is empty, or
    the planner was cut off in its thoughts) the executor is asked the question alone. An error of either is this
    model's error. Both read text only.

    Nothing is kept from one stage to the next: a planner that plans for two stages plans twice.

    A call that is left, or fails behind its plan, is charged the plan, and what the executor has read and written, as
    an estimate. Replays know the tokens of a draft that a signal ends early, but not whose they are: they charge it the
    FLOPs and dollars of the whole draft, which is at most too much.

    Args:
        planner: Who plans: a `LanguageModel`, or a string such as ``"local:Qwen/Qwen3-4B"``.
        executor: Who answers, likewise; the same string is the same model.
        plan_prompt: What the planner is asked in the place of the last user message, for which ``{question}`` stands.
        execute_prompt: What the executor is asked in its place, with the plan for ``{plan}``.
        plan_tokens: Most tokens of a plan, its thoughts included; None leaves it to the planner.
        name: Shown in records; by default ``"PLANNER+EXECUTOR"``.
        prices: Of the two, by their names, in US dollars per million tokens. Without, the prices of the stage hold for
            the tokens of both.

    Raises:
        ConfigurationError: If a prompt lacks its place for the question or the plan, `plan_tokens` is below 1, a
            `prices` is of neither model, or something other than a model is given.

    >>> from confcascade.asks import Generate
    >>> from confcascade.testing import ScriptedModel
    >>> from confcascade.types import Message, Request
    >>> small = ScriptedModel("small", lambda r: "81" if "9 times 9" in r.messages[-1].content else "I don't know")
    >>> model = PlannedModel(ScriptedModel("large", lambda _: "9 times 9"), small)
    >>> (response,) = model.generate([Generate(model, Request((Message("user", "9 squared?"),)))])
    >>> model.name, response.text, response.thoughts
    ('large+small', '81', '9 times 9')
    """

    def __init__(
        self,
        planner: LanguageModel | str,
        executor: LanguageModel | str,
        *,
        plan_prompt: str = PLAN_PROMPT,
        execute_prompt: str = EXECUTE_PROMPT,
        plan_tokens: int | None = 256,
        name: str | None = None,
        prices: Mapping[str, Prices] | None = None,
    ) -> None:
        self.planner = _model("planner", planner)
        self.executor = (
            self.planner if isinstance(executor, str) and executor == planner else _model("executor", executor)
        )
        for argument, prompt, fields in (
            ("plan_prompt", plan_prompt, ("{question}",)),
            ("execute_prompt", execute_prompt, ("{question}", "{plan}")),
        ):
            if missing := [each for each in fields if each not in prompt]:
                raise ConfigurationError(f"`{argument}` must have a place for {' and '.join(missing)}. Got {prompt!r}.")
        if plan_tokens is not None and (isinstance(plan_tokens, bool) or plan_tokens < 1):
            raise ConfigurationError(
                f"`plan_tokens` must be at least 1, or None for the planner's own limit. Got {plan_tokens}."
            )
        both = (self.planner.name, self.executor.name)
        if unknown := [each for each in prices or () if each not in both]:
            raise ConfigurationError(f"`prices` names '{unknown[0]}', which is neither of the two models {both}.")
        self.plan_prompt = plan_prompt
        self.execute_prompt = execute_prompt
        self.plan_tokens = plan_tokens
        self.prices = dict(prices or {})
        self._name = name or "+".join(both)

    def __repr__(self) -> str:
        return f"PlannedModel({self.planner!r}, {self.executor!r}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        planner, executor = self.planner.capability, self.executor.capability
        local = [each for each in (planner, executor) if each.local]
        return Capability(
            logprobs=executor.logprobs,
            top_logprobs=executor.top_logprobs,
            batch_size=max((each.batch_size for each in local), default=1),
            tools=executor.tools,
            tool_history=planner.tool_history and executor.tool_history,
            structured=executor.structured,
            context_window=min(
                (each.context_window for each in (planner, executor) if each.context_window), default=None
            ),
            remedy=executor.remedy,
            set_per_call=planner.set_per_call and executor.set_per_call,
            in_process=bool(local),
        )

    @property
    def architecture(self) -> Architecture | None:
        """That of both; None if they differ, and then only `Response.cost` tells FLOPs."""
        return self.planner.architecture if self.planner.architecture == self.executor.architecture else None

    @cached_property
    def fingerprint(self) -> str:
        """Of both models and the prompts: a policy that was fitted on others does not hold."""
        models = [(each.name, getattr(each, "fingerprint", None)) for each in (self.planner, self.executor)]
        told = json.dumps([models, self.plan_prompt, self.execute_prompt, self.plan_tokens])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    # ------------------------------------------------------------------ LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        del asks
        raise ModelError(f"Model '{self.name}' does not prefill: what it answers from is not written yet.")

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return self.prefill(asks)

    def generate(self, asks: Sequence[Generate]) -> Results:
        calls = self._calls(asks)
        try:
            model, inner = next(calls)
            while True:
                model, inner = calls.send(_called(model, inner))
        except StopIteration as ended:
            answers: Results = ended.value
            return answers

    async def agenerate(self, asks: Sequence[Generate]) -> Results:
        calls = self._calls(asks)
        try:
            model, inner = next(calls)
            while True:
                model, inner = calls.send(await _acalled(model, inner))
        except StopIteration as ended:
            answers: Results = ended.value
            return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        self._refuse(ask)
        (plan,) = _called(self.planner, [self._plan_ask(ask)])
        if isinstance(plan, Exception):
            raise plan
        planned = self._execution(ask, plan)
        items, begun = self.executor.stream(planned.ask), False
        try:
            for item in items:
                yield from self._told(planned, item, begun)
                begun = True
        finally:
            if close := getattr(items, "close", None):
                close()

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        self._refuse(ask)
        (plan,) = await _acalled(self.planner, [self._plan_ask(ask)])
        if isinstance(plan, Exception):
            raise plan
        planned = self._execution(ask, plan)
        items, begun = self.executor.astream(planned.ask), False
        try:
            async for item in items:
                for told in self._told(planned, item, begun):
                    yield told
                begun = True
        finally:
            if aclose := getattr(items, "aclose", None):
                await aclose()

    # ------------------------------------------------------------------ one after the other

    def _calls(self, asks: Sequence[Generate]) -> _Calls:
        """Yields calls of several asks, is sent their answers: all plans first, then all answers."""
        for ask in asks:
            self._refuse(ask)
        plans = yield self.planner, [self._plan_ask(ask) for ask in asks]
        planned = [
            self._execution(ask, plan) if isinstance(plan, Response) else plan
            for ask, plan in zip(asks, plans, strict=True)
        ]
        begun = [each.ask for each in planned if isinstance(each, _Planned)]
        answers = iter((yield self.executor, begun) if begun else ())
        return [self._answer(each, next(answers)) if isinstance(each, _Planned) else each for each in planned]

    def _refuse(self, ask: Generate) -> None:
        if ask.prefilled is not None or ask.session is not None or ask.until or ask.request.written:
            raise ModelError(
                f"Model '{self.name}' plans before it answers, so it cannot go on from what was read or written "
                f"before. Ask '{self.executor.name}' itself."
            )

    def _plan_ask(self, ask: Generate) -> Generate:
        asked = ask.request
        request = Request(
            _amended(asked.messages, self.plan_prompt, {}),
            max_tokens=self.plan_tokens,
            temperature=asked.temperature,
            options={name: value for name, value in asked.options.items() if name in _SAMPLING},
        )
        return Generate(self.planner, request, logprobs=False)

    def _execution(self, ask: Generate, plan: Response) -> _Planned:
        text = plan.answer.strip()
        messages = _amended(ask.request.messages, self.execute_prompt, {"plan": text}) if text else ask.request.messages
        request = replace(ask.request, messages=messages, native=None)
        execution = replace(ask, model=self.executor, request=request)
        ask.progress.now(execution, plan.usage)
        return _Planned(execution, plan)

    def _told(self, planned: _Planned, item: Chunk | Response, begun: bool) -> Iterator[Chunk | Response]:
        """A piece of the executor's stream, and before the first the plan, among the thoughts."""
        if isinstance(item, Response):
            answer = self._answer(planned, item)
            assert isinstance(answer, Response)
            yield answer
            return
        if not begun and planned.text and item.native is None:
            yield Chunk("", released=item.released, thoughts=planned.text)
        yield item

    def _answer(self, planned: _Planned, response: Response | Exception) -> Response | Exception:
        """The executor's, with the plan among its thoughts, and what both have cost."""
        plan = planned.plan
        if isinstance(response, Exception):
            return response
        usage, cost = plan.usage + response.usage, self._cost(self.planner, plan) + self._cost(self.executor, response)
        if not planned.text or response.native is not None:
            return response.replace(usage=usage, cost=cost)
        answer = parted(planned.ask.request, response)  # before the plan is among the thoughts: it is not in the tokens
        return answer.replace(
            usage=usage,
            cost=cost,
            thoughts="\n\n".join(filter(None, (planned.text, answer.thoughts))),
            thought_tokens=answer.thought_tokens or (),
        )

    def _cost(self, model: LanguageModel, response: Response) -> Cost:
        if response.cost is not None:
            return response.cost
        return attempt_cost(response.usage, 0.0, model.architecture, self.prices.get(model.name))


def _model(argument: str, model: LanguageModel | str) -> LanguageModel:
    if isinstance(model, str):
        from confcascade.models import from_string

        return from_string(model)
    if not isinstance(model, LanguageModel):
        raise ConfigurationError(
            f"`{argument}` must be a LanguageModel, such as TransformersModel or OpenAICompatibleModel, or a string. "
            f"Got {type(model).__name__}."
        )
    return model


def _amended(messages: Sequence[Message], prompt: str, parts: Mapping[str, str]) -> tuple[Message, ...]:
    """Messages with `prompt` in the place of the user's last, or of the last one, if none is the user's."""
    at = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), len(messages) - 1)
    filled = {"question": messages[at].content, **parts}
    content = re.sub(r"\{(question|plan)\}", lambda match: filled.get(match[1], match[0]), prompt)
    return (*messages[:at], replace(messages[at], content=content), *messages[at + 1 :])


def _called(model: LanguageModel, asks: Sequence[Generate]) -> Results:
    """All answers: of a model in this process in batches, of one behind an API in calls of their own, side by side.

    A batch that fails raises, for whoever called to ask for each alone; a single ask is answered with its error.
    """
    if len(asks) == 1:
        try:
            return model.generate(asks)
        except Exception as error:
            return [error]
    if model.capability.local:
        size = model.capability.batch_size
        return [each for i in range(0, len(asks), size) for each in model.generate(asks[i : i + size])]
    with ThreadPoolExecutor(min(_AT_A_TIME, len(asks))) as pool:
        calls = [pool.submit(copy_context().run, _called, model, [ask]) for ask in asks]
        return [call.result()[0] for call in calls]


async def _acalled(model: LanguageModel, asks: Sequence[Generate]) -> Results:
    """`_called`, without blocking the event loop."""
    if len(asks) == 1:
        try:
            return await model.agenerate(asks)
        except Exception as error:
            return [error]
    if model.capability.local:
        size = model.capability.batch_size
        return [each for i in range(0, len(asks), size) for each in await model.agenerate(asks[i : i + size])]
    return [answers[0] for answers in await asyncio.gather(*(_acalled(model, [ask]) for ask in asks))]
