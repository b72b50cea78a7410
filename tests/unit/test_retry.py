"""Retry policies: what is refused, what the strategies answer, which errors are retried, what is stored."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from datetime import timedelta

import pytest
import yaml

from pgqueue.core.retry import MAX_RETRIES_MAX, STRATEGIES, Backoff, Retry, backoff_s, wants_retry
from pgqueue.errors import InvalidRetry


def test_the_defaults_are_the_documented_policy():
    policy = Retry()
    assert (policy.max_retries, policy.backoff_strategy) == (5, "exponential_jitter")
    assert (policy.initial_delay_s, policy.max_delay_s, policy.max_attempts) == (2, 300, 6)
    assert (policy.retry_on, policy.give_up_on) == ((), ())
    assert policy == Retry(max_retries=5, initial_delay="2s", max_delay="5m")


def test_a_policy_is_a_frozen_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Retry().max_retries = 7
    assert not hasattr(Retry(), "__dict__")
    assert pickle.loads(pickle.dumps(Retry(max_retries=2))) == Retry(max_retries=2)
    assert pickle.loads(pickle.dumps(Retry(initial_delay="3s"))).initial_delay_s == 3
    assert dataclasses.replace(Retry(), max_delay="1h").max_delay_s == 3_600
    assert hash(Retry()) == hash(Retry())


def test_delays_may_be_text_seconds_or_timedeltas():
    policy = Retry(initial_delay=timedelta(seconds=3), max_delay=90.5)
    assert (policy.initial_delay_s, policy.max_delay_s) == (3, 90.5)


async def a_coroutine(attempt):
    return 1


@pytest.mark.proves("I42", "I18")
@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"max_retries": -1}, "max_retries", "0–1000"),
        ({"max_retries": MAX_RETRIES_MAX + 1}, "max_retries", "0–1000"),
        ({"max_retries": 2**31}, "max_retries", "0–1000"),
        ({"max_retries": True}, "max_retries", "not bool"),
        ({"max_retries": 1.5}, "max_retries", "not float"),
        ({"max_retries": "5"}, "max_retries", "not str"),
        ({"max_retries": None}, "max_retries", "not NoneType"),
        ({"backoff_strategy": "exponental"}, "backoff_strategy", "did you mean 'exponential'"),
        ({"backoff_strategy": "zebra"}, "backoff_strategy", "known are exponential_jitter"),
        ({"backoff_strategy": ""}, "backoff_strategy", "not a known strategy"),
        ({"backoff_strategy": 3}, "backoff_strategy", "not int"),
        ({"backoff_strategy": None}, "backoff_strategy", "not NoneType"),
        ({"backoff_strategy": a_coroutine}, "backoff_strategy", "async def"),
        ({"initial_delay": "5"}, "initial_delay", 'write "5s"'),
        ({"initial_delay": -1}, "initial_delay", "negative"),
        ({"initial_delay": math.nan}, "initial_delay", "finite"),
        ({"initial_delay": True}, "initial_delay", "not bool"),
        ({"max_delay": math.inf}, "max_delay", "finite"),
        ({"max_delay": "600w"}, "max_delay", "too long"),
        ({"max_delay": "1s"}, "max_delay", "shorter than initial_delay"),
        ({"initial_delay": "6m"}, "max_delay", "shorter than initial_delay"),
        ({"retry_on": (int,)}, "retry_on", "int is not an exception class"),
        ({"retry_on": (7,)}, "retry_on", "not int"),
        ({"retry_on": 7}, "retry_on", "must be a tuple"),
        ({"give_up_on": ("not a name",)}, "give_up_on", "no exception name"),
        ({"give_up_on": ("",)}, "give_up_on", "no exception name"),
        ({"give_up_on": ("ValueError\n",)}, "give_up_on", "no exception name"),
        ({"give_up_on": tuple(f"E{n}" for n in range(101))}, "give_up_on", "too many"),
        ({"retry_on": (ValueError, KeyError), "give_up_on": (KeyError,)}, "retry_on", "builtins.KeyError, and so does"),
    ],
)  # fmt: skip
def test_a_policy_that_contradicts_itself_is_refused(options, field, says):
    with pytest.raises(InvalidRetry, match=says) as refused:
        Retry(**options)
    assert refused.value.field == field


@pytest.mark.proves("I42")
@pytest.mark.parametrize("max_retries", [0, 1, MAX_RETRIES_MAX])
def test_the_number_of_retries_at_its_limits(max_retries):
    assert Retry(max_retries=max_retries).max_attempts == max_retries + 1


def test_a_hundred_exceptions_may_be_listed():
    names = tuple(f"E{n}" for n in range(100))
    assert Retry(give_up_on=names).give_up_on == names


def test_one_exception_may_stand_without_a_tuple():
    assert Retry(retry_on=ValueError).retry_on == (ValueError,)
    assert Retry(give_up_on="CardDeclined").give_up_on == ("CardDeclined",)
    assert Retry(retry_on=[ValueError]).retry_on == (ValueError,)


@pytest.mark.parametrize(
    ("strategy", "failures", "random_unit", "delay_s"),
    [
        ("exponential", 1, 0.5, 2),
        ("exponential", 2, 0.5, 4),
        ("exponential", 8, 0.5, 256),
        ("exponential", 9, 0.5, 300),
        ("linear", 1, 0.5, 2),
        ("linear", 3, 0.5, 6),
        ("linear", 151, 0.5, 300),
        ("constant", 1, 0.5, 2),
        ("constant", 9, 0.5, 2),
        ("exponential_jitter", 1, 0.0, 1),
        ("exponential_jitter", 1, 0.5, 1.5),
        ("exponential_jitter", 3, 0.0, 4),
        ("exponential_jitter", 3, 0.75, 7),
        ("exponential_jitter", 50, 0.0, 150),
        ("exponential_jitter", 50, 0.5, 225),
        ("exponential_jitter", 0, 0.0, 1),
    ],
)
def test_each_strategy_follows_its_formula(strategy, failures, random_unit, delay_s):
    assert backoff_s(Retry(backoff_strategy=strategy), failures, random_unit) == Backoff(delay_s, None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("failures", [10_000, 10**100])
def test_no_number_of_failures_overflows(strategy, failures):
    policy = Retry(backoff_strategy=strategy, initial_delay="1ms", max_delay="520w")
    assert 0 < backoff_s(policy, failures, 0.999).delay_s <= policy.max_delay_s


def test_a_zero_delay_stays_zero():
    for strategy in STRATEGIES:
        assert backoff_s(Retry(backoff_strategy=strategy, initial_delay=0), 9, 0.9).delay_s == 0


def test_a_function_decides_within_the_cap():
    assert backoff_s(Retry(backoff_strategy=lambda n: n * 10), 3, 0) == Backoff(30, None)
    assert backoff_s(Retry(backoff_strategy=lambda n: "1m"), 3, 0) == Backoff(60, None)
    assert backoff_s(Retry(backoff_strategy=lambda n: timedelta(minutes=2)), 3, 0) == Backoff(120, None)
    assert backoff_s(Retry(backoff_strategy=lambda n: 1e15), 3, 0) == Backoff(300, None)


def raising(attempt):
    raise ValueError("hunter2")


@pytest.mark.proves("I42")
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raising, "raised ValueError"),
        (lambda n: n / 0, "raised ZeroDivisionError"),
        (lambda: 1, "raised TypeError"),
        (lambda n: math.nan, "finite"),
        (lambda n: math.inf, "finite"),
        (lambda n: -1, "negative"),
        (lambda n: None, "not NoneType"),
        (lambda n: "5", "no unit"),
        (lambda n: True, "not bool"),
    ],
)
def test_a_function_that_misbehaves_is_replaced_by_the_default_and_reported(function, says):
    backoff = backoff_s(Retry(backoff_strategy=function), 3, 0.5)
    assert backoff.delay_s == backoff_s(Retry(), 3, 0.5).delay_s
    assert says in backoff.warning
    assert "exponential_jitter instead" in backoff.warning
    assert "hunter2" not in backoff.warning


class Declined(Exception):
    pass


class HardDeclined(Declined):
    pass


QUALIFIED = f"{Declined.__module__}.Declined"


@pytest.mark.parametrize(
    ("options", "error", "wanted"),
    [
        ({}, ValueError(), True),
        ({}, KeyboardInterrupt(), True),
        ({"retry_on": (OSError,)}, ConnectionError(), True),
        ({"retry_on": (OSError,)}, ValueError(), False),
        ({"retry_on": ("OSError",)}, ConnectionError(), True),
        ({"retry_on": ("builtins.OSError",)}, ConnectionError(), True),
        ({"retry_on": ("other.OSError",)}, ConnectionError(), False),
        ({"give_up_on": (Declined,)}, HardDeclined(), False),
        ({"give_up_on": ("Declined",)}, HardDeclined(), False),
        ({"give_up_on": (QUALIFIED,)}, HardDeclined(), False),
        ({"give_up_on": ("HardDeclined",)}, Declined(), True),
        ({"give_up_on": ("declined",)}, Declined(), True),
        ({"retry_on": (Declined,), "give_up_on": (HardDeclined,)}, HardDeclined(), False),
        ({"retry_on": (Declined,), "give_up_on": (HardDeclined,)}, Declined(), True),
        ({"retry_on": (HardDeclined,), "give_up_on": (Declined,)}, HardDeclined(), False),
        ({"give_up_on": (Declined,)}, ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Declined()])]), False),
        ({"retry_on": (Declined,)}, ExceptionGroup("g", [ValueError(), Declined()]), True),
        ({"retry_on": (Declined,)}, ExceptionGroup("g", [ValueError()]), False),
        ({"give_up_on": (Declined,)}, ExceptionGroup("g", [Declined()] + [ValueError()] * 5_000), False),
        ({"give_up_on": (ExceptionGroup,)}, ExceptionGroup("g", [ValueError()]), False),
        ({"give_up_on": ("Exception",)}, ValueError(), False),
    ],
)  # fmt: skip
def test_which_errors_are_tried_again(options, error, wanted):
    assert wants_retry(Retry(**options), error) is wanted


SEED_YAML = """
retry_policy:
  max_retries: 5
  backoff_strategy: exponential_jitter
  initial_delay: 2s
  max_delay: 5m
"""


def test_the_yaml_of_the_domain_is_the_default_policy():
    assert Retry.from_mapping(yaml.safe_load(SEED_YAML)["retry_policy"], where="retry_policy") == Retry()


def test_a_table_may_name_exceptions():
    table = {"max_retries": 2, "retry_on": ["TimeoutError"], "give_up_on": ["shop.errors.Declined"]}
    policy = Retry.from_mapping(table, where="r")
    assert wants_retry(policy, TimeoutError())
    assert not wants_retry(policy, ValueError())
    assert Retry.from_mapping({}, where="r") == Retry()


@pytest.mark.proves("I35", "I42")
@pytest.mark.parametrize(
    ("table", "field", "says"),
    [
        ({"max_retrys": 3}, "queues.pay.retry.max_retrys", "did you mean 'max_retries'"),
        ({"zebra": 3}, "queues.pay.retry.zebra", "known keys are"),
        ({7: 3}, "queues.pay.retry.7", "not a key"),
        ({"initial_delay_s": 3}, "queues.pay.retry.initial_delay_s", "did you mean 'initial_delay'"),
        ({"initial_delay": 30}, "queues.pay.retry.initial_delay", 'such as "30s"'),
        ({"max_delay": 30.5}, "queues.pay.retry.max_delay", 'such as "30s"'),
        ({"max_delay": "30"}, "queues.pay.retry.max_delay", 'write "30s"'),
        ({"max_retries": "3"}, "queues.pay.retry.max_retries", "not str"),
        ({"max_retries": True}, "queues.pay.retry.max_retries", "not bool"),
        ({"backoff_strategy": 3}, "queues.pay.retry.backoff_strategy", "must be one of"),
        ({"backoff_strategy": len}, "queues.pay.retry.backoff_strategy", "must be one of"),
        ({"retry_on": "TimeoutError"}, "queues.pay.retry.retry_on", "must be a list"),
        ({"give_up_on": {"a": 1}}, "queues.pay.retry.give_up_on", "must be a list"),
        ({"give_up_on": [1]}, "queues.pay.retry.give_up_on", "not int"),
        (None, "queues.pay.retry", "must be a table"),
        ([], "queues.pay.retry", "must be a table"),
    ],
)
def test_a_wrong_table_is_refused_with_the_full_name_of_the_key(table, field, says):
    with pytest.raises(InvalidRetry, match=says) as refused:
        Retry.from_mapping(table, where="queues.pay.retry")
    assert refused.value.field == field


def test_what_is_stored_with_a_job_reads_back():
    policy = Retry(
        max_retries=3, backoff_strategy="linear", initial_delay="250ms", retry_on=(OSError, "Declined"), give_up_on=(HardDeclined,)
    )  # fmt: skip
    stored = json.loads(json.dumps(policy.to_json()))
    again = Retry.from_json(stored)
    assert (again.max_retries, again.backoff_strategy) == (3, "linear")
    assert (again.initial_delay_s, again.max_delay_s) == (0.25, 300)
    assert again.to_json() == stored
    for error in (ConnectionError(), Declined(), HardDeclined(), ValueError()):
        assert wants_retry(again, error) is wants_retry(policy, error)


def test_a_class_inside_a_function_can_be_stored_by_name():
    class Local(Exception):
        pass

    again = Retry.from_json(Retry(give_up_on=(Local,)).to_json())
    assert not wants_retry(again, Local())


@pytest.mark.proves("I42")
def test_a_function_cannot_be_stored_with_a_job():
    with pytest.raises(InvalidRetry, match="cannot be stored") as refused:
        Retry(backoff_strategy=lambda n: 1).to_json()
    assert refused.value.field == "backoff_strategy"


@pytest.mark.proves("P21")
@pytest.mark.parametrize(
    "stored", [None, [], 7, {"zebra": 1}, {"max_retries": -1}, {"initial_delay_s": "x"}, {"retry_on": 7}, {"max_delay_s": None}]
)  # fmt: skip
def test_a_stored_policy_that_is_not_ours_is_refused_and_nothing_else(stored):
    with pytest.raises(InvalidRetry):
        Retry.from_json(stored)
