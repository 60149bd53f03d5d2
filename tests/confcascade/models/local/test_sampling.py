"""Which token follows: the local models against `generate` of `transformers` under each setting."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import ConfigurationError, ModelError, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.models.bundled import WEIGHTS
from confcascade.types import Message, Request, Response

torch.set_num_threads(1)
PROMPTS = ["Where was Bren born?", "x", "The job of the one who lives in Oslo is, as far as we know,"]
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer():
    own = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")
    own.chat_template = None
    return own


@pytest.fixture(scope="module")
def weights(tokenizer):
    """A tiny random Llama that repeats itself, so that penalties matter."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def made(weights, tokenizer):
    """A model with these settings in its generation_config."""
    before = weights.generation_config

    def make(settings, **arguments):
        weights.generation_config = transformers.GenerationConfig.from_dict({**before.to_dict(), **settings})
        return TransformersModel(weights, tokenizer, name="tiny", **arguments)

    yield make
    weights.generation_config = before


def request(text, **parameters):
    return Request(Message.parse(text), **parameters)


def answers(model, **parameters):
    """The answers to all prompts: alone, in a batch, streamed, and continued from a prefill in another order."""
    asks = [Generate(model, request(text, **parameters), top_logprobs=1) for text in PROMPTS]
    alone = [model.generate([ask])[0] for ask in asks]
    streamed = [list(model.stream(ask))[-1] for ask in asks]
    prefilled = model.prefill([Prefill(model, ask.request) for ask in asks])
    order = [2, 0, 1]
    continued = model.generate(
        [Generate(model, asks[i].request, prefilled=prefilled[i], top_logprobs=1) for i in order]
    )
    back = [continued[order.index(i)] for i in range(len(asks))]
    return list(zip(alone, model.generate(asks), streamed, back, strict=True))


def plain(model, text, **arguments):
    """What `generate` itself gives: ids, and their raw log-probabilities."""
    ids = model.tokenizer(text, return_tensors="pt")
    out = model.model.generate(**ids, return_dict_in_generate=True, output_logits=True, **arguments)
    new = out.sequences[0, ids["input_ids"].shape[1] :].tolist()
    logprobs = torch.stack(out.logits, 1)[0].float().log_softmax(-1)
    return new, [float(logprobs[i, token]) for i, token in enumerate(new)]


def favourites(weights, tokenizer):
    """The tokens that the greedy answers to the prompts are made of, the first of each first."""
    model = TransformersModel(weights, tokenizer, name="tiny")
    found = [plain(model, text, max_new_tokens=LENGTH, do_sample=False)[0] for text in PROMPTS]
    return [ids[0] for ids in found] + [token for ids in found for token in ids[1:]]


SETTINGS = {
    "repetition_penalty": lambda ids: 1.3,
    "no_repeat_ngram_size": lambda ids: 2,
    "encoder_no_repeat_ngram_size": lambda ids: 1,
    "encoder_repetition_penalty": lambda ids: 1.5,
    "bad_words_ids": lambda ids: [[ids[0]], [ids[3], ids[4]]],
    "sequence_bias": lambda ids: [[[ids[0]], -9.0], [[5, 6], 9.0]],
    "suppress_tokens": lambda ids: ids[:4],
    "begin_suppress_tokens": lambda ids: ids[:3],
    "forced_bos_token_id": lambda ids: 7,
    "forced_eos_token_id": lambda ids: 2,
    "min_new_tokens": lambda ids: 6,
    "min_length": lambda ids: 40,
    "exponential_decay_length_penalty": lambda ids: [3, 2.5],
    "renormalize_logits": lambda ids: True,
    "watermarking_config": lambda ids: {"bias": 4.0},
    "eos_token_id": lambda ids: [2, ids[5], ids[-1]],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_greedy_answer_is_that_of_generate_under_every_setting(made, weights, tokenizer, setting):
    """Alone, in a batch, streamed and prefilled: the same tokens; log-probabilities are those of the raw logits."""
    ids = favourites(weights, tokenizer)
    settings = {setting: SETTINGS[setting](ids)}
    if setting == "min_new_tokens":
        settings["eos_token_id"] = [2, ids[0], ids[5]]  # which would end the answers at once
    model = made(settings, max_new_tokens=LENGTH)
    differs = setting in ("renormalize_logits", "min_length", "forced_bos_token_id", "encoder_no_repeat_ngram_size")
    assert model._speaker.settings.plain == (setting == "eos_token_id")
    for text, ours in zip(PROMPTS, answers(model), strict=True):
        new, logprobs = plain(model, text, max_new_tokens=LENGTH, do_sample=False)
        visible = [token for token in new if token not in model._speaker.settings.ends]
        for response in ours:
            assert isinstance(response, Response), response
            assert response.usage.output_tokens == len(new)
            assert [token.logprob for token in response.tokens] == pytest.approx(logprobs[: len(visible)], abs=1e-4)
            assert response.text == model.tokenizer.decode(visible, skip_special_tokens=True)
        differs = differs or new != plain(made({}), text, max_new_tokens=LENGTH, do_sample=False)[0]
        made(settings)
    assert differs  # else the setting was not tried


def test_lengths_are_those_of_the_generation_config(made):
    """`max_new_tokens`, or else `max_length`, where neither the class nor the request says; 512 without."""
    for settings, arguments, parameters, expected in [
        ({"max_new_tokens": 5}, {}, {}, {}),
        ({"max_length": 21}, {}, {}, None),
        ({"max_new_tokens": 5}, {"max_new_tokens": 7}, {}, {"max_new_tokens": 7}),
        ({"max_length": 21}, {}, {"max_tokens": 6}, {"max_new_tokens": 6}),
    ]:
        model = made(settings, **arguments)
        for text, (response, *_) in zip(PROMPTS[:2], answers(model, **parameters), strict=False):
            if expected is None:  # given to `generate` itself, for that of transformers 5.0 adds the prompt to its own
                expected = {"max_length": 21}
            assert response.usage.output_tokens == len(plain(model, text, do_sample=False, **expected)[0])
    assert made({})._speaker.limit(None, 10) == 256 - 10
    assert made({"max_length": 20})._speaker.limit(None, 30) == 1


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"top_k": 5, "top_p": 0.7}, {}),
        ({"min_p": 0.02, "repetition_penalty": 1.2}, {}),
        ({"top_k": 3}, {"top_k": 0}),
        ({"top_k": 3}, {"top_k": -1, "top_p": 0.5}),
        ({"top_p": 0.1}, {"top_p": 1, "min_p": 0.01}),
        ({"typical_p": 0.5}, {"repetition_penalty": 2}),
    ],
)
def test_a_sampled_answer_is_that_of_generate_with_the_same_seed(made, settings, options):
    """What the checkpoint sets holds where the request does not say; nothing else is truncated."""
    model = made(settings)
    parameters = {"temperature": 1.7, "max_tokens": LENGTH, "options": {**options, "seed": 11}}
    arguments = {"top_k": 0, **settings, **{key: max(value, 0) for key, value in options.items()}}
    if "repetition_penalty" in arguments:
        arguments["repetition_penalty"] = float(arguments["repetition_penalty"])
    for text, ours in zip(PROMPTS, answers(model, **parameters), strict=True):
        torch.manual_seed(11)
        new, logprobs = plain(model, text, max_new_tokens=LENGTH, do_sample=True, temperature=1.7, **arguments)
        for response in ours:
            assert response.usage.output_tokens == len(new)
            said = [token.logprob for token in response.tokens]
            assert said == pytest.approx(logprobs[: len(said)], abs=1e-4)


def test_a_penalty_of_a_request_holds_greedily_too(made):
    """As `generate(repetition_penalty=...)`, in the place of the checkpoint's."""
    model = made({"repetition_penalty": 1.1}, max_new_tokens=LENGTH)
    for text, ours in zip(PROMPTS, answers(model, options={"repetition_penalty": 1.6}), strict=True):
        _, logprobs = plain(model, text, max_new_tokens=LENGTH, do_sample=False, repetition_penalty=1.6)
        for response in ours:
            said = [token.logprob for token in response.tokens]
            assert said == pytest.approx(logprobs[: len(said)], abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "n": 1, "min_p": 0, "top_k": -1},
        {"top_p": None, "seed": None, "logit_bias": None},
        {"top_k": 0, "top_p": 1, "seed": 3},
    ],
)
def test_options_that_change_nothing_pass(made, options):
    """A request that another server takes is not refused for what is neutral in it."""
    model = made({}, max_new_tokens=LENGTH)
    assert [each[0].text for each in answers(model, options=options)] == [each[0].text for each in answers(model)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": -1}, r"`temperature` must be a number at least 0\. Got -1\."),
        ({"temperature": float("nan")}, "`temperature` must be a number at least 0"),
        ({"temperature": "hot"}, "`temperature` must be a number"),
        ({"options": {"seed": "7"}}, r"`seed` must be a whole number\. Got '7'\."),
        ({"options": {"seed": True}}, "`seed` must be a whole number"),
        ({"options": {"top_k": 1.5}}, "`top_k` must be a whole number, 0 or -1 for all tokens"),
        ({"options": {"top_k": -2}}, "`top_k` must be a whole number"),
        ({"options": {"top_p": 1.2}}, r"`top_p` must be a number between 0 and 1\. Got 1\.2"),
        ({"options": {"min_p": -0.1}}, "`min_p` must be a number between 0 and 1"),
        ({"options": {"repetition_penalty": 0}}, "`repetition_penalty` must be above 0"),
        ({"options": {"frequency_penalty": 0.5}}, "repetition_penalty and seed. Got frequency_penalty"),
        ({"options": {"n": 2, "logit_bias": {"5": 1}}}, "Got logit_bias, n"),
    ],
)
@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_out_of_range_is_one_line_and_fails_alone(made, parameters, message, greedy):
    """A `ModelError`, whether or not the option would matter; the others of the batch are answered."""
    model = made({}, max_new_tokens=3)
    parameters = parameters if greedy or "temperature" in parameters else {"temperature": 1.0, **parameters}
    bad, good = model.generate([Generate(model, request("x", **parameters)), Generate(model, request("x"))])

    assert isinstance(bad, ModelError)
    assert "\n" not in str(bad)
    with pytest.raises(ModelError, match=message):
        raise bad
    assert isinstance(good, Response)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, r"asks for num_beams, .* generation_options={'num_beams': 1}"),
        ({"guidance_scale": 1.5}, "asks for guidance_scale"),
        ({"stop_strings": ["\n"]}, "asks for stop_strings"),
        ({"max_time": 3.0}, "asks for max_time"),
        ({"token_healing": True}, "asks for token_healing"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "asks for penalty_alpha"),
        ({"repetition_penalty": -1.0}, "generation_config of model 'tiny' does not work"),
        ({"bad_words_ids": "no"}, "generation_config of model 'tiny' does not work"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(made, settings, message):
    """When the model is made, with what to set; and so set, it works."""
    with pytest.raises(ConfigurationError, match=message):
        made(settings)
    neutral = {"num_beams": 1, "guidance_scale": 1, "token_healing": False, "repetition_penalty": 1.0}
    model = made(settings, generation_options={key: neutral.get(key) for key in settings}, max_new_tokens=2)
    assert all(isinstance(response, Response) for each in answers(model) for response in each)


def test_generation_options_replace_the_checkpoints(made, weights, tokenizer):
    """Unknown ones are refused with a suggestion, and the model's own generation_config stays as it is."""
    model = made({"repetition_penalty": 1.4, "top_k": 20}, generation_options={"repetition_penalty": 1.0})
    assert model.generation_settings == {"top_k": 20}
    assert weights.generation_config.repetition_penalty == 1.4
    assert repr(model) == "TransformersModel('tiny', top_k=20)"
    assert repr(made({})) == "TransformersModel('tiny')"
    with pytest.raises(ConfigurationError, match=r"'repetition_penality', .* did you mean 'repetition_penalty'"):
        TransformersModel(weights, tokenizer, generation_options={"repetition_penality": 1.0})


@pytest.mark.parametrize("argument", ["batch_size", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_counts_are_at_least_one(made, argument, value):
    """A batch or an answer of no token is refused when the model is made."""
    with pytest.raises(ConfigurationError, match=f"`{argument}` must be a whole number of at least 1"):
        made({}, **{argument: value})


def test_a_plain_model_is_asked_for_nothing_per_token(made, monkeypatch):
    """Without settings, no processor is made and none runs: the most probable token follows."""
    model = made({}, max_new_tokens=LENGTH)
    monkeypatch.setattr(model._speaker.settings, "processors", lambda *_: pytest.fail("processors were made"))
    answers(model)
