"""The page of one task, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixtura.platform.cli.output import bar, print_lines, print_table

_MOST_NAMES = 3
_MOST_CHARACTERS = 600


def print_page(facts: Mapping[str, Any]) -> None:
    """Print what `task_facts` found."""
    print_lines(f"{facts['task']}: {facts['description']}", *_head(facts))
    print_table("Splits", [_split_row(name, split) for name, split in facts["splits"].items()])
    for number, example in enumerate(facts["examples"], start=1):
        print_lines(f"example {number}", *(f"  {name:<8} {_shown(value)}" for name, value in example.items()))
    if facts["labels"]:
        total = sum(facts["labels"].values())
        rows = [
            {"targets": label, "examples": number, "share": f"{number / total:.1%}", "": bar(number / total)}
            for label, number in facts["labels"].items()
        ]
        print_lines("")
        print_table("Labels", rows)
    for lengths in facts["lengths"]:
        _print_lengths(lengths, facts["unit"])


def _head(facts: Mapping[str, Any]) -> list[str]:
    size = facts["declared size"]
    use = facts["kind"] if facts["trained"] else "for evaluation only"
    lines = [f"  {use}" + (f", of {facts['benchmark']}" if facts["benchmark"] else "")]
    lines.append(f"  metrics: {', '.join(facts['metrics']) or 'none'}")
    if facts["evaluated_by"]:
        lines.append(f"  evaluated by {', '.join(facts['evaluated_by'])}")
    if size is not None:
        lines.append(f"  declared size for mixing rates: {size:,}")
    for name, option in facts["options"].items():
        lines.append(
            f"  option {name}: {' | '.join(option['values'])} (now {option['chosen']}); {option['description']}"
        )
    return lines


def _split_row(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    names = split["from"]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return {
        "split": name,
        "rows read": f"{split['rows']}" if split["whole"] else f"first {split['rows']}",
        "examples": split["examples"],
        "left out": ", ".join(f"{count} {reason}" for reason, count in split["left out"].items()) or "-",
        "answers": "known" if split["answers known"] else "hidden",
        "from": ", ".join(names[:_MOST_NAMES]) + more,
    }


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ... ({len(text)} characters)"


def _print_lengths(lengths: Mapping[str, Any], unit: str) -> None:
    total = sum(part["examples"] for part in lengths["histogram"])
    rows = [
        {
            unit: f"{part['from']} to {part['to']}",
            "examples": part["examples"],
            "": bar(part["examples"] / max(1, total)),
        }
        for part in lengths["histogram"]
    ]
    notes = f"median {lengths['median']}, longest {lengths['longest']} {unit}"
    if lengths["limit"] is not None:
        counted = "" if unit == "tokens" else " (words, not tokens: give --vocabulary)"
        notes += f"; {lengths['cut']:.1%} are longer than the original's limit of {lengths['limit']}{counted}"
    print_table(f"Length of {lengths['field']}", rows, notes=notes)
