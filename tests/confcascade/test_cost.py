from __future__ import annotations

import json
import math

import pytest
from confcascade import Architecture, ConfigurationError, Cost, Prices, Usage
from confcascade.cost import attempt_cost, break_even_retention, chain_cost, forward_flops, stopped_flops
from confcascade.extending import Prefilled
from hypothesis import given
from hypothesis import strategies as st

architectures = st.builds(Architecture, st.integers(1, 10**12), st.integers(1, 200), st.integers(1, 20_000))


@given(architecture=architectures, p=st.integers(0, 300), o=st.integers(0, 300))
def test_flops_are_the_sum_over_tokens(architecture: Architecture, p: int, o: int):
    """The closed form is equation 2, summed token by token with each token's own context."""
    total = 0
    for context in range(1, p + o + 1):
        total += 2 * architecture.parameters + 2 * architecture.layers * context * architecture.hidden_size

    assert forward_flops(architecture, Usage(p, o)) == pytest.approx(total, rel=1e-12)


@given(architecture=architectures, p=st.integers(0, 300), o=st.integers(1, 300))
def test_a_token_more_costs_more(architecture: Architecture, p: int, o: int):
    """Every token has a price in FLOPs, and the later one costs at least as much."""
    first = forward_flops(architecture, Usage(p, o)) - forward_flops(architecture, Usage(p, o - 1))
    second = forward_flops(architecture, Usage(p, o + 1)) - forward_flops(architecture, Usage(p, o))

    assert first > 0
    assert second >= first * (1 - 1e-6)


@given(
    block=st.integers(1, 6), layers=st.integers(1, 6), in_block=st.integers(1, 10**9), outside=st.integers(0, 10**9),
    p=st.integers(0, 60), further=st.integers(0, 60),
)  # fmt: skip
def test_a_pass_that_ended_is_charged_block_by_block(
    block: int, layers: int, in_block: int, outside: int, p: int, further: int
):
    """Each block that was run takes its weights and its attention; what came after the pass is charged whole."""
    block = min(block, layers)
    architecture = Architecture(in_block * layers + outside, layers, 64, outside)
    stopped = 0
    for context in range(1, p + 1):
        for _ in range(block):
            stopped += 2 * in_block + 2 * context * architecture.hidden_size
    rest = sum(2 * architecture.parameters + 2 * layers * c * 64 for c in range(p + 1, p + further + 1))

    assert stopped_flops(architecture, p, block / layers) == pytest.approx(stopped, rel=1e-12)
    read = Prefilled(Usage(p), depth=block / layers)
    cost = attempt_cost(Usage(p, further), 1.0, architecture, Prices(1, 2), read)
    assert cost.flops == pytest.approx(stopped + rest, rel=1e-12)
    assert (cost.tokens, cost.usd) == (p + further, pytest.approx((p + 2 * further) / 1e6))
    whole = attempt_cost(Usage(p, further), 1.0, architecture, None, Prefilled(Usage(p)))
    assert whole.flops == forward_flops(architecture, Usage(p, further))
    assert attempt_cost(Usage(p), 1.0, None, None, read).flops is None


amounts = st.none() | st.floats(0, 1e15)
costs = st.builds(Cost, amounts, st.integers(0, 10**9), amounts, st.floats(0, 1e6))


@given(a=costs, b=costs)
def test_costs_add_up(a: Cost, b: Cost):
    """Each figure is added to its like; what is unknown in one is unknown in the sum, never zero."""
    both = a + b

    assert both.tokens == a.tokens + b.tokens
    assert both.seconds == a.seconds + b.seconds
    for name in ("flops", "usd"):
        x, y = getattr(a, name), getattr(b, name)
        assert getattr(both, name) == (None if x is None or y is None else x + y)
    assert sum([a], Cost()) == a


def test_an_attempt_costs_what_its_tokens_cost():
    """Prices are per million tokens, input and output apart."""
    cost = attempt_cost(Usage(2_000, 500), 1.5, Architecture(1000, 2, 10), Prices(input_usd=0.15, output_usd=0.60))

    assert cost.usd == pytest.approx(2_000 * 0.15e-6 + 500 * 0.60e-6)
    assert cost.tokens == 2_500
    assert cost.seconds == 1.5
    assert cost.flops == forward_flops(Architecture(1000, 2, 10), Usage(2_000, 500))


def test_a_prompt_that_was_read_apart_is_charged_twice():
    """Each reading with its own context: one of twice the length would have another attention."""
    size, read, answer = Architecture(1000, 2, 10), Usage(300, 1), Usage(300, 20)
    apart = Prefilled(read, apart=True)

    cost = attempt_cost(read + answer, 1.0, size, Prices(1.0, 2.0), apart)

    assert cost.flops == forward_flops(size, read) + forward_flops(size, answer)
    assert cost.usd == pytest.approx((600 + 2 * 21) / 1e6)
    assert attempt_cost(read, 1.0, size, None, apart).flops == forward_flops(size, read)


def test_what_is_unknown_is_none():
    """Without an architecture there are no FLOPs, without prices no dollars; neither is made up."""
    cost = attempt_cost(Usage(10, 10), 0.0, None, None)

    assert (cost.flops, cost.usd) == (None, None)
    assert json.loads(json.dumps(cost.as_dict())) == {"flops": None, "tokens": 20, "usd": None, "seconds": 0.0}


def test_prices_may_be_zero():
    """A model that costs nothing has a price of 0, not an unknown one."""
    assert attempt_cost(Usage(10, 10), 0.0, None, Prices(0, 0.0)).usd == 0.0


@pytest.mark.parametrize("wrong", [-0.01, math.nan, math.inf, "0.15", None, True], ids=str)
@pytest.mark.parametrize("name", ["input_usd", "output_usd"])
def test_a_price_that_is_none_is_refused(name: str, wrong: object):
    """Negative, infinite, undefined and non-numeric prices are refused by name, with what was given."""
    with pytest.raises(ConfigurationError) as raised:
        Prices(**{"input_usd": 1.0, "output_usd": 1.0, name: wrong})  # type: ignore[arg-type]

    assert f"`{name}`" in str(raised.value)
    assert f"Got {wrong!r}" in str(raised.value)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=5))
def test_a_chain_is_the_sum_of_its_queries(stages: list[tuple[int, int]]):
    """Query by query: all stages up to the one that answers, and that one alone."""
    kept, cost = zip(*stages, strict=True)
    every = sum(k * sum(cost[: j + 1]) for j, k in enumerate(kept))
    answering = sum(k * c for k, c in stages)

    assert chain_cost(kept, cost) == (every, answering)


def test_break_even_is_where_two_stages_cost_as_much_as_one():
    """At that retention the cascade's cost is the large model's."""
    r = break_even_retention(3, 8)

    assert chain_cost([r, 1 - r], [3, 8])[0] == pytest.approx(8)
    with pytest.raises(ValueError, match="`large` above 0"):
        break_even_retention(3, 0)


def test_what_came_from_a_cache_has_its_own_price():
    """Of 1,000 input tokens 900 were cached: billed at a tenth where that price is known, else in full."""
    usage = Usage(1_000, 0, input_details={"cache_read": 900})

    assert Prices(1.0, 2.0).of(usage) == pytest.approx(1_000 / 1e6)
    assert Prices(1.0, 2.0, 0.1).of(usage) == pytest.approx((100 + 90) / 1e6)
    assert Prices(1.0, 2.0, 0.1).of(Usage(1_000, 0)) == Prices(1.0, 2.0).of(Usage(1_000, 0))


def test_details_of_usage_add_up():
    total = Usage(5, 5, input_details={"cache_read": 2}) + Usage(
        1, 1, input_details={"cache_read": 1, "audio": 1}, output_details={"reasoning": 1}
    )

    assert total == Usage(6, 6, input_details={"cache_read": 3, "audio": 1}, output_details={"reasoning": 1})
    assert "output_details" not in Usage(1, 1).as_dict()
