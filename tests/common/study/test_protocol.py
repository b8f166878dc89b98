import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from common.errors import ProtocolError
from common.study.protocol import (
    PreprocessingOptions,
    StudyProtocol,
    parse_protocol,
    preprocessing_digest,
    read_protocol,
)

ROOT = Path(__file__).parents[3]
DATA: dict[str, Any] = {
    "study": "demo",
    "title": "A study",
    "expires": "2040-12-31",
    "rounds": 2,
    "training": {"local_steps": 1, "learning_rate": 0.1},
    "aggregation": {"quorum": 2},
    "privacy": {},
}
DIGEST = "4a08fdb23f2feab00b9fcfe56d701f242ad919d8a1f3b6aa7d9995303ed80fd7"
TOML = """\
study = "demo"
title = "A study"
expires = 2040-12-31
rounds = 2
[training]
local_steps = 1
learning_rate = 0.1
[aggregation]
quorum = 2
[privacy]
"""


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    for path, value in changes.items():
        *tables, key = path.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value
    return data


WRONG: dict[str, Any] = {
    "study": "Bad Name",
    "title": "",
    "expires": "soon",
    "rounds": 0,
    "seed": -1,
    "colour": "red",
    "evaluate_every": 0,
    "reports": ["dice", "names"],
    "preprocessing_sha256": "abc",
    "initial_sha256": "abc",
    "network.name": "resnet",
    "network.size": "large",
    "network.depth": 3,
    "preprocessing.spacing_mm": 0.1,
    "preprocessing.margin_mm": -1.0,
    "training.local_steps": 0,
    "training.crop_size": [32, 32],
    "training.optimizer": "lbfgs",
    "training.learning_rate": float("inf"),
    "training.trainable": ["encoder"],
    "training.momentum": 1.0,
    "prediction.overlap": 1.0,
    "prediction.mirrors": ["x", "t"],
    "postprocessing.thresholds": [0.5, 1.0, 0.5],
    "postprocessing.smallest_part_mm3": [1.0],
    "postprocessing.smallest_et_mm3": -1.0,
    "aggregation.quorum": 0,
    "aggregation.rule": "median",
    "aggregation.deadline_s": 0,
    "aggregation.max_update_norm": float("nan"),
    "privacy.mode": "dp",
    "privacy.noise_multiplier": 0,
    "privacy.sampling_rate": 1.5,
    "privacy.nominal_patients": 0,
    "privacy.delta": 1,
    "privacy.clipping_norm": "one",
    "privacy.max_epsilon": 1e9,
}


def test_every_wrong_key_and_value_is_named_in_one_pass() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_protocol(changed(WRONG), source="study.toml")
    said = str(caught.value)
    assert said.startswith("study.toml is not a valid study protocol")
    assert [path for path in WRONG if f"\n  {path}" not in said] == []


@pytest.mark.parametrize("missing", ["study", "title", "expires", "rounds", "training", "privacy"])
def test_a_missing_key_is_named(missing: str) -> None:
    data = {key: value for key, value in DATA.items() if key != missing}
    with pytest.raises(ProtocolError, match=rf"1 problems\):\n  {missing}: is missing"):
        parse_protocol(data, source="study.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network.name": "unet", "network.deep_supervision": True},
            "network: .*unet has no heads",
        ),
        ({"preprocessing.clip_percentiles": [99, 1]}, "preprocessing: .*rising"),
        ({"preprocessing.clip_percentiles": [0, 101]}, "preprocessing: .*rising"),
        ({"training.trainable": []}, "training: .*at least one"),
        ({"training.trainable": ["all", "head"]}, "training: .*either all"),
        ({"training.local": ["all"]}, "training.local.0: "),
        (
            {"training.trainable": ["head"], "training.local": ["norms"]},
            "training: .*not trainable",
        ),
        ({"training.local": ["norms"], "training.personal_lambda": 1.0}, "training: .*whole model"),
        ({"training.proximal_mu": -1.0}, "training.proximal_mu: "),
        ({"aggregation.rule": "scaffold"}, "protocol: .*needs training.optimizer sgd"),
        (
            {"aggregation.rule": "scaffold", "training.optimizer": "sgd"},
            "protocol: .*training.momentum 0",
        ),
        (
            {
                "aggregation.rule": "scaffold",
                "training.optimizer": "sgd",
                "training.momentum": 0.0,
                "training.proximal_mu": 0.1,
            },
            "protocol: .*proximal_mu must be 0",
        ),
        (
            {"aggregation.rule": "fedadam", "training.trainable": ["low_rank"]},
            "protocol: .*low_rank has other axes",
        ),
        (
            {"aggregation.late_rounds": 1, "training.trainable": ["low_rank"]},
            "protocol: .*late_rounds must be 0 with low_rank",
        ),
        ({"aggregation.weights": {"a": -1.0}}, "aggregation.weights.a: "),
        ({"aggregation.weights": {"a b": 1.0}}, "aggregation.weights.a b"),
        ({"aggregation.weights": {"a": float("inf")}}, "aggregation.weights.a: "),
        ({"training.crop_size": [32, 32, 0]}, "training.crop_size.2: "),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        parse_protocol(changed(changes), source="study.toml")


def test_a_personal_model_doubles_the_steps_of_a_round() -> None:
    steps = {
        value: parse_protocol(
            changed({"training.local_steps": 3, "training.personal_lambda": value}), source="x"
        ).training.steps_per_round
        for value in (0.0, 0.5)
    }
    assert steps == {0.0: 3, 0.5: 6}


def test_the_digest_is_that_of_the_meaning() -> None:
    one = parse_protocol(DATA, source="x")
    other = parse_protocol(dict(reversed(changed({"seed": 0}).items())), source="y")
    assert one == other
    assert one.digest == other.digest
    again = parse_protocol(one.model_dump(mode="json"), source="x")
    assert again.digest == one.digest
    assert parse_protocol(changed({"seed": 1}), source="x").digest != one.digest


def test_the_digest_is_stable_over_releases() -> None:
    protocol = parse_protocol(DATA, source="x")
    assert protocol.canonical().startswith(b'{"aggregation":{"buffer":null,"deadline_s":3600.0,')
    assert b" " not in protocol.canonical().replace(b"A study", b"")
    assert protocol.digest == DIGEST


def test_a_protocol_is_frozen_and_private_by_default() -> None:
    protocol = parse_protocol(DATA, source="x")
    assert protocol.private
    assert not parse_protocol(changed({"privacy.mode": "none"}), source="x").private
    with pytest.raises(ValidationError):
        protocol.rounds = 3  # type: ignore[misc]


def test_reports_are_named_once() -> None:
    protocol = parse_protocol(changed({"reports": ["dice", "dice"]}), source="x")
    assert protocol.reports == ("dice",)


def test_the_preprocessing_digest_knows_options_and_algorithm() -> None:
    digests = {
        preprocessing_digest(PreprocessingOptions()),
        preprocessing_digest(PreprocessingOptions(spacing_mm=2.0)),
        preprocessing_digest(PreprocessingOptions(input="raw")),
        preprocessing_digest(PreprocessingOptions(), "other/1"),
    }
    assert len(digests) == 4


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(TOML)
    assert read_protocol(tmp_path / "study.toml") == parse_protocol(DATA, source="x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "Cannot read"),
        (b"study = \n", "is not TOML.*line 1"),
        (b'study = "\xff"', "is not TOML"),
        (b'study = "a"\nstudy = "b"\n', "is not TOML"),
        (TOML.replace("rounds = 2", "rounds = 0").encode(), "rounds: "),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProtocolError, match=rf"(?s){said}") as caught:
        read_protocol(path)
    assert str(path) in str(caught.value)


def written_out(protocol: StudyProtocol) -> set[str]:
    """Return the keys of a protocol, those of its tables with the table's name."""
    names = set()
    for name, value in protocol:
        inner = type(value).model_fields if isinstance(value, BaseModel) else ()
        names |= {f"{name}.{key}" for key in inner} or {name}
    return names


def test_the_demos_protocol_explains_every_key() -> None:
    text = (ROOT / "deploy" / "demo" / "protocol.toml").read_text()
    table, explained = "", set[str]()
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            table = f"{match[1]}."
        elif match := re.match(r"(?:# )?(\w+) = .*", line):
            explained.add(f"{table}{match[1]}")
    missing = written_out(read_protocol(ROOT / "deploy" / "demo" / "protocol.toml")) - explained
    assert missing == {"preprocessing_sha256"}


def test_what_the_demos_protocol_calls_a_default_is_one() -> None:
    text = (ROOT / "deploy" / "demo" / "protocol.toml").read_text()
    before, rules = text.split("# The other rules are")
    after = rules[rules.index("\n\n") :]
    uncommented = re.sub(r"^# (\w+ = )", r"\1", before + after, flags=re.MULTILINE)
    for no_default in ("buffer", "weights"):
        uncommented = re.sub(rf"^{no_default} = .*$", "", uncommented, flags=re.MULTILINE)
    plain = read_protocol(ROOT / "deploy" / "demo" / "protocol.toml")
    assert parse_protocol(tomllib.loads(uncommented), source="defaults") == plain
