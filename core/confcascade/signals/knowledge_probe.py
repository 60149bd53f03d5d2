"""P(IK), "I know": a small network reads the model's hidden state and predicts, before anything is generated, whether
the answer will be right."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from confcascade.asks import Capability, LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.probe_fitting import NETWORK, Weights, fit_weights, predict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "KnowledgeProbe",
    "ProbeCard",
    "ProbeSplit",
    "check_parts",
    "checked_states",
    "fingerprint_of",
    "is_normalised",
    "resolve_layer",
]

FORMAT = 1
ProbeSplit: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]"  # training, validation, test


@dataclass(frozen=True)
class ProbeCard:
    """What a probe was trained for, and how well it did.

    Attributes:
        model: Name of the model.
        fingerprint: Identifies its weights, chat template and precision: the probe is refused on any other.
        layer: The block whose output at the last prompt token is read, counted from 1.
        hidden_size: Dimension of that hidden state.
        examples: Number of examples in training, validation and test.
        base_rate: Share of right answers among them.
        auroc: On the validation and the test part.
        brier: On the test part.
        epochs: Passes over the training part until the validation loss was least; of a linear probe the solver's steps.
        seed: Of the split and the weights.
        balanced: Whether right and wrong answers weighed the same in training.
        engine: The kind of server that gave the hidden states (`Capability.engine`); "" of a model in this process.
        normalised: Whether they came from behind the model's final norm.
    """

    model: str
    fingerprint: str
    layer: int
    hidden_size: int
    examples: tuple[int, int, int]
    base_rate: float
    auroc: tuple[float, float]
    brier: float
    epochs: int
    seed: int
    balanced: bool = False
    engine: str = ""
    normalised: bool = False


def resolve_layer(layer: int | float, layers: int) -> int:
    """A block's number from an absolute layer (int, from 1) or a relative depth (float in (0, 1]).

    >>> resolve_layer(0.75, 32), resolve_layer(24, 32)
    (24, 24)
    """
    if isinstance(layer, float):
        if not 0 < layer <= 1:
            raise ConfigurationError(f"A relative depth must lie in (0, 1]. Got {layer}.")
        return max(1, round(layer * layers))
    if not 1 <= layer <= layers:
        raise ConfigurationError(f"An absolute layer must lie between 1 and the model's {layers} blocks. Got {layer}.")
    return layer


def is_normalised(capability: Capability, layer: int) -> bool:
    """Whether the states of a block come from behind the final norm: only those of the last block can."""
    return capability.normalised and layer == capability.layers


def fingerprint_of(model: LanguageModel) -> str:
    """By what a probe knows its model again.

    Raises:
        ConfigurationError: If the model has no fingerprint.
    """
    fingerprint = getattr(model, "fingerprint", None)
    if not isinstance(fingerprint, str):
        raise ConfigurationError(
            f"Model '{model.name}' has no `fingerprint`, by which its probe would know it again. "
            "Give it one: a string that changes with its weights."
        )
    return fingerprint


def checked_states(
    model: LanguageModel, hidden: ArrayLike, correct: Sequence[bool]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Hidden states of `model` and labels as arrays (n, hidden_size) and (n,).

    Raises:
        ConfigurationError: If the shapes do not fit, a value is not finite, or a label is neither true nor false.
    """
    import numpy as np

    x, given = np.asarray(hidden, dtype=np.float32), np.asarray(correct)
    fingerprint_of(model)
    if x.ndim != 2 or given.shape != x.shape[:1]:
        raise ConfigurationError(
            f"`hidden` must have shape (n, hidden_size) and `correct` shape (n,). Got {x.shape} and {given.shape}."
        )
    if x.shape[1] != model.capability.hidden_size:
        raise ConfigurationError(
            f"Model '{model.name}' has hidden states of {model.capability.hidden_size} dimensions. Got {x.shape[1]}."
        )
    if not np.isfinite(x).all():
        raise ConfigurationError("`hidden` holds values that are not finite.")
    if not np.isin(given, (0, 1)).all():
        raise ConfigurationError("`correct` must hold only True and False.")
    return x, given.astype(bool)


def check_parts(correct: NDArray[np.bool_], parts: ProbeSplit) -> None:
    """Every part must have right and wrong answers.

    Raises:
        ConfigurationError: Naming the part that has not.
    """
    for part, rows in zip(("training", "validation", "test"), parts, strict=True):
        if not 0 < correct[rows].sum() < len(rows):
            raise ConfigurationError(
                f"A probe needs right and wrong answers in every part. The {part} part has {len(rows)} rows, "
                f"{int(correct[rows].sum())} of them right. Collect more questions, or harder or easier ones."
            )


class KnowledgeProbe(Signal):
    """P(IK) in [0, 1]: the probability, by a trained probe, that the model will answer this prompt right.

    Made by `fit`, by ``confcascade train-probe`` or by `load`, never by hand. The network is the cited one,
    d -> 256 -> 128 -> 64 -> 1 with ReLU, or none: a logistic regression. Inputs are standardised and training stops at
    the least validation loss, which the paper does not say (see ``docs/design/probes.md``).

    Source: "Confidence-Driven Multi-Scale Model Selection", section 3; Mahaut et al. 2024 (layer 24, last
    prompt token).
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    _later = False  # whether it judges by the state that came with the answer

    def __init__(self, card: ProbeCard, weights: Mapping[str, NDArray[np.float32]], name: str = "p_ik") -> None:
        self.card = card
        self.name = name
        self._weights = dict(weights)
        self._depth = sum(key.startswith("weight.") for key in weights)
        if self._depth == 0 or self._weights["mean"].shape != (card.hidden_size,):
            raise ConfigurationError(f"These weights are not a probe of {card.hidden_size} dimensions.")

    def __repr__(self) -> str:
        card = self.card
        return f"KnowledgeProbe(model={card.model!r}, layer={card.layer}, test AUROC={card.auroc[1]:.3f})"

    @property
    def kind(self) -> Literal["linear", "mlp"]:
        """Whether there are hidden layers."""
        return "linear" if self._depth == 1 else "mlp"

    def with_answer(self) -> KnowledgeProbe:
        """The same probe, which judges after the answer, by the prompt's state that came with it in one call.

        For a server of vLLM that has no prefix cache, or where a second call costs more than answers that are thrown
        away: a rejected query has then paid for the whole answer.
        """
        probe = copy.copy(self)
        probe.phase = "post"  # type: ignore[misc]
        probe._later = True
        return probe

    # ------------------------------------------------------------------ as a signal

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        del model
        return () if self._later else (self.card.layer,)

    def answer_layers(self, model: LanguageModel) -> tuple[int, ...]:
        del model
        return (self.card.layer,) if self._later else ()

    def check(self, model: LanguageModel) -> None:
        capability = model.capability
        if not capability.layers:
            raise ConfigurationError(
                f"KnowledgeProbe reads hidden states, and model '{model.name}' does not give any. "
                "Use a TransformersModel whose blocks give them, OpenAICompatibleModel(hidden_states=...) with a "
                "server of SGLang or vLLM, or TokenProbability with this model."
            )
        if self._later and not capability.states_with_answer:
            raise ConfigurationError(
                f"Model '{model.name}' gives no hidden state of the prompt with an answer: SGLang's is of the "
                "last token that it wrote. Leave out `with_answer`, and the probe judges before the answer."
            )
        if (other := self._other_states(capability)) is not None:
            raise ConfigurationError(
                f"This probe was trained on {other[0]}; model '{model.name}' gives {other[1]}. These are other numbers "
                "to it. Train one on what this model gives, with `confcascade train-probe`."
            )
        fingerprint = getattr(model, "fingerprint", None)
        if (capability.hidden_size, fingerprint) != (self.card.hidden_size, self.card.fingerprint):
            raise ConfigurationError(
                f"This probe was trained for model '{self.card.model}' (fingerprint {self.card.fingerprint}, "
                f"{self.card.hidden_size} dimensions); the stage's model is '{model.name}' (fingerprint {fingerprint}, "
                f"{capability.hidden_size} dimensions). Another chat template, precision or quantisation is another "
                "model to it. Train one with `confcascade train-probe`."
            )

    def _other_states(self, capability: Capability) -> tuple[str, str] | None:
        """What hidden states the probe was trained on and what a model gives, if they differ in kind."""
        card, layer = self.card, self.card.layer
        if card.engine != capability.engine:
            return f"hidden states {_giver(card.engine)}", f"them {_giver(capability.engine)}"
        if capability.engine and layer not in capability.served_layers:
            given = ", ".join(map(str, capability.served_layers))
            return f"block {layer}", f"block {given} of {capability.layers} only"
        if card.normalised != (normalised := is_normalised(capability, layer)):
            return f"states {_place(card.normalised)}", f"them {_place(normalised)}"
        return None

    def identity(self) -> Mapping[str, Any]:
        digest = hashlib.sha256()
        for key in sorted(self._weights):
            digest.update(self._weights[key].tobytes())
        return {"signal": "KnowledgeProbe", "layer": self.card.layer, "weights": digest.hexdigest()}

    def score(self, evidence: Evidence) -> Measurement:
        import numpy as np

        source = evidence.response if self._later else evidence.prefilled
        state = source.hidden_states.get(self.card.layer) if source else None
        if state is None:
            raise SignalUnavailableError(f"the hidden state of layer {self.card.layer} was not given")
        if not np.isfinite(state).all():  # an overflow in half precision, say
            raise SignalUnavailableError(f"the hidden state of layer {self.card.layer} is not finite")
        return Measurement(float(self.predict(state[None])[0]))

    # ------------------------------------------------------------------ as an estimator

    def predict(self, hidden: ArrayLike) -> NDArray[np.float64]:
        """P(IK) of hidden states of shape (n, hidden_size): probabilities of shape (n,)."""
        import numpy as np

        x = np.asarray(hidden, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.card.hidden_size:
            raise ConfigurationError(f"`hidden` must have shape (n, {self.card.hidden_size}). Got {x.shape}.")
        return predict(self._weights, x)

    @classmethod
    def fit(
        cls,
        model: LanguageModel,
        hidden: ArrayLike,
        correct: Sequence[bool],
        *,
        layer: int | float = 0.75,
        groups: Sequence[str] | None = None,
        hidden_layers: Sequence[int] = NETWORK,
        balanced: bool = False,
        max_epochs: int = 300,
        patience: int = 20,
        seed: int = 0,
    ) -> KnowledgeProbe:
        """Train a probe on what `model` knew.

        Args:
            model: The model that the hidden states come from.
            hidden: Hidden states of the last prompt token, shape (n, hidden_size).
            correct: Whether the model's answer was right, shape (n,).
            layer: Where the hidden states come from: a relative depth (float) or a block (int).
            groups: What must not be shared by the parts (the fact behind a question, say); by default every row is its
                own.
            hidden_layers: Widths of the hidden layers; none makes a linear probe, a logistic regression.
            balanced: Whether right and wrong answers weigh the same in training (see `fit_weights`).
            max_epochs: Most passes over the training part.
            patience: Epochs without a lower validation loss after which training ends.
            seed: Of the split and the weights.

        Returns:
            The probe with the least validation loss; its `card` tells how well it does on the part never seen.

        Raises:
            ConfigurationError: If there are too few rows, of one class only, or with values that are not finite, or if
                the model cannot be told from others.
        """
        if max_epochs < 1:
            raise ConfigurationError(f"`max_epochs` must be at least 1. Got {max_epochs}.")
        x, y = checked_states(model, hidden, correct)
        block = resolve_layer(layer, model.capability.layers)
        parts = _split(len(x), groups, seed)
        check_parts(y, parts)
        train, validation, _ = parts
        weights, epochs = fit_weights(
            x,
            y,
            train,
            validation,
            hidden_layers=hidden_layers,
            balanced=balanced,
            max_epochs=max_epochs,
            patience=patience,
            seed=seed,
        )
        return cls.of_weights(model, weights, x, y, parts, layer=block, epochs=epochs, seed=seed, balanced=balanced)

    @classmethod
    def of_weights(
        cls,
        model: LanguageModel,
        weights: Weights,
        hidden: NDArray[np.float32],
        correct: NDArray[np.bool_],
        parts: ProbeSplit,
        *,
        layer: int,
        epochs: int,
        seed: int,
        balanced: bool,
    ) -> KnowledgeProbe:
        """A probe of fitted weights, with a card of how well it does on the validation and the test part.

        Args:
            model: The model that the hidden states come from.
            weights: By `fit_weights`.
            hidden: Shape (n, hidden_size).
            correct: Shape (n,).
            parts: Rows for training, validation and test.
            layer: The block that the hidden states come from.
            epochs: Of the fit.
            seed: Of the fit.
            balanced: Of the fit.
        """
        from sklearn.metrics import brier_score_loss, roc_auc_score

        capability = model.capability
        if capability.engine and layer not in capability.served_layers:
            raise ConfigurationError(
                f"The server of model '{model.name}' gives the hidden states of block "
                f"{', '.join(map(str, capability.served_layers))}, of {capability.layers}. Got `layer` {layer}."
            )
        train, validation, test = parts
        card = ProbeCard(
            model=model.name,
            fingerprint=fingerprint_of(model),
            layer=layer,
            hidden_size=hidden.shape[1],
            examples=(len(train), len(validation), len(test)),
            base_rate=float(correct.mean()),
            auroc=(0.0, 0.0),
            brier=0.0,
            epochs=epochs,
            seed=seed,
            balanced=balanced,
            engine=capability.engine,
            normalised=is_normalised(capability, layer),
        )
        blank = cls(card, weights)
        p = {part: blank.predict(hidden[rows]) for part, rows in (("validation", validation), ("test", test))}
        auroc = (
            float(roc_auc_score(correct[validation], p["validation"])),
            float(roc_auc_score(correct[test], p["test"])),
        )
        brier = float(brier_score_loss(correct[test], p["test"]))
        return cls(replace(card, auroc=auroc, brier=brier), weights)

    # ------------------------------------------------------------------ on disk

    def save(self, folder: str | Path) -> None:
        """Write ``probe.json`` and ``probe.safetensors`` into `folder`; nothing that executes."""
        from safetensors.numpy import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file(self._weights, path / "probe.safetensors")
        (path / "probe.json").write_text(json.dumps({"format": FORMAT, **asdict(self.card)}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, *, with_answer: bool = False) -> KnowledgeProbe:
        """Read a saved probe.

        Args:
            folder: As of `save`.
            with_answer: Whether it judges after the answer (`with_answer`).

        Raises:
            ConfigurationError: If the folder holds none, a damaged one, or one of an unknown format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(folder)
        try:
            card = json.loads((path / "probe.json").read_text())
            version = card.pop("format", None)
            weights = load_file(path / "probe.safetensors")
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"'{path}' holds no probe: {error.filename or error} is missing. KnowledgeProbe.save writes one."
            ) from error
        except (ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise _damaged(path, error) from error
        if version != FORMAT:
            raise ConfigurationError(f"'{path}' holds a probe of another format; this version reads format {FORMAT}.")
        try:
            card["examples"], card["auroc"] = tuple(card["examples"]), tuple(card["auroc"])
            probe = cls(ProbeCard(**card), weights)
        except (KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        return probe.with_answer() if with_answer else probe


def _giver(engine: str) -> str:
    return f'from a server ("{engine}")' if engine else "of a model in the same process"


def _place(normalised: bool) -> str:
    return "behind the final norm" if normalised else "before any final norm"


def _damaged(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The probe in '{path}' is damaged ({type(error).__name__}: {error}). Save it again, or train a new one."
    )


def _split(n: int, groups: Sequence[str] | None, seed: int) -> ProbeSplit:
    """Rows for training, validation and test, 80/10/10 by group."""
    import numpy as np

    names = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(names) != n:
        raise ConfigurationError(f"`groups` must name one group for each of the {n} rows. Got {len(names)}.")
    count = int(names.max()) + 1 if n else 0
    if count < 30:
        raise ConfigurationError(f"A probe needs at least 30 examples (of different groups). Got {count}.")
    order = np.random.default_rng(seed).permutation(count)
    held = max(3, count // 10)
    test, validation, train = np.split(order, [held, 2 * held])
    rows = tuple(np.flatnonzero(np.isin(names, part)) for part in (train, validation, test))
    return rows[0], rows[1], rows[2]
