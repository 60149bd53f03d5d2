"""Step confidences are those of the steps that the model writes by itself."""

import pytest

pytest.importorskip("torch")

from confcascade import ConfigurationError, StepMixture, Steps, step_confidences
from confcascade.demo import bundled_model
from confcascade.demo.world import World
from confcascade.testing import ScriptedModel
from confcascade.types import Message, Request

QUESTIONS = [q.prompt for q in World().questions("fit", tasks=("sums",), per_task=12)]


def test_they_are_the_mean_greatest_logits_of_its_own_steps():
    torch = pytest.importorskip("torch")
    model = bundled_model("small")
    found = step_confidences(model, QUESTIONS, steps=Steps("\n"))

    wanted = []
    for question in QUESTIONS:
        rendered = model.render(Request((Message("user", question),)))
        prompt = model.tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
        written = model.model.generate(prompt, do_sample=False, max_new_tokens=64)
        with torch.no_grad():
            greatest = model.model(written).logits[0].max(-1).values.tolist()
        step: list[float] = []
        for position in range(prompt.shape[1], written.shape[1]):
            token = int(written[0, position])
            if token != model.tokenizer.eos_token_id:
                step.append(greatest[position - 1])
            if step and (token == model.tokenizer.eos_token_id or "\n" in model.tokenizer.decode([token])):
                wanted.append(sum(step) / len(step))
                step = []
    assert found == pytest.approx(wanted, rel=1e-4)


def test_so_few_steps_of_one_kind_are_refused_for_a_mixture():
    with pytest.raises(ConfigurationError, match=r"Glimpse\(\)"):
        StepMixture.fit(step_confidences(bundled_model("small"), QUESTIONS, steps=Steps("\n")))


def test_a_model_that_cannot_go_on_is_refused():
    with pytest.raises(ConfigurationError, match="cannot go on"):
        step_confidences(ScriptedModel("small"), ["Q"])
