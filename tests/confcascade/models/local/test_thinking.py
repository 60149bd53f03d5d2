"""Thoughts of local models are told from the answer, whatever marks them and wherever they are opened."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from confcascade import Cascade, Stage, TokenProbability, TransformersModel
from confcascade.answers import parted
from confcascade.asks import Chunk, Generate, Prefill
from confcascade.testing import ScriptedModel
from confcascade.thoughts import part
from confcascade.types import Message, Request, ThoughtToken
from hypothesis import given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)

BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷",
    "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|channel>", "<channel|>",
    "<|inner_prefix|>", "<|inner_suffix|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>",
    "<|open|>", "<|close|>", "<|sep|>", "<seed:think>", "</seed:think>", "<|other|>",
    "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call>",
]  # fmt: skip
# by family, as its model writes: what opens thoughts, what closes them, what closes the answer
FAMILIES = {
    "SmolLM3": ("<think>\n", "\n</think>\n\n", ""),
    "Mistral": ("[THINK]", "[/THINK]", ""),
    "Kimi": ("◁think▷", "◁/think▷", ""),
    "Kimi K3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>", "<|close|>response<|sep|>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>", ""),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>", ""),
    "Seed": ("<seed:think>", "</seed:think>", ""),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", "<|end|>"),
    "gpt-oss, with a preamble": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
        "<|end|>",
    ),
    "Granite 3.3, in part without": ("<think>", "</think><response>", "</response>"),
}
families = pytest.mark.parametrize(("opening", "closing", "end"), FAMILIES.values(), ids=FAMILIES)


@cache
def byte_level():
    """A tokenizer of single bytes, as GPT-2 writes them, with the families' marks as special tokens."""
    vocabulary = {token: i for i, token in enumerate(sorted(BYTES))}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    made.add_tokens(["<tool_call>", "</tool_call>"])  # not special, as Qwen has them
    return made


@cache
def sentencepiece_like():
    """Words with a blank before them, and bytes for all else, as Llama 2's tokenizer has."""
    words = ["<unk>", "▁", "▁the", "▁fox", "fox", "▁A", "A", "n", ".", *(f"<0x{i:02X}>" for i in range(256))]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    d = tokenizers.decoders
    core.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return made


class Script:
    """Stands for a model's passes: the next token of a fixed text, each with the probability of its place."""

    batches = stops = separable = shares = False
    blocks, row_arguments = (), None
    multiplied = outside_blocks = token_bytes = 0

    def __init__(self, size):
        self.size = size
        self.said = []

    def logits(self, step):
        logits = torch.zeros(self.size)
        logits[self.said[step]] = 12.0 + step % 5
        return logits

    def __call__(self, ids, mask, positions, cache=None, hooked=False):
        step = 0 if cache is None else cache + 1  # the cache counts
        return self.logits(step).repeat(len(ids), 1), step


class Scripted(TransformersModel):
    """A model whose passes are replaced by a script."""

    def _decoder_of(self, model, config):
        return Script(config.vocab_size)


@cache
def model(make=byte_level, template=None):
    """A tiny Llama that is never called."""
    tokenizer = copy.deepcopy(make())
    tokenizer.chat_template = template
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    plain = transformers.LlamaForCausalLM(config).eval()
    return Scripted(plain, tokenizer, name="thinker", max_new_tokens=1000)


def asked(made, said, prompt="Q", **parameters):
    """An ask of a model that will write `said`: a text, or token ids."""
    ids = made.tokenizer(said)["input_ids"] if isinstance(said, str) else list(said)
    made._decoder.said = [*ids, made.tokenizer.eos_token_id]
    return Generate(made, Request(Message.parse(prompt), **parameters))


def answered(ask):
    """The answer, whole; streamed, it is checked to be the same."""
    (whole,) = ask.model.generate([ask])
    *chunks, streamed = ask.model.stream(ask)
    assert streamed == whole
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert "".join(chunk.thoughts for chunk in chunks) == whole.thoughts
    assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    assert "".join(token.text for token in whole.tokens if not isinstance(token, ThoughtToken)) == whole.text
    return whole


words = st.text(st.sampled_from("abc XY.,\n0'`é漢🦊"), max_size=12).map(lambda text: "W" + text.rstrip())


@families
@settings(max_examples=10, deadline=None)
@given(thoughts=words, answer=words)
def test_special_tokens_that_are_marks_are_read(opening, closing, end, thoughts, answer):
    """Whatever the family, thoughts come apart, and the tokens left are the answer's, each with its own probability."""
    found = answered(asked(model(), f"{opening}{thoughts}{closing}{answer}{end}"))

    before = "a\n" if "preamble" in closing + opening or opening.count("<|message|>") > 1 else ""
    assert (found.text, found.thoughts) == (answer, before + thoughts)
    apart = parted(Request(Message.parse("Q")), found)
    assert "".join(token.text for token in apart.tokens) == answer
    assert not any(isinstance(token, ThoughtToken) for token in apart.tokens)
    assert apart.tokens == found.tokens[len(apart.thought_tokens) :]


@families
@settings(max_examples=10, deadline=None)
@given(thoughts=words, answer=words)
def test_thoughts_that_the_prompt_has_opened_are_thoughts_from_the_first_token(opening, closing, end, thoughts, answer):
    """Whether the model closes them or is cut off within them: what the prompt ends with is known."""
    made = model()

    whole = answered(asked(made, f"{thoughts}{closing}{answer}{end}", prompt=f"Q{opening}"))
    cut = answered(asked(made, thoughts, prompt=f"Q{opening}", max_tokens=max(1, len(thoughts.encode()) - 1)))

    assert (whole.text, whole.thoughts) == (answer, thoughts)
    assert (cut.text, cut.finish_reason) == ("", "length")
    assert (
        cut.thoughts
        == part("<think>" + thoughts.encode()[: max(1, len(thoughts.encode()) - 1)].decode("utf-8", "replace")).thoughts
    )


CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"


@families
@settings(max_examples=5, deadline=None)
@given(words_before=st.sampled_from(["Okay,", " 1 < 2 [so]", "A\n\nB'"]), thoughts=words, answer=words)
def test_words_behind_the_mark_that_opens_are_thoughts_too(opening, closing, end, words_before, thoughts, answer):
    """Whether the template writes mark and words, or a request begins the answer with one of them or both."""
    said = f"{thoughts}{closing}{answer}{end}"
    for template, begun in (
        (CHAT + opening + words_before, ""),
        (CHAT + opening + "{{ '' }}", words_before),
        (CHAT, opening + words_before),
    ):
        made = model(template=template)
        ask = asked(made, said, begun=begun)
        found = answered(ask)
        assert (found.text, found.thoughts) == (answer, thoughts)
        (read,) = made.prefill([Prefill(made, ask.request, labels=("A",))])
        read.close()
        assert read.label_logprobs == {}


@pytest.mark.parametrize(
    ("template", "prompt", "begun"),
    [
        (CHAT, "What is this?\n<think>\nOkay,", ""),  # the user's words
        (CHAT, "Q", "The mark <think> means"),
        (CHAT + "<think>\n\n</think>\n\nSo,", "Q", ""),  # opened and closed
        (CHAT + "<think>\nOkay.", "Q", "</think>\nIt is"),
        (CHAT.replace("<|im_start|>assistant", "<think> comes first.<|im_start|>assistant"), "Q", ""),
        (CHAT, "Q", ""),
    ],
)
def test_a_prompt_that_only_speaks_of_marks_opens_none(template, prompt, begun):
    """So that the answer is the answer."""
    assert answered(asked(model(template=template), "Lyon", prompt=prompt, begun=begun)).text == "Lyon"


@families
def test_an_answer_without_thoughts_is_that_answer(opening, closing, end):
    """Also where the prompt has opened and closed them, and where a mark in it is only spoken of."""
    made = model()
    for prompt in ("Q", f"Q{opening}{closing}", f"What does {opening.strip()} mean?"):
        assert answered(asked(made, " Lyon\n", prompt=prompt)).text == " Lyon\n"


@pytest.mark.parametrize(
    ("said", "text", "thoughts"),
    [
        ("<|channel|>final<|message|>Lyon", "Lyon", ""),
        ("<|START_RESPONSE|>Lyon<|END_RESPONSE|>", "Lyon", ""),
        ("<think></think>Lyon", "Lyon", ""),
        ("<think>a</think><think>b</think>Lyon", "Lyon", "a\nb"),
        ("<think>only", "", "only"),
        ("<think>only</think>", "", "only"),
        ("Ly<|other|>on", "Lyon", ""),
        ("<|other|>Lyon", "Lyon", ""),
        ("<think>a<|other|>b</think>Ly<|other|>on", "Lyon", "ab"),
        ("Lyon</think>", "Lyon", ""),  # a mark that closes nothing
        ("", "", ""),
        ("<", "<", ""),
        ("<|channel|>ana", "ana", ""),
    ],
)
def test_turns_that_a_text_may_take(said, text, thoughts):
    """No thoughts, empty ones, several, cut ones; special tokens that are no marks have no text."""
    found = answered(asked(model(), said))

    assert (found.text, found.thoughts) == (text, thoughts)


@pytest.mark.parametrize(
    "said",
    [
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.get<|channel|>commentary json"
        "<|message|>{}",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.get "
        "<|constrain|>json<|message|>{}",
        "<|start|>assistant to=functions.get<|channel|>commentary json<|message|>{}",
        "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}",
    ],
)
def test_a_call_in_gpt_oss_form_is_no_answer(said):
    """Nobody makes the call, so that the question escalates, with that reason."""
    ask = asked(model(), said)
    found = answered(ask)
    assert found.problem == "a tool call was left in its text"
    assert found.thoughts == ("hm" if "hm" in said else "")

    cascade = Cascade([Stage(ask.model, [TokenProbability()], {"p_t": "always"}), Stage(ScriptedModel("large"))])
    record = cascade.run("Q").record
    assert (record.answered_by, record.attempts[0].reason) == ("large", "a tool call was left in its text")


JSON = '{"name": "get", "arguments": {}}'


@pytest.mark.parametrize(
    "said",
    [
        f"[TOOL_CALLS][{JSON}]",  # Mistral
        "[TOOL_CALLS]get{}",
        "[THINK]hm[/THINK]Let me see. [TOOL_CALLS]get{}",
        "<|python_tag|>get.call()",  # Llama 3
        "<|tool_call>call:get{}",  # Gemma 4
        f"<tool_call>\n{JSON}\n</tool_call>",  # Qwen
        f"<think>hm</think>\n\n<tool_call>\n{JSON}\n</tool_call>",
        f"Let me see.\n<tool_call>\n{JSON}\n</tool_call>",
        f"As of\n```\n<tool_call>\n```\nI say\n<tool_call>\n{JSON}\n</tool_call>",
    ],
)
def test_a_call_that_begins_with_its_own_token_is_no_answer(said):
    """Special, and so without text, or not: nobody makes the call, though the request has no tools."""
    ask = asked(model(), said)
    assert answered(ask).problem == "a tool call was left in its text"

    cascade = Cascade([Stage(ask.model, [TokenProbability()], {"p_t": "always"}), Stage(ScriptedModel("large"))])
    record = cascade.run("Q").record
    assert (record.answered_by, record.attempts[0].reason) == ("large", "a tool call was left in its text")


@pytest.mark.parametrize(
    "said",
    [
        "Qwen writes <tool_call> and JSON.",
        f"So:\n```\n<tool_call>\n{JSON}\n</tool_call>\n```",
        "<think>\n<tool_call>\n[TOOL_CALLS]</think>Lyon",  # rehearsed
        JSON,
    ],
)
def test_an_answer_that_speaks_of_a_call_is_kept(said):
    """Within a line, in a fence, or in thoughts only."""
    assert answered(asked(model(), said)).problem is None


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_whole_text(make, data):
    """Of any tokens, with any stop string and limit: also where a text ends inside a character."""
    made = model(make)
    size = len(made.tokenizer)
    fox = [i for i in (made.tokenizer.convert_tokens_to_ids(t) for t in ("<0xF0>", "<0x9F>", "ð", "Ł", "¦", "Ĭ")) if i]
    token = st.one_of(st.integers(0, size - 1), st.sampled_from(fox), st.integers(size - len(SPECIAL), size - 1))
    said = data.draw(st.lists(token, max_size=25))
    stop = data.draw(st.sampled_from([(), ("\ufffd",), ("A",), ("fox", " ."), ("</think>",)]))
    limit = data.draw(st.integers(1, 30))
    prompt = data.draw(st.sampled_from(["Q", "Q<think>\n"])) if make is byte_level else "A"
    begun = data.draw(st.sampled_from(["", "<think>\nOkay,"])) if make is byte_level else ""

    found = answered(asked(made, said, prompt=prompt, stop=stop, max_tokens=limit, begun=begun))

    assert not any(each in found.text for each in stop)
    parted(Request(Message.parse("Q"), stop=stop), found)
    ends = [i for i, each in enumerate(said) if each == made.tokenizer.eos_token_id]
    kept = said[: min([limit, *ends])]
    opened = begun or prompt != "Q"
    if not (stop or found.thoughts or set(kept) & set(made._speaker.marks) or (opened and make is byte_level)):
        whole = made.tokenizer.decode(kept, skip_special_tokens=True)
        # of bytes that are no text, this tokenizer takes back what it read of the first when it sees the second
        assert found.text == whole or (make is sentencepiece_like and "\ufffd" in whole)


def test_text_that_ends_inside_a_character():
    """A fox of four byte tokens, ended after one, two or three of them: by the model, and by the limit."""
    made = model()
    fox = made.tokenizer("Hi🦊")["input_ids"]
    for n in (1, 2, 3):
        assert answered(asked(made, fox[: 2 + n])).text == "Hi\ufffd"
        assert answered(asked(made, fox, max_tokens=2 + n)).text == "Hi\ufffd"
        ask = asked(made, fox[: 2 + n])
        *chunks, outcome = Cascade([Stage(made)]).stream(ask.request)
        assert "".join(chunk.text for chunk in chunks) == outcome.text == "Hi\ufffd"


def test_stop_strings_end_the_answer_and_not_the_thoughts():
    """An agent's "Observation:" may be rehearsed."""
    found = answered(asked(model(), "<think>First.\nOr not?</think>Lyon.\nWhat else", stop=("\n",)))

    assert (found.text, found.thoughts, found.finish_reason) == ("Lyon.", "First.\nOr not?", "stop")


def test_the_score_is_that_of_the_answer():
    """Of two tokens, and not of the thoughts before them."""
    made = model()
    ask = asked(made, "<think>ab</think>Ly")
    large = ScriptedModel("large")
    signals = [TokenProbability(), TokenProbability(part="thoughts", name="thoughts")]
    outcome = Cascade([Stage(made, signals, {"p_t": "always", "thoughts": "always"}), Stage(large)]).run(ask.request)
    logprobs = [float(made._decoder.logits(step).log_softmax(-1).max()) for step in range(6)]
    attempt = outcome.record.attempts[0]

    assert outcome.text == "Ly"
    assert attempt.scores["p_t"].value == pytest.approx(torch.tensor(logprobs[4:]).mean().exp())
    assert attempt.scores["thoughts"].value == pytest.approx(torch.tensor(logprobs[1:3]).mean().exp())
    assert attempt.usage.output_tokens == 7


@pytest.mark.parametrize("prompt", ["Q", "Q<think>"])
def test_a_draft_cut_off_in_its_thoughts_escalates_with_that_reason(prompt):
    """However sure it was."""
    made = model()
    ask = asked(made, ("<think>" if prompt == "Q" else "") + "so it goes", prompt=prompt, max_tokens=5)
    cascade = Cascade([Stage(made, [TokenProbability()], {"p_t": "always"}), Stage(ScriptedModel("large"))])

    assert cascade.run(ask.request).record.attempts[0].reason == "it was cut off in its thoughts"


@pytest.mark.parametrize(("prompt", "said"), [("Q", "<think>B? No.</think>A"), ("Q<think>", "B? No.</think>A")])
def test_labels_are_read_behind_the_thoughts(prompt, said):
    """The pass over the prompt says nothing of them, and so the draft is neither ended nor judged by it."""
    made = model()
    ask = asked(made, said, prompt=prompt)
    (read,) = made.prefill([Prefill(made, ask.request, labels=("A", "B"))])
    read.close()
    stages = [Stage(made, [TokenProbability("AB")], {"p_t": 0.9}), Stage(ScriptedModel("large"))]
    attempt = Cascade(stages).run(ask.request).record.attempts[0]

    assert read.label_logprobs == {}
    assert attempt.decision == "accept"
    assert attempt.scores["p_t"].details["label"] == "A"


@pytest.mark.parametrize("prompt", ["Q", "Q<think>"])
def test_an_early_end_waits_for_the_answer(prompt):
    """A watch sees the answer's tokens only, in a stream and whole."""
    made = model()
    seen = []

    def watch(tokens):
        seen.append("".join(token.text for token in tokens))
        return "abort" if len(tokens) == 2 else "hold"

    said = "ab</think>\n\nLyon"
    ask = asked(made, said if prompt != "Q" else "<think>" + said, prompt=prompt)
    (found,) = made.generate([Generate(made, ask.request, watch=watch)])

    assert seen == ["L", "Ly"]
    assert (found.text, found.thoughts, found.finish_reason) == ("Ly", "ab", "aborted")
    assert [token.text for token in parted(ask.request, found).tokens] == ["L", "y"]


def test_thoughts_stream_as_they_come_where_nothing_replaces_the_answer():
    """Of a last stage, apart from the text."""
    ask = asked(model(), "<think>a b</think>Ly")
    items = list(Cascade([Stage(ask.model)]).stream(ask.request))
    *chunks, _ = items

    assert [chunk.thoughts for chunk in chunks if chunk.thoughts] == ["a", " b"]
    assert [chunk.text for chunk in chunks if chunk.text] == ["L", "y"]
    assert re.fullmatch("Ly", "".join(chunk.text for chunk in chunks))
