from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Ask = Callable[..., Any]


def test_tables_can_be_read_at_100_columns(ask: Ask) -> None:
    where = ("--gpu", "h200", "--workers", "8", "--price", "3")
    answer = ask("plan", "paper/multitask", "model.size=11B", "training.precision=bf16", *where)
    assert answer.code == 0
    lines = answer.output.splitlines()
    assert all(len(line.rstrip()) <= 100 for line in lines if not line.startswith("  mixtura train"))
    assert sum(line.startswith("  mixtura train paper/multitask model.size=11B") for line in lines) == 1
    assert "11,307,321,344" in answer.output
    assert "unverified" in answer.output


def test_json_is_the_whole_plan(ask: Ask) -> None:
    given = ("plan", "paper/multitask", "model.size=large", "--gpu", "a100-80", "--workers", "16", "--price", "2")
    values = json.loads(ask(*given, "--json").output)
    assert values["parameters"]["total"] == 737_668_096
    assert [fit["stage"] for fit in values["memory"]["stages"]] == [0, 1, 2, 3]
    for fit in values["memory"]["stages"]:
        part = fit["bytes"]
        backward = part["buffers"] + part["activations"] + part["bias"] + max(part["logits"], part["working"])
        state = part["parameters"] + part["gradients"] + part["optimizer"]
        assert part["total"] == state + max(backward, part["update"])
    assert values["cost"]["money"] > 0
    assert values["recommended"]["fits"] is True


def test_a_gpu_that_is_not_known_gets_the_nearest_names(ask: Ask) -> None:
    answer = ask("plan", "quickstart", "--gpu", "a100")
    assert answer.code == 2
    assert answer.message.startswith("error: no GPU 'a100'; nearest: ")
