"""Conversations as chat templates take them, over templates that behave like the families that they are named for."""

import copy
import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import (
    Cascade,
    CascadeExhaustedError,
    ConfigurationError,
    ModelError,
    Stage,
    TokenProbability,
    TransformersModel,
)
from confcascade.models.bundled import WEIGHTS, bundled_model
from confcascade.models.local.template import ChatTemplate
from confcascade.testing import ScriptedModel
from confcascade.types import Message, Request, ToolCall
from hypothesis import given
from hypothesis import strategies as st

ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
CALLS = "{% for call in message.tool_calls %}"
FAMILIES = {
    # any role; tools unknown
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    # no system turn, strict alternation
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}" + ALTERNATE + "<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    # leaves a system turn out without a word
    "mistral-v0.1": "{% for message in messages if message.role != 'system' %}" + ALTERNATE +
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
    # a system turn at the beginning only
    "llama-2": "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}" + ALTERNATE +
    "{% if message.role == 'user' %}[INST] {% if loop.first and system %}<<SYS>>{{ system }}<</SYS>>{% endif %}"
    "{{ message.content }} [/INST]{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}",
    # arguments as an object
    "qwen": "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}" + CALLS +
    "<tool_call>{\"name\": {{ call.function.name | tojson }}, \"arguments\": {{ call.function.arguments | tojson }}}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # arguments as JSON
    "deepseek": "{% for message in messages %}<{{ message.role }}>{{ message.content }}" + CALLS +
    "{{ '<call>' + call.function.name + '\n' + call.function.arguments + '</call>' }}{% endfor %}{% endfor %}"
    "<assistant>",
    # writes whatever arguments it is given, an object as Python would
    "functionary": "{% for message in messages %}<{{ message.role }}>{{ message.content }}" + CALLS +
    "{{ call.function.name }}={{ call.function.arguments }}{% endfor %}{% endfor %}<assistant>",
    # one call a turn, and no text beside it
    "llama-3.1": "{% for message in messages %}<|{{ message.role }}|>{% if message.tool_calls %}"
    "{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{\"name\": \"{{ message.tool_calls[0].function.name }}\", \"parameters\": "
    "{{ message.tool_calls[0].function.arguments | tojson }}}{% else %}{{ message.content }}{% endif %}<|eot_id|>"
    "{% endfor %}<|assistant|>",
    # ids of nine letters and digits
    "mistral-nemo": "{% for message in messages %}{% if message.tool_calls %}" + CALLS +
    "{% if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "[TOOL_CALLS]{{ call.function.name }}{{ call.function.arguments | tojson }}{{ call.id }}{% endfor %}"
    "{% elif message.role == 'tool' %}"
    "{% if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "[TOOL_RESULTS]{{ message.content }}{{ message.tool_call_id }}{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}",
    # content as a list of parts
    "llava": "{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
}  # fmt: skip
SYSTEM, ONE, TWO = Message("system", "Be brief."), Message("user", "One?"), Message("user", "Two?")
SAID = Message("assistant", "First.")
CALL = ToolCall("get_weather", {"city": "Paris", "days": 3}, "call_b7-1")
OTHER = ToolCall("get_time", {"zone": "CET"}, "call_b7-2")
RESULT, NOON = Message("tool", "22 degrees", (), "call_b7-1"), Message("tool", "noon", (), "call_b7-2")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")


@pytest.fixture(scope="module")
def template(tokenizer):
    def make(family, **options):
        own = copy.deepcopy(tokenizer)
        own.chat_template = family if isinstance(family, dict) else FAMILIES.get(family, family)
        return ChatTemplate(own, name="tiny", options=options)

    return make


def said(messages):
    return [message.content for message in messages if message.content]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "messages",
    [(ONE,), (SYSTEM, ONE), (ONE, SAID, TWO), (ONE, TWO), (ONE, SAID, SAID, TWO), (ONE, SAID, SYSTEM, TWO)],
    ids=["question", "system", "turns", "two users", "two assistants", "late system"],
)
def test_nothing_that_is_said_is_left_out(template, family, messages):
    """Whatever a template thinks of system turns, alternation and content, all texts are in the prompt."""
    prompt = template(family).render(messages)
    assert all(text in prompt for text in said(messages))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_that_a_template_takes_is_left_as_it_is(template, tokenizer, family):
    """The form with the fewest changes is taken: plain `apply_chat_template`, where that renders all."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = FAMILIES[family]
    plain = [{"role": m.role, "content": m.content} for m in (ONE, SAID, TWO)]
    if family == "llava":
        plain = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in plain]
    expected = own.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert template(family).render((ONE, SAID, TWO)) == expected


def test_system_text_goes_before_the_users(template):
    """As Gemma's page advises; turns of one role become one, with a blank line between."""
    assert "user\nBe brief.\n\nOne?<end_of_turn>" in template("gemma").render((SYSTEM, ONE))
    assert "user\nOne?\n\nTwo?<end_of_turn>" in template("gemma").render((ONE, TWO))
    late = template("gemma").render((ONE, SAID, SYSTEM, TWO))
    assert "model\nFirst.<end_of_turn>\n<start_of_turn>user\nBe brief.\n\nTwo?" in late
    assert template("mistral-v0.1").render((SYSTEM, ONE)) == "[INST] Be brief.\n\nOne? [/INST]"
    first = template("llama-2").render((SYSTEM, ONE, SAID, SYSTEM, TWO))
    assert first.count("<<SYS>>Be brief.<</SYS>>") == 1
    assert "[INST] Be brief.\n\nTwo? [/INST]" in first


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen", '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}</tool_call>'),
        ("deepseek", '<call>get_weather\n{"city": "Paris", "days": 3}</call>'),
        ("functionary", 'get_weather={"city": "Paris", "days": 3}'),
        ("llama-3.1", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'),
        ("mistral-nemo", '[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}'),
    ],
)
def test_calls_are_written_in_the_templates_own_form(template, family, expected):
    """Arguments as an object or as JSON, whichever comes out as JSON; the result is there, too."""
    rendered = template(family)
    prompt = rendered.render((ONE, Message("assistant", "", (CALL,)), RESULT))
    assert rendered.tool_history
    assert expected in prompt
    assert "22 degrees" in prompt


def test_ids_of_calls_are_as_long_as_the_template_wants(template):
    """A call and its result keep one id, of nine letters and digits."""
    prompt = template("mistral-nemo").render((ONE, Message("assistant", "", (CALL, OTHER)), NOON, RESULT))
    first, second = prompt.partition('"days": 3}')[2][:9], prompt.partition('"CET"}')[2][:9]
    assert first.isalnum()
    assert first != second
    assert f"noon{second}" in prompt
    assert f"22 degrees{first}" in prompt


def test_turns_are_split_where_a_template_takes_one_call_only(template):
    """Text, each call and its result become turns of their own, in their order."""
    prompt = template("llama-3.1").render((ONE, Message("assistant", "Wait.", (CALL, OTHER)), NOON, RESULT, TWO))
    places = [prompt.index(part) for part in ("One?", "Wait.", "get_weather", "22 degrees", "get_time", "noon", "Two?")]
    assert places == sorted(places)


@pytest.mark.parametrize("family", ["zephyr", "gemma", "mistral-v0.1", "llama-2", "llava"])
def test_a_template_without_calls_says_so(template, family):
    """It would leave them out; such a conversation is refused by name, without a word of it."""
    rendered = template(family)
    assert not rendered.tool_history
    with pytest.raises(
        ModelError, match="The chat template of model 'tiny' cannot render this conversation: "
    ) as caught:
        rendered.render((ONE, Message("assistant", "", (CALL,)), RESULT))
    assert not any(part in str(caught.value) for part in ("One?", "Paris", "22 degrees"))


def test_several_templates_of_one_tokenizer(template):
    """A conversation with calls takes the one for tools; others the default."""
    both = template(
        {"default": FAMILIES["zephyr"], "tool_use": "{% for tool in tools %}{% endfor %}" + FAMILIES["qwen"]}
    )
    assert "<|user|>\nOne?" in both.render((ONE,))
    assert "<tool_call>" in both.render((ONE, Message("assistant", "", (CALL,)), RESULT))


def test_roles_that_no_form_meets_are_refused_by_name(template):
    """A conversation that begins with the assistant; the template's own reason is told."""
    with pytest.raises(ModelError, match="cannot render this conversation: Conversation roles must alternate"):
        template("gemma").render((SAID, ONE))


def test_a_template_that_fails_on_what_is_said_quotes_none_of_it(template):
    """Its own words may hold the prompt."""
    picky = template(
        "{{ raise_exception(messages[0].content) if 'secret' in messages[0].content else messages[0].content }}"
    )
    with pytest.raises(ModelError, match="cannot render this conversation: TemplateError") as caught:
        picky.render((Message("user", "a secret"),))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "does not render a question: it leaves out the user turn's text"),
        ("{{ raise_exception('functions first') }}", "does not render a question: functions first"),
        ("{% for %}", "cannot be read: "),
    ],
)
def test_a_template_that_renders_no_question_is_refused(template, source, message):
    """When the model is made."""
    with pytest.raises(ConfigurationError, match=f"The chat template of model 'tiny' {message}"):
        template(source)


def test_unknown_options_of_a_template_are_refused(template, tokenizer):
    """With a suggestion; those that it reads pass and are used."""
    source = (
        FAMILIES["qwen"] + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    )
    assert template(source, enable_thinking=False).render((ONE,)).endswith("<think></think>")
    with pytest.raises(ConfigurationError, match=r"'enable_thinkin', .* did you mean 'enable_thinking'"):
        template(source, enable_thinkin=False)
    with pytest.raises(ConfigurationError, match="'messages', which the chat template of model 'tiny' does not read"):
        template(source, messages=[])
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    with pytest.raises(ConfigurationError, match="model 'tiny' has no chat template"):
        TransformersModel(bundled_model("small").model, own, name="tiny", template_options={"enable_thinking": False})


def test_a_date_in_the_prompt_is_told(template, tokenizer, caplog):
    """With the argument that fixes it, if the template has one."""
    llama = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today: {{ date_string }}\n" + FAMILIES["zephyr"]
    )
    own = copy.deepcopy(tokenizer)
    own.chat_template = llama
    model = bundled_model("small").model
    TransformersModel(model, own, name="tiny")
    assert "writes today's date into every prompt" in caplog.text
    assert 'template_options={"date_string": "26 Jul 2024"} fixes it' in caplog.text
    caplog.clear()
    fixed = TransformersModel(model, own, name="tiny", template_options={"date_string": "26 Jul 2024"})
    TransformersModel(model, tokenizer, name="tiny")
    assert not caplog.records
    assert fixed.render(Request((ONE,))).startswith("Today: 26 Jul 2024\n")


@pytest.mark.parametrize(
    ("source", "ends"),
    [("zephyr", True), ("llama-2", True), ("gemma", False), ("qwen", False), ("deepseek", False)],
)
def test_the_end_of_text_ends_an_answer_if_it_ends_turns(template, tokenizer, source, ends):
    """Beside the ends of a base model's generation_config, beneath which a chat template was put."""
    assert template(source).ends_turns_with_eos is ends
    own = copy.deepcopy(tokenizer)
    own.chat_template = FAMILIES[source]
    model = bundled_model("small").model
    made = TransformersModel(model, own, name="tiny", generation_options={"eos_token_id": 9})
    assert made._speaker.settings.ends == ({9, own.eos_token_id} if ends else {9})


ROLES = st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=6)


@given(ROLES, st.sampled_from(sorted(FAMILIES)))
def test_every_conversation_is_rendered_whole_or_refused(template, roles, family):
    """Whatever the order of the turns: all that is said is in the prompt, or a `ModelError` says why not."""
    messages = [Message(role, f"word{i}end") for i, role in enumerate(roles)]
    try:
        prompt = template(family).render(messages)
    except ModelError:
        assert roles[0] == "assistant" or "user" not in roles or family not in ("zephyr", "qwen", "deepseek", "llava")
        return
    assert all(message.content in prompt for message in messages)


def test_forms_are_remembered_for_a_bounded_number_of_shapes(template):
    """A process that serves ever longer conversations does not grow."""
    qwen = template("qwen")
    for length in range(1, 600):
        qwen.render([ONE] * length)
    assert len(qwen._forms) <= 256


def test_labels_are_remembered_for_a_bounded_number_of_prompts(tokenizer):
    """In raw completion every prompt has an end of its own."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    prompts = TransformersModel(bundled_model("small").model, own, name="tiny")._prompts
    for i in range(600):
        prompts.label_ids(f"Question {i}. Answer:", "A")
    assert len(prompts._labels) <= 256


def test_a_stage_that_cannot_read_calls_is_passed_over(tokenizer, caplog):
    """Before it is asked, with the reason, and said once in the log; as the only stage it is an error."""
    model = TransformersModel(bundled_model("small").model, tokenizer, name="tiny")
    assert not model.capability.tool_history
    history = Request((ONE, Message("assistant", "", (CALL,)), RESULT))
    large = ScriptedModel("large", lambda _: "22.")
    cascade = Cascade([Stage(model, [TokenProbability()], {"p_t": "always"}), Stage(large)])
    for _ in range(2):
        outcome = cascade.run(history)
        assert outcome.text == "22."
        assert outcome.record.attempts[0].reason == "the model cannot read tool calls"
    said_once = [each for each in caplog.records if "was not asked: the model cannot read tool calls" in each.message]
    assert len(said_once) == 1
    with pytest.raises(CascadeExhaustedError, match="the model cannot read tool calls"):
        Cascade([Stage(model)]).run(history)


def test_calls_reach_a_model_whose_template_reads_them(tokenizer):
    """And are part of the prompt that it is asked with."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = FAMILIES["qwen"]
    model = TransformersModel(bundled_model("small").model, own, name="tiny", max_new_tokens=4)
    assert model.capability.tool_history
    history = Request((ONE, Message("assistant", "", (CALL,)), RESULT))
    assert json.dumps(CALL.arguments) in model.render(history)
    assert Cascade([Stage(model)]).run(history).record.answered_by == "tiny"
