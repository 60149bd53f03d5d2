"""What TRL is handed, and what is seen of each step."""

import copy

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.training.verbalized.reinforced import Reinforced, statement_figures, trainer_prompts
from confcascade.bench.training.verbalized.rollouts import Sampling
from confcascade.types import Message, Request


def test_figures_of_a_step_by_hand():
    found = statement_figures([1.0, 0.0, 1.0, 0.0, 1.0], [0.9, 0.1, 0.9, 0.9, None])
    assert found["stated/read"] == 0.8
    assert found["stated/mean"] == pytest.approx(0.7)
    assert found["stated/alike"] == 0.75
    assert found["stated/bits"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert found["stated/auroc"] == 0.75  # of four pairs two are ranked, two tied
    assert statement_figures([1.0], [None]) == {"stated/read": 0.0}
    assert statement_figures([1.0, 1.0], [0.2, 0.4])["stated/auroc"] == 0.5


def test_passes_of_an_update():
    assert Reinforced(questions=8).passes(Sampling(group=16, rows=32)) == 4
    with pytest.raises(ConfigurationError, match="18 in all, which passes of 4 do not divide"):
        Reinforced(questions=3).passes(Sampling(group=6, rows=4))


def test_trl_reads_the_very_tokens_that_the_model_reads(questions, small):
    requests = [questions.asked(example) for example in questions.training[:5]]
    prompts = trainer_prompts(small, requests)
    read = small.tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]
    assert read == [small.encode(request) for request in requests]


def test_a_model_without_a_template_is_handed_texts(small):
    from confcascade.models.local import TransformersModel

    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.chat_template = None
    model = TransformersModel(small.model, tokenizer, name="raw")
    request = Request((Message("user", "Where is Rome?"),))
    [prompt] = trainer_prompts(model, [request])
    assert tokenizer(text=[prompt])["input_ids"] == [model.encode(request)]


def test_prompts_that_trl_would_read_otherwise_are_refused(small):
    """The template has no system turn, so the product puts that text into the user's; TRL would lose it."""
    from confcascade.models.local import TransformersModel

    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    model = TransformersModel(small.model, tokenizer, name="quiet")
    request = Request((Message("system", "Be brief."), Message("user", "Where is Rome?")))
    assert "Be brief." in model.render(request)
    with pytest.raises(ConfigurationError, match="TRL would hand other tokens to 'quiet'"):
        trainer_prompts(model, [request])
