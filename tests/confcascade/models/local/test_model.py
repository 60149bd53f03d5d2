"""`TransformersModel` against plain `transformers`, over the bundled weights and tiny random ones."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import (
    Cascade,
    ConfigurationError,
    KnowledgeProbe,
    ModelError,
    Stage,
    TokenProbability,
    TransformersModel,
)
from confcascade.asks import Chunk, Generate, Prefill
from confcascade.demo import bundled_probe
from confcascade.demo.world import World
from confcascade.models.bundled import WEIGHTS, bundled_model
from confcascade.testing import check_model
from confcascade.types import Message, Request

torch.set_num_threads(1)
QUESTIONS = [q.prompt for q in World().questions("test", per_task=8)]


@pytest.fixture(scope="module")
def small():
    return bundled_model("small")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")


def random_model(tokenizer, kind="llama", template=True, seed=0):
    """A tiny random model of another architecture, with the bundled tokenizer."""
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=256, **shape)
        model = transformers.GPT2LMHeadModel(config)
    else:
        maker, config_class = {
            "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
            "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
        }[kind]
        config = config_class(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=16, max_position_embeddings=256, tie_word_embeddings=False, **shape,
        )  # fmt: skip
        model = maker(config)
    own = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")
    if not template:
        own.chat_template = None
    return TransformersModel(model.eval(), own, name=f"random-{kind}", max_new_tokens=12)


def request(text, **parameters):
    return Request(Message.parse(text), **parameters)


def answer(model, text, **parameters):
    (response,) = model.generate([Generate(model, request(text, **parameters))])
    if isinstance(response, Exception):
        raise response
    return response


def plain_generate(model, text, max_new_tokens):
    """transformers' own generate on the same prompt: ids, and the raw logits they were chosen from."""
    ids = model.tokenizer(
        model.render(request(text)), add_special_tokens=model.tokenizer.chat_template is None, return_tensors="pt"
    )
    out = model.model.generate(
        **ids,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    return out.sequences[0, ids["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, 1)[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("template", [True, False])
def test_keeps_the_contract_of_a_model(tokenizer, kind, template):
    """Any decoder keeps the contract, with a chat template or completing raw text."""
    check_model(random_model(tokenizer, kind, template), request("Where was Bren born?", max_tokens=9))


def test_bundled_model_keeps_the_contract(small):
    """So does a model with real weights."""
    check_model(small, request(QUESTIONS[0]))


def test_generates_token_for_token_what_plain_generate_does(small):
    """Alone, in a batch and continued from a prefill: the same text and log-probabilities as `generate`."""
    prefilled = small.prefill([Prefill(small, request(q), layers=(3,), labels=("A", "B")) for q in QUESTIONS])
    continued = small.generate(
        [Generate(small, request(q), prefilled=p) for q, p in zip(QUESTIONS, prefilled, strict=True)]
    )
    batched = small.generate([Generate(small, request(q)) for q in QUESTIONS])
    for question, *ours in zip(QUESTIONS, continued, batched, strict=True):
        ids, logits = plain_generate(small, question, 64)
        visible = [i for i in ids if i != small.tokenizer.eos_token_id]
        logprobs = logits.log_softmax(-1)
        expected = [float(logprobs[position, i]) for position, i in enumerate(visible)]
        for response in (*ours, answer(small, question)):
            assert response.text == small.tokenizer.decode(visible)
            assert [token.logprob for token in response.tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_random_models_generate_what_plain_generate_does(tokenizer, kind):
    """The same holds for other architectures and for raw completion."""
    model = random_model(tokenizer, kind, template=False)
    ids, _ = plain_generate(model, "The job of", 12)
    assert answer(model, "The job of").text == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_confidence_adds_no_forward_pass(small):
    """P(IK), P(T) and the answer together take one pass over the prompt and one per further token."""
    lengths = []
    handle = small.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        stage = Stage(small, [bundled_probe("small"), TokenProbability()], {"p_ik": "always", "p_t": "always"})
        outcome = Cascade([stage, Stage(small)]).run(QUESTIONS[0])
        attempt = outcome.record.attempts[0]
        assert attempt.decision == "accept"
        assert lengths == [attempt.usage.input_tokens] + [1] * (attempt.usage.output_tokens - 1)
        lengths.clear()
        rejecting = Stage(small, [bundled_probe("small"), TokenProbability()], {"p_ik": "never", "p_t": "always"})
        Cascade([rejecting, Stage(bundled_model("medium"))]).run(QUESTIONS[0])
        assert lengths == [attempt.usage.input_tokens]
    finally:
        handle.remove()


def test_the_context_window_is_the_models(small):
    assert small.capability.context_window == small.model.config.max_position_embeddings


def test_hidden_states_are_the_blocks_outputs(small):
    """Layer k is transformers' hidden_states[k], padded or not; the last is taken before the final norm."""
    depth = small.capability.layers
    found = small.hidden_states([request(q) for q in QUESTIONS], depth - 1)
    last = small.hidden_states([request(QUESTIONS[0])], depth)[0]
    for row, question in zip(found, QUESTIONS, strict=True):
        ids = small.tokenizer(small.render(request(question)), add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            states = small.model(**ids, output_hidden_states=True).hidden_states
        assert row == pytest.approx(states[depth - 1][0, -1].numpy(), abs=1e-4)
    ids = small.tokenizer(small.render(request(QUESTIONS[0])), add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        normed = small.model(**ids, output_hidden_states=True).hidden_states[depth][0, -1]
        assert small.model.model.norm(torch.tensor(last)).numpy() == pytest.approx(normed.numpy(), abs=1e-4)


def test_labels_pool_both_spellings(small):
    """A label's probability is the sum over " A" and "A" of the first token's distribution."""
    question = next(q.prompt for q in World().questions("test", ("letters",), per_task=1))
    (prefilled,) = small.prefill([Prefill(small, request(question), labels=("A", "B", "C", "D"))])
    _, logits = plain_generate(small, question, 1)
    p = logits[0].softmax(-1)
    for label, logprob in prefilled.label_logprobs.items():
        ids = [small.tokenizer.convert_tokens_to_ids(form) for form in (label, f"Ġ{label}")]
        assert torch.tensor(logprob).exp() == pytest.approx(float(p[ids].sum()), abs=1e-5)


def test_labels_after_a_begun_answer(small):
    """The answer is begun with the prefix: the labels' probabilities are those after it, and so is what is written."""
    question = next(q.prompt for q in World().questions("test", ("letters",), per_task=1))
    asked = replace(request(question), begun="Answer:", max_tokens=3)

    (prefilled,) = small.prefill([Prefill(small, asked, labels=("A", "B"))])
    (continued,) = small.generate([Generate(small, asked, prefilled=prefilled)])
    (alone,) = small.generate([Generate(small, asked)])

    ids = small.tokenizer(small.render(request(question)) + "Answer:", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        logits = small.model(**ids).logits[0, -1]
    for label, logprob in prefilled.label_logprobs.items():
        forms = [small.tokenizer.convert_tokens_to_ids(form) for form in (label, f"Ġ{label}")]
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[forms].logsumexp(-1)), abs=1e-4)
    assert small.tokenizer.decode([int(logits.argmax())]) == alone.tokens[0].text
    assert alone.text == continued.text
    assert "Answer:" not in alone.text


def test_a_label_of_several_tokens_is_an_error(small):
    """A label that the model cannot say in one token is refused, not approximated."""
    (found,) = small.prefill([Prefill(small, request("A or B?"), labels=("A", "Bxqy"))])
    assert isinstance(found, ModelError)
    assert "'Bxqy' is not a single token" in str(found)


def test_stop_strings_cut_text_and_tokens(small):
    """An answer ends before the first stop string, whole and streamed, and so do its tokens."""
    question = next(q.prompt for q in World().questions("test", ("sums",), per_task=1))
    whole = answer(small, question).text
    stop = "\nAnswer"
    assert stop in whole
    cut = answer(small, question, stop=(stop,))
    assert cut.text == whole.split(stop)[0]
    assert "".join(token.text for token in cut.tokens) == cut.text
    chunks = [
        c.text
        for c in small.stream(Generate(small, request(question, stop=(stop,)), live=True))
        if isinstance(c, Chunk)
    ]
    assert "".join(chunks) == cut.text


def test_max_tokens_and_finish_reason(small):
    """`max_tokens` ends an answer with the reason "length"; usage counts what was generated."""
    question = next(q.prompt for q in World().questions("test", ("sums",), per_task=1))
    response = answer(small, question, max_tokens=3)
    assert (response.finish_reason, response.usage.output_tokens, len(response.tokens)) == ("length", 3, 3)


def test_incomplete_characters_are_held_back(tokenizer):
    """A character of several byte tokens arrives whole, and the tokens still add up to the text."""
    model = random_model(tokenizer)
    for seed in range(6):
        wanted = request("x", temperature=5.0, options={"seed": seed}, max_tokens=40)
        *chunks, last = model.stream(Generate(model, wanted, live=True))
        assert "".join(c.text for c in chunks) == last.text == "".join(token.text for token in last.tokens)


def test_sampling_follows_the_seed_and_keeps_raw_logprobs(small):
    """A seed repeats a sample; log-probabilities are those before temperature."""
    question = QUESTIONS[0]
    first, again = (answer(small, question, temperature=3.0, options={"seed": 7}) for _ in range(2))
    others = {answer(small, question, temperature=3.0, options={"seed": s}).text for s in range(8)}
    assert first.text == again.text
    assert len(others) > 1
    greedy = answer(small, question)
    cold = answer(small, question, temperature=0.01, options={"seed": 1})
    assert [t.logprob for t in cold.tokens] == pytest.approx([t.logprob for t in greedy.tokens], abs=1e-4)


def test_alternatives_are_sorted_and_begin_with_the_greedy_choice(small):
    """`top_logprobs` tells the most probable alternatives of each position."""
    (response,) = small.generate([Generate(small, request(QUESTIONS[0]), top_logprobs=4)])
    for token in response.tokens:
        values = [value for _, value in token.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert values[0] == pytest.approx(token.logprob, abs=1e-6)


def test_a_prefill_is_continued_once_and_in_parts(small):
    """Rows of one pass may go on in different calls; a row goes on once."""
    asks = [Prefill(small, request(q)) for q in QUESTIONS[:3]]
    first, second, third = small.prefill(asks)
    (last,) = small.generate([Generate(small, request(QUESTIONS[2]), prefilled=third)])
    first.close()
    (middle,) = small.generate([Generate(small, request(QUESTIONS[1]), prefilled=second)])
    assert [middle.text, last.text] == [answer(small, q).text for q in QUESTIONS[1:3]]
    (again,) = small.generate([Generate(small, request(QUESTIONS[2]), prefilled=third)])
    assert isinstance(again, ModelError)
    assert "continued once" in str(again)


def test_caches_are_freed(small):
    """Once every row of a pass is closed or continued, its cache is gone."""
    first, second = small.prefill([Prefill(small, request(q)) for q in QUESTIONS[:2]])
    batch = first.state.batch
    first.close()
    assert batch.cache is not None
    second.close()
    assert batch.cache is None


def test_threads_do_not_mix(small):
    """Sixteen threads get what one gets: hidden states are captured per thread."""
    expected = small.hidden_states([request(QUESTIONS[0])], 3)[0]
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait()
        text = QUESTIONS[0] if i % 2 == 0 else QUESTIONS[i]
        return i, small.hidden_states([request(text)], 3)[0], answer(small, text).text

    with ThreadPoolExecutor(8) as pool:
        for i, state, text in pool.map(work, range(8)):
            assert text == answer(small, QUESTIONS[0] if i % 2 == 0 else QUESTIONS[i]).text
            if i % 2 == 0:
                assert state == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_callers_objects_stay_as_they_are(small):
    """Neither tokenizer nor generation settings are changed by a call."""
    before = small.tokenizer.padding_side, small.tokenizer.pad_token, small.model.generation_config.to_dict()
    small.generate([Generate(small, request(q)) for q in QUESTIONS[:4]])
    assert (small.tokenizer.padding_side, small.tokenizer.pad_token, small.model.generation_config.to_dict()) == before


def test_a_prompt_longer_than_the_context_is_an_error(tokenizer):
    """The message names both lengths."""
    model = random_model(tokenizer)
    with pytest.raises(ModelError, match=r"tokens; the context of model 'random-llama' holds 256"):
        answer(model, "salt " * 300)


def test_a_prompt_that_cannot_be_read_fails_alone(tokenizer):
    """In a batch, prefilled or not, the other prompts are answered as if it were not there."""
    model = random_model(tokenizer)
    texts = ["Where was Bren born?", "salt " * 300, "What is it?"]
    first, long, last = model.generate([Generate(model, request(text)) for text in texts])
    assert isinstance(long, ModelError)
    assert (first.text, last.text) == (answer(model, texts[0]).text, answer(model, texts[2]).text)
    first, long, last = model.prefill([Prefill(model, request(text), layers=(2,)) for text in texts])
    assert isinstance(long, ModelError)
    assert last.hidden_states[2] == pytest.approx(model.hidden_states([request(texts[2])], 2)[0], abs=1e-5)
    first.close()
    last.close()


def test_a_model_without_a_cache_is_refused(tokenizer):
    """A model that generation cannot continue from is refused when it is wrapped, not at the first query."""
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2)
    with pytest.raises(ConfigurationError, match="MambaForCausalLM does not work as a decoder"):
        TransformersModel(transformers.MambaForCausalLM(config), tokenizer)


def overflowing(tokenizer, word=None):
    """A random model whose logits are NaN, always or after the token of `word` only."""
    model = random_model(tokenizer)
    with torch.no_grad():
        if word is None:
            model.model.lm_head.weight[5] = torch.nan
        else:
            model.model.model.embed_tokens.weight[tokenizer(word)["input_ids"][-1]] = torch.inf
    return model


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0}])
def test_logits_that_are_not_finite_are_no_answer(tokenizer, parameters):
    """An overflow gives token 0 for ever, which must not pass for a certain answer: whole, streamed, with labels."""
    model = overflowing(tokenizer)
    ask = Generate(model, request("What is it?", **parameters))

    (found,) = model.generate([ask])
    (read,) = model.prefill([Prefill(model, ask.request, layers=(2,), labels=("A", "B"))])

    for error in (found, read):
        assert isinstance(error, ModelError)
        assert "The logits of model 'random-llama' are not finite: its numbers overflow in torch.float32" in str(error)
    with pytest.raises(ModelError, match="are not finite"):
        list(model.stream(ask))


@pytest.mark.parametrize("signal", [TokenProbability(), TokenProbability("AB")])
@pytest.mark.parametrize("threshold", [0.99, "always"])
def test_a_model_that_overflows_escalates_with_that_reason(tokenizer, small, signal, threshold):
    """Even where every usable answer is kept; and as the last stage it has failed."""
    model = overflowing(tokenizer)
    outcome = Cascade([Stage(model, [signal], {"p_t": threshold}), Stage(small)]).run("What is it?")

    assert outcome.record.answered_by == "small"
    assert "are not finite" in outcome.record.attempts[0].reason
    with pytest.raises(ModelError, match="are not finite"):
        Cascade([Stage(model)]).run("What is it?")


def test_a_prompt_that_overflows_fails_alone(tokenizer):
    """The others of its batch are answered as if it were not there."""
    model = overflowing(tokenizer, word=" salt")
    texts = ["Where was Bren born?", "the salt", "What is it?"]

    first, bad, last = model.generate([Generate(model, request(text)) for text in texts])
    assert isinstance(bad, ModelError)
    assert (first.text, last.text) == (answer(model, texts[0]).text, answer(model, texts[2]).text)
    first, bad, last = model.prefill([Prefill(model, request(text), layers=(2,)) for text in texts])
    assert isinstance(bad, ModelError)
    batch = first.state.batch
    first.close()
    last.close()
    assert batch.cache is None


def test_a_token_that_the_model_does_not_know_fails_alone(tokenizer):
    """A tokenizer with an added token beside a model that was not resized: on a GPU, that ends all further work."""
    model = random_model(tokenizer)
    model.tokenizer.add_tokens(["<new>"])
    texts = ["Where was Bren born?", "What is <new>?"]

    good, bad = model.generate([Generate(model, request(text)) for text in texts])

    assert isinstance(bad, ModelError)
    assert f"'<new>', id {len(tokenizer)}; model 'random-llama' knows the ids below {len(tokenizer)}" in str(bad)
    assert good.text == answer(model, texts[0]).text


def test_an_error_of_a_watch_fails_its_row_only(small):
    """One query's bad signal is not its batch's."""

    def broken(tokens):
        raise ZeroDivisionError("a watch")

    asks = [Generate(small, request(QUESTIONS[0]), watch=broken), Generate(small, request(QUESTIONS[1]))]
    bad, good = small.generate(asks)

    assert isinstance(bad, ZeroDivisionError)
    assert good.text == answer(small, QUESTIONS[1]).text


@pytest.mark.parametrize("layer", [0, -1, 9])
def test_layers_that_are_not_there_are_refused(small, layer):
    """Blocks are numbered from 1; no other block's states are given under a wrong number."""
    wrong, right = small.prefill([Prefill(small, request(QUESTIONS[0]), layers=(i,)) for i in (layer, 1)])

    assert isinstance(wrong, ModelError)
    assert "gives hidden states 1 to 4" in str(wrong)
    assert right.hidden_states.keys() == {1}
    right.close()
    with pytest.raises(ModelError, match="hidden states 1 to 4"):
        small.hidden_states([request(QUESTIONS[0])], layer)


def test_a_checkpoint_that_lacks_weights_is_refused(small, tmp_path):
    """They would be random numbers, others at each load; tied weights, which no checkpoint repeats, are not missing."""
    from safetensors.torch import load_file, save_file

    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    TransformersModel.from_pretrained(tmp_path)
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        ConfigurationError, match=r"lacks 1 of the model's weights, such as model\.layers\.2\.mlp\.down"
    ):
        TransformersModel.from_pretrained(tmp_path)


def test_unknown_options_are_an_error(small):
    """An option that would be ignored is refused."""
    with pytest.raises(ModelError, match=r"knows the options top_p, .* and seed\. Got tools"):
        answer(small, "x", options={"tools": []})


def test_what_cannot_be_loaded_is_one_line():
    """A folder without a model is a one-line error that says what to give."""
    with pytest.raises(ConfigurationError, match="No causal language model can be loaded from '/nowhere'") as caught:
        TransformersModel.from_pretrained("/nowhere")
    assert "\n" not in str(caught.value)


def test_a_revision_is_that_of_weights_and_tokenizer_alike(monkeypatch):
    """Both come from the commit that was named; without one, from the newest."""
    asked = []
    for loader in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        load = loader.from_pretrained

        def noted(*args, load=load, **kwargs):
            asked.append(kwargs["revision"])
            return load(*args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", noted)
    TransformersModel.from_pretrained(WEIGHTS / "small", revision="abc")
    TransformersModel.from_pretrained(WEIGHTS / "small")
    assert asked == ["abc", "abc", "main", "main"]


def test_fingerprint_tells_models_apart(small, tokenizer):
    """Equal weights, template and precision have equal fingerprints; another template or weights another."""
    assert bundled_model("small").fingerprint == small.fingerprint
    found = {
        small.fingerprint,
        bundled_model("medium").fingerprint,
        random_model(tokenizer, seed=0).fingerprint,
        random_model(tokenizer, seed=1).fingerprint,
        random_model(tokenizer, seed=0, template=False).fingerprint,
    }
    assert len(found) == 5


def test_a_probe_is_refused_on_another_model():
    """A probe serves the model that it was trained for, and no other."""
    probe = KnowledgeProbe.load(WEIGHTS / "small" / "probe")
    with pytest.raises(ConfigurationError, match="trained for model 'small'"):
        Cascade([Stage(bundled_model("medium"), [probe], {"p_ik": 0.5}), Stage(bundled_model("large"))])


def test_parameters_are_counted_as_multiplied(tokenizer, small):
    """Tied embeddings count once; untied input embeddings, which are looked up, not at all."""
    assert small.architecture.parameters == small.model.num_parameters()
    untied = random_model(tokenizer)
    assert untied.architecture.parameters == untied.model.num_parameters() - len(tokenizer) * 32


def test_fingerprint_tells_how_the_prompt_is_written_and_the_weights_are_kept(tokenizer):
    """Options of the template, precision, quantisation, and what a quantised model packs into buffers."""

    def quantised(packed):
        model = random_model(tokenizer).model
        model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
        model.lm_head.register_buffer("qweight", torch.full((4, 4), packed, dtype=torch.int32))
        return TransformersModel(model, tokenizer)

    plain = random_model(tokenizer)
    half = TransformersModel(random_model(tokenizer).model.half(), tokenizer)
    plain.tokenizer.chat_template += "{% if enable_thinking %}{% endif %}"
    plain = TransformersModel(plain.model, plain.tokenizer)
    options = TransformersModel(plain.model, plain.tokenizer, template_options={"enable_thinking": False})
    apart = [each.fingerprint for each in (plain, half, options, quantised(1), quantised(2))]

    assert len(set(apart)) == len(apart)
    assert quantised(1).fingerprint == quantised(1).fingerprint
    assert random_model(tokenizer).fingerprint == random_model(tokenizer).fingerprint


def test_shipped_probes_fit_their_models():
    """A changed way to make fingerprints would refuse every probe that is in use."""
    for size in ("small", "medium", "large"):
        bundled_probe(size).check(bundled_model(size))


def test_the_same_weights_asked_in_another_way_are_a_model_of_their_own(tokenizer):
    """Other name, limit, template options and fingerprint; nothing is loaded, tried or copied, and the first stays."""
    plain = random_model(tokenizer)
    plain.tokenizer.chat_template = "{{ messages[-1].content }}{% if think %} What is{% endif %}"
    passes = []
    handle = plain.model.register_forward_pre_hook(lambda *_: passes.append(1))
    thinking = plain.with_options(name="thinking", template_options={"think": True}, max_new_tokens=3)
    handle.remove()

    assert passes == []
    assert (thinking.model, thinking.tokenizer) == (plain.model, plain.tokenizer)
    assert (plain.name, thinking.name) == ("random-llama", "thinking")
    assert (plain.render(request("Hi")), thinking.render(request("Hi"))) == ("Hi", "Hi What is")
    assert answer(thinking, "Hi").usage.output_tokens == 3 < answer(plain, "Hi").usage.output_tokens
    fresh = TransformersModel(plain.model, plain.tokenizer, template_options={"think": True})
    assert plain.fingerprint != thinking.fingerprint == fresh.fingerprint
    assert plain.with_options(name="other").fingerprint == plain.fingerprint
    with pytest.raises(ModelError, match="context of model 'thinking'"):
        answer(thinking, "salt " * 300)


def test_a_cascade_of_efforts_is_a_cascade(tokenizer):
    """The quick answer first, the same weights with thoughts where it is unsure, alone and in batches."""
    quick = random_model(tokenizer)
    quick.tokenizer.chat_template = "{{ messages[-1].content }}{% if think %} What{% endif %}"
    stages = [
        Stage(quick, [TokenProbability()], {"p_t": "never"}),
        Stage(quick.with_options(name="thinking", template_options={"think": True})),
    ]
    cascade = Cascade(stages, on_cut="keep")
    texts = ["Where was Bren born?", "What is it?"]
    for text, outcome in zip(texts, cascade.run_batch(texts), strict=True):
        assert [each.model for each in outcome.record.attempts] == ["random-llama", "thinking"]
        assert outcome.text == cascade.run(text).text == answer(stages[1].model, text).text
