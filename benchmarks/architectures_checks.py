"""What one tiny model does through `TransformersModel`, held against plain `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from architectures_tiny import configuration, random_model
from confcascade import ConfigurationError, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.demo.world import World
from confcascade.models.bundled import WEIGHTS
from confcascade.types import Message, Request, Response

LENGTHS = (2, 5, 23, 97)  # tokens of the prompts; the window of sliding attention is 16
NEW = 10  # tokens of an answer
ENDS = (3, 10, 5, 8)  # where a batch's answers end
SAME = 1e-4  # largest difference that rounding may make, in log-probabilities and, relative, in hidden states


@dataclass
class Found:
    """What came out for a type.

    Attributes:
        kind: The type, such as "llama".
        verdict: "equal", "equal, one by one", "differs", "refused", "not built" or "crashed".
        why: In one line; empty if it is equal.
        differences: By check, the largest difference from plain `transformers`.
        hidden: "equal", "none", or what differs.
        stops: Whether a pass over a prompt ends where a gate says so: of "each row", of "a pass" all of whose rows are
            ended, or "no".
        products: `2 * architecture.parameters` and what `FlopCounterMode` counts in the pass over one token.
        note: What is `transformers`' own.
    """

    kind: str
    verdict: str = "equal"
    why: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    hidden: str = ""
    stops: str = ""
    products: tuple[float, float] | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(kind: str, folder: Path, **options: Any) -> Found:
    """Make a model of a type, save it, load it as a user would, and compare.

    Args:
        kind: A key of `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`.
        folder: Where the model is saved.
        **options: Fields of its configuration.
    """
    found = Found(kind)
    tokenizer = bundled_tokenizer()
    try:
        random_model(configuration(kind, len(tokenizer), **options)).save_pretrained(folder)
    except Exception as error:
        return Found(kind, "not built", _line(error))
    tokenizer.save_pretrained(folder)
    try:
        model = TransformersModel.from_pretrained(folder, max_new_tokens=NEW)
    except ConfigurationError as error:
        return Found(kind, "refused", _line(error, folder))
    try:
        Comparison(model, found).run()
    except Exception as error:
        found.verdict, found.why = "differs", f"{type(error).__name__}: {_line(error)}"
    return found


def _line(error: Exception, folder: Path | None = None) -> str:
    text = " ".join(str(error).split())
    text = text if folder is None else text.replace(str(folder), "FOLDER")
    return text.split("In a trial pass: ")[-1].split(". TransformersModel needs")[0][:300]


class Comparison:
    """One model against plain `transformers`.

    Args:
        model: Loaded.
        found: Filled by `run`.
    """

    def __init__(self, model: TransformersModel, found: Found) -> None:
        self.model = model
        self.plain: Any = model.model
        self.found = found
        self.requests = [Request(Message.parse(text), max_tokens=NEW) for text in prompts()]

    def run(self) -> None:
        alone = [self.model.generate([Generate(self.model, each)])[0] for each in self.requests]
        self._against_plain(alone)
        asked = [Request(request.messages, max_tokens=end) for request, end in zip(self.requests, ENDS, strict=True)]
        forced = self.plain.generation_config.forced_eos_token_id is not None  # instead of the last token
        short = [ended(answer, end - forced) for answer, end in zip(alone, ENDS, strict=True)]
        self._note("batch", self.model.generate([Generate(self.model, each) for each in self.requests]), alone)
        self._note("ends", self.model.generate([Generate(self.model, each) for each in asked]), short)
        self._parts(asked, short)
        self._stopped(asked, short)
        self._hidden_states()
        self.found.products = products(self.model)
        if bad := {name: value for name, value in self.found.differences.items() if not value <= SAME}:
            self.found.verdict = "differs"
            self.found.why = ", ".join(f"{name} by {value:.2g}" for name, value in bad.items())
        elif self.model.capability.batch_size == 1:
            self.found.verdict = "equal, one by one"

    def _note(self, name: str, answers: Sequence[Any], expected: Sequence[Any]) -> None:
        for one, other in zip(answers, expected, strict=True):
            self._most(name, difference(one, other))

    def _most(self, name: str, value: float) -> None:
        known = self.found.differences.get(name, 0.0)
        self.found.differences[name] = value if value != value else max(known, value)

    def _against_plain(self, alone: Sequence[Any]) -> None:
        """Greedy ids and their log-probabilities: as `generate` has them, and as one pass over all tokens has."""
        import torch

        own = 0.0  # how far transformers is from itself
        for request, answer in zip(self.requests, alone, strict=True):
            if isinstance(answer, Exception):
                raise answer
            prompt = self.model.tokenizer(self.model.render(request), return_tensors="pt")["input_ids"]
            out = self.plain.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=0,
            )
            ids = out.sequences[0, prompt.shape[1] :]
            stepwise = torch.stack(out.logits, 1)[0].float().log_softmax(-1)
            whole = self._pass(out.sequences[:, :-1]).logits[0, -len(ids) :].float().log_softmax(-1)
            shown = [i for i, token in enumerate(ids.tolist()) if token not in self.model._speaker.settings.ends]
            said = [float(stepwise[i, ids[i]]) for i in shown]
            once = [float(whole[i, ids[i]]) for i in shown]
            text = self.model.tokenizer.decode(ids[shown], skip_special_tokens=True)
            own = max(own, float((stepwise - whole).abs().max()))
            self._most("alone", difference(answer, text, said))
            self._most("one pass", difference(answer, text, once))
        if own > SAME:  # then ours cannot be near both
            self.found.note = f"plain `generate` differs from one pass by {own:.2g}"
            del self.found.differences["one pass"]

    def _pass(self, ids: Any, **options: Any) -> Any:
        """All tokens at once, at the positions at which `generate` puts them."""
        import torch

        positions = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            try:
                return self.plain(input_ids=ids, position_ids=positions, use_cache=False, **options)
            except TypeError:  # it takes no positions
                return self.plain(input_ids=ids, use_cache=False, **options)

    def _parts(self, asked: Sequence[Request], expected: Sequence[Any]) -> None:
        """Read together, and continued in parts and in another order."""
        layers = (1,) if self.model.capability.layers else ()
        read: list[Any] = list(self.model.prefill([Prefill(self.model, each, layers=layers) for each in asked]))
        for each in read:
            if isinstance(each, Exception):
                raise each
        for part in ([2], [3, 0], [1]):
            answers = self.model.generate([Generate(self.model, asked[i], prefilled=read[i]) for i in part])
            self._note("parts", answers, [expected[i] for i in part])

    def _stopped(self, asked: Sequence[Request], expected: Sequence[Any]) -> None:
        """Some rows are ended behind one block or another; the others' answers do not change."""
        capability = self.model.capability
        if not capability.stops:
            self.found.stops = "no"
            return
        taken_out = self.model._decoder.row_arguments is not None
        self.found.stops = "each row" if taken_out else "a pass"
        layers = tuple(range(1, capability.layers + 1))
        for ends in ({0: 1, 2: 3}, {1: 2, 3: 2}, {0: 2}, {2: 1, 3: 4, 0: 3}, {0: 1, 1: 2, 2: 3, 3: 3}):
            gates = [None if i not in ends else EndsAt(ends[i]) for i in range(len(asked))]
            made = [Prefill(self.model, r, layers=layers, gate=g) for r, g in zip(asked, gates, strict=True)]
            read: list[Any] = list(self.model.prefill(made))
            for i, each in enumerate(read):
                if isinstance(each, Exception):
                    raise each
                alone = taken_out or capability.batch_size == 1
                last = max(ends.values()) if len(ends) == len(asked) else None
                at = ends.get(i) if alone else last
                if each.depth != (None if at is None else at / len(layers)):
                    self._most("stopped", math.inf)
            kept = [i for i, each in enumerate(read) if each.depth is None]
            answers = self.model.generate([Generate(self.model, asked[i], prefilled=read[i]) for i in kept])
            self._note("stopped", answers, [expected[i] for i in kept])

    def _hidden_states(self) -> None:
        """Of every block, alone and in a batch; of the last, before the final norm."""
        import numpy as np
        import torch

        depth = self.model.capability.layers
        if not depth:
            self.found.hidden = "none"
            return
        norms = [module for name, module in self.plain.named_modules() if "norm" in name.lower() or "ln_f" in name]
        problems = set()
        together = self._states(self.requests)
        for beside, request in zip(together, self.requests, strict=True):
            ids = self.model.tokenizer(self.model.render(request), return_tensors="pt")["input_ids"]
            states = self._pass(ids, output_hidden_states=True).hidden_states
            for layer, mine in self._states([request])[0].items():
                if not relative(beside[layer], mine) <= SAME:
                    problems.add(f"block {layer} in a batch by {relative(beside[layer], mine):.2g}")
                if states is None or len(states) != depth + 1:
                    problems.add("no `output_hidden_states` to compare")
                    continue
                theirs = states[layer][0, -1].float().numpy()
                apart = relative(mine, theirs)
                if layer == depth and not apart <= SAME:  # transformers gives it after the norm
                    with torch.no_grad():
                        apart = min((relative(np.asarray(n), theirs) for n in _normed(norms, mine)), default=apart)
                if not apart <= SAME:
                    problems.add(f"block {layer} by {apart:.2g}")
        self.found.hidden = ", ".join(sorted(problems)) or "equal"

    def _states(self, requests: Sequence[Request]) -> list[Any]:
        """Of each prompt, by layer; read together."""
        layers = tuple(range(1, self.model.capability.layers + 1))
        states = []
        for each in self.model.prefill([Prefill(self.model, request, layers=layers) for request in requests]):
            if isinstance(each, Exception):
                raise each
            states.append(each.hidden_states)
            each.close()
        return states


class EndsAt:
    """A gate that ends a pass behind one block."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def __call__(self, hidden_states: Mapping[int, Any]) -> bool:
        return max(hidden_states) < self._layer


def _normed(norms: Sequence[Any], state: Any) -> Any:
    import torch

    for norm in norms:
        try:
            out = norm(torch.tensor(state)[None, None])
        except Exception:  # another width, or more arguments
            continue
        if isinstance(out, torch.Tensor) and out.numel() == len(state):
            yield out.flatten().numpy()


def ended(answer: Any, tokens: int) -> Any:
    """As it would be if it had ended at its `tokens`-th; where a character is cut, as `generate` shows it."""
    if isinstance(answer, Exception):
        return answer
    kept = answer.tokens[:tokens]
    return Response("".join(token.text for token in kept), tokens=kept)


def difference(one: Any, text: Any, logprobs: Sequence[float] | None = None) -> float:
    """The largest of log-probabilities; infinite if the texts differ."""
    if isinstance(text, Response):
        text, logprobs = text.text, [token.logprob for token in text.tokens or ()]
    for each in (one, text):
        if isinstance(each, Exception):
            raise each
    mine = [token.logprob for token in one.tokens or ()]
    if one.text.rstrip("\ufffd") != text.rstrip("\ufffd") or len(mine) != len(logprobs or ()):
        return math.inf
    return max((abs(a - b) for a, b in zip(mine, logprobs or (), strict=True)), default=0.0)


def relative(one: Any, other: Any) -> float:
    return float(abs(one - other).max() / max(abs(other).max(), 1e-9))


@lru_cache
def bundled_tokenizer() -> Any:
    """Of the bundled models, without their chat template: prompts are completed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "small")
    tokenizer.chat_template = None
    return tokenizer


@lru_cache
def prompts() -> list[str]:
    """Texts of about as many tokens as `LENGTHS`, which begin differently."""
    tokenizer = bundled_tokenizer()
    words = " ".join(question.prompt for question in World().questions("test", per_task=20)).split()
    texts = []
    for begin, length in zip((3, 20, 40, 60), LENGTHS, strict=True):
        count = 1
        while len(tokenizer(" ".join(words[begin : begin + count]))["input_ids"]) < length:
            count += 1
        texts.append(" ".join(words[begin : begin + count]))
    return texts


def products(model: TransformersModel) -> tuple[float, float]:
    """Operations of the pass over a second token: by `architecture`, and as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    plain = model.model.requires_grad_(False)
    if hasattr(plain, "set_experts_implementation"):
        plain.set_experts_implementation("eager")  # the counter does not know grouped products
    ids = torch.tensor([[5, 7]])
    _, cache = model._decoder(ids[:, :1], torch.ones(1, 1, dtype=torch.long), torch.tensor([[0]]))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        plain(
            input_ids=ids[:, 1:],
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor([[1]]),
            use_cache=True,
            **{model._decoder._word: cache},
        )
    return 2.0 * model.architecture.parameters, float(counter.get_total_flops())
