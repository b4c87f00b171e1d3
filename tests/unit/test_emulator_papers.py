"""What docs/local-services.md says of the Cloud Tasks emulator's faults is so."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from forkjoin_gcp.emulators.cloud_tasks.faults import FaultSettings, settings_of

PAPER = (Path(__file__).parents[2] / "docs" / "local-services.md").read_text("utf-8")
TABLE = PAPER.partition("| fault |")[2].partition("\n\n")[0]


def test_the_faults_that_are_told_are_those_there_are() -> None:
    told = re.findall(r"^\| `(\w+)`", TABLE, re.MULTILINE)
    assert told == [field.name for field in dataclasses.fields(FaultSettings)]


def test_the_examples_are_taken() -> None:
    (sent,) = re.findall(r"-d '(\{.*\})'", PAPER)
    rows = re.findall(r"^\| `(\w+)` \| `(\{.*?\})`:", TABLE, re.MULTILINE)
    examples = [json.loads(sent), *({fault: json.loads(text)} for fault, text in rows)]
    assert len(examples) == 3
    for example in examples:
        assert settings_of(example) != FaultSettings()
