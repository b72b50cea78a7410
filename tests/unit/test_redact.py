"""Redaction: the canary never survives, ordinary words do, and hostile text costs little time."""

from __future__ import annotations

import json
import time
from collections import OrderedDict

import pytest

from pgqueue.core.redact import DEFAULT_NAMES, MASK, Redactor
from pgqueue.errors import InvalidOption

CANARY = "hunter2-5f0c"
REDACT = Redactor()


@pytest.mark.proves("S6", "S7")
@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://app:{CANARY}@db.internal:5432/rides",
        f"postgresql+psycopg://app:p@ss:{CANARY}@db/rides",
        f"redis://:{CANARY}@cache",
        f"two: postgres://a:{CANARY}@h1/x postgres://b:{CANARY}@h2/y",
        f"postgresql://a:{'x' * 3000}{CANARY}@h1/x",
        f"host=db password={CANARY} dbname=rides",
        f"password='{CANARY} with \\' quote {CANARY}' dbname=rides",
        f'PASSWORD = "{CANARY}"',
        f"db_password: {CANARY}",
        f"PGPASSWORD={CANARY} psql",
        f"password => {CANARY}",
        f"password={'x' * 6000}{CANARY}",
        f"password='{'x' * 6000}{CANARY}'",
        f"password='never closed {CANARY}",
        f"{{'password': '{CANARY}', 'a': 1}}",
        f"{{'password': b'{CANARY}'}}",
        f"{{b'password': b'{CANARY}'}}",
        json.dumps({"a": 1, "password": CANARY}),
        json.dumps({"password": f'with " quote {CANARY}'}),
        json.dumps(json.dumps({"password": f"nested {CANARY}"})),
        json.dumps({"password": ["x", CANARY]}),
        f"password=('{CANARY}', 2)",
        f"Authorization: Bearer {CANARY}",
        f"authorization: Basic {CANARY}",
        f'Authorization: Digest username="u", response="{CANARY}"',
        f"{{'Authorization': 'Basic {CANARY}'}}",
        f"sent bearer {CANARY} to the api",
        f"Cookie: theme=dark; session={CANARY}",
        f"Set-Cookie: session={CANARY}; Path=/",
        f"https://api.example/x?access_token={CANARY}&page=2",
        f"X-Api-Key: {CANARY}",
        f"apiKey={CANARY}",
        f"accessToken={CANARY}",
        f"client_secret={CANARY}",
        f"card={CANARY}",
        f"card_number={CANARY}",
        f"cardNumber={CANARY}",
        f"creditCard={CANARY}",
        f"cvv: {CANARY}",
        f"IBAN={CANARY}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n{'x' * 30_000}{CANARY}",
        f"private_key={CANARY}",
        f"private-key: {CANARY}",
    ],
)
def test_a_secret_never_survives(text):
    masked = REDACT.text(text)
    assert CANARY not in masked
    assert MASK in masked
    assert REDACT.text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        'password authentication failed for user "app"',
        "connection to db:5432 failed",
        "http://host:8080/path is down",
        "discard=true cardinality=7 wildcard: x",
        "the bearer of news",
        "duplicate key value violates unique constraint",
        "ride_id=7 amount_cents=1250",
        "email a@b.example, see https://example.org/a",
        "token=",
        "postgresql://app:@db/rides",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert REDACT.text(text) == text


def test_what_stands_around_a_secret_stays_readable():
    assert REDACT.text("postgresql://app:x@db:5432/rides?a=1") == "postgresql://app:***@db:5432/rides?a=1"
    assert REDACT.text("host=db password=x dbname=rides") == "host=db password=*** dbname=rides"
    assert REDACT.text("?token=x&page=2") == "?token=***&page=2"
    assert REDACT.text("Cookie: a=b; c=d\nHost: x") == "Cookie: ***\nHost: x"


def test_masked_json_is_still_json():
    document = {"password": 'a "quoted" one', "n": {"token": "x"}, "rest": [1]}
    assert json.loads(REDACT.text(json.dumps(document))) == {
        "password": MASK,
        "n": {"token": MASK},
        "rest": [1],
    }


@pytest.mark.proves("S6")
@pytest.mark.parametrize("name", DEFAULT_NAMES)
def test_every_default_name_masks_a_field_and_text(name):
    for spelled in (name, name.upper(), f"my_{name}", f"{name}_x"):
        assert REDACT.is_sensitive(spelled)
        assert REDACT.mapping({spelled: CANARY}) == {spelled: MASK}
        assert CANARY not in REDACT.text(f"{spelled}={CANARY}")


@pytest.mark.proves("S6")
@pytest.mark.parametrize("name", ["passport_no", "passportNo", "passport-no", "PASSPORT NO"])
def test_extra_names_are_masked_in_every_spelling(name):
    redact = Redactor([name])
    for spelled in ("passport_no", "passportNo", "PassportNo", "X-Passport-No"):
        assert redact.is_sensitive(spelled)
        assert CANARY not in redact.text(f"{spelled}={CANARY}")
        assert not REDACT.is_sensitive(spelled)
    assert redact.is_sensitive("password")


@pytest.mark.parametrize("names", [[""], ["a\nb"], ["(.*)"], ["x" * 64], [7], [None], ["é"], "password"])
def test_a_name_that_is_none_is_refused(names):
    with pytest.raises(InvalidOption) as refused:
        Redactor(names)
    assert refused.value.field == "redact"


@pytest.mark.proves("S6")
def test_a_mapping_is_masked_at_any_depth_and_left_unchanged():
    original = OrderedDict(
        {
            "ride_id": 7,
            "card": {"number": CANARY, "cvv": CANARY},
            "riders": [{"name": "Ada", "apiKey": CANARY}, ("x", {"secret": CANARY})],
            "dsn": f"postgresql://u:{CANARY}@h/db",
            "discard": "yes",
            "none": None,
            3: "three",
        }
    )
    masked = REDACT.mapping(original)
    assert masked == {
        "ride_id": 7,
        "card": MASK,
        "riders": [{"name": "Ada", "apiKey": MASK}, ["x", {"secret": MASK}]],
        "dsn": "postgresql://u:***@h/db",
        "discard": "yes",
        "none": None,
        3: "three",
    }
    assert original["card"]["cvv"] == CANARY


def test_a_mapping_that_contains_itself_ends_in_the_mask():
    loop = {"a": 1}
    loop["self"] = loop
    value = REDACT.mapping(loop)
    for _ in range(63):
        assert value["a"] == 1
        value = value["self"]
    assert value["self"] == MASK


def test_a_list_that_contains_itself_ends_in_the_mask():
    loop = [1]
    loop.append(loop)
    value = REDACT.mapping({"loop": loop})["loop"]
    for _ in range(63):
        assert value[0] == 1
        value = value[1]
    assert value == MASK


@pytest.mark.proves("P21", "I6")
@pytest.mark.parametrize(
    "piece",
    [
        "a", "\\", "'", "password", "password=", "password='", 'password=\\"', "password=[", "password" + "a" * 39,
        "card", "bearer ", "cookie: '", "-----BEGIN PRIVATE KEY-----", "://a:", "://a:@", "a://", "://", "=:", "api_",
        "token token ", "authorization:\t",
    ],
)  # fmt: skip
def test_hostile_text_costs_time_in_proportion_to_its_length(piece):
    def spent_s(length: int) -> float:
        text = piece * (length // len(piece))
        best = float("inf")
        for _ in range(3):
            started = time.thread_time()
            REDACT.text(text)
            best = min(best, time.thread_time() - started)
        return best

    short_s, long_s = spent_s(16_384), spent_s(131_072)
    # Eight times the text; a quadratic pattern takes 64 times as long, and seconds rather than milliseconds.
    assert long_s < max(32 * short_s, 0.25)
