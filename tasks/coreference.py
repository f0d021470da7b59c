"""Which noun phrase a pronoun means, asked as T5 asks it: the pronoun stands in stars, the answer is the phrase.

    wsc: The bee landed on the flower because *it* had pollen.   ->   the flower

Three data sets are brought to this form: SuperGLUE's Winograd schemas (WSC), GLUE's (WNLI, where the phrase has to be
found first) and Definite Pronoun Resolution (Rahman and Ng 2012), whose task is declared here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mixtura.platform.data.patterns import INVALID, read_as_pattern
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import BadRecord, Rejected, Row, Task
from mixtura.platform.evaluation.metrics import accuracy

# Winograd schemas as SuperGLUE has them

# Two texts in which the pronoun is no word of its own, or not at its index; the released code knows them by heart.
_PONY = (
    "The boy continued to whip the pony , and eventually the pony threw him over. "
    'John laughed out quite loud. "Good for him," he said. '
)
_PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron "
    "safe . Some day they might want to use it , but really for now, what more could they wish for?"
)
_KNOWN_PLACES = {_PONY: _PONY.rstrip().rsplit(" him", 1), _PEBBLE: _PEBBLE.rsplit(" it ", 1)}


def spans_of(row: Row) -> Iterator[Row]:
    """A record of the original files, whose spans are nested in `target`, to a public row; a public row stays.

    Where the file's span is not in the text, only its first letter's case, a full stop or a line break is wrong; it is
    mended, as in the public data set (`wsc.fixed`).

    >>> target = {"span1_index": 4, "span1_text": "The cup", "span2_index": 7, "span2_text": "it"}
    >>> next(spans_of({"text": "Ann hit and then the cup though it held", "target": target}))["span1_text"]
    'the cup'
    """
    if "target" not in row:
        yield row
        return
    found = {**{name: value for name, value in row.items() if name != "target"}, **row["target"]}
    for span in ("span1", "span2"):
        found[f"{span}_text"] = _mended(found["text"], found[f"{span}_text"], found[f"{span}_index"])
    yield found


def _mended(text: str, span: str, index: int) -> str:
    words = text.split()
    if span in text or not span or not 0 <= index < len(words):
        return span
    first = span[0].lower() if words[index][0].islower() else span[0].upper()
    mended = (first + span[1:]).rstrip(".").replace("\n", " ")
    return mended if mended in text else span


def meant_phrase_only(row: Row) -> Iterator[Row]:
    """For training: the phrase must be what the pronoun means, since it is the target. An unlabelled row passes."""
    if not row["label"]:
        raise Rejected("phrase is not what the pronoun means")
    yield row


@dataclass(frozen=True)
class StarredPronoun:
    """A Winograd schema to text: the word at `span2_index` in stars, `span1_text` as target.

    The released code puts an X in the pronoun's place and then stars for every X between spaces, so an X that the text
    has of its own gets the pronoun too; with `every_x` off it stays.

    >>> row = {"text": "Ann saw X as it ran .", "span1_text": "X", "span2_index": 4, "span2_text": "it", "label": 1}
    >>> next(StarredPronoun()(row))["inputs"], next(StarredPronoun(every_x=False)(row))["inputs"]
    ('wsc: Ann saw *it* as *it* ran .', 'wsc: Ann saw X as *it* ran .')
    """

    every_x: bool = True

    @property
    def __name__(self) -> str:
        return "starred_pronoun"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example."""
        before, after = _around_pronoun(row)
        starred = f" *{row['span2_text']}* "
        text = f"{before} X {after}".replace(" X ", starred) if self.every_x else before + starred + after
        kept: Row = {name: row[name] for name in ("label", "idx") if name in row}
        yield {**kept, "inputs": f"wsc: {text}", "targets": row["span1_text"]}


def _around_pronoun(row: Row) -> list[str]:
    words, index = row["text"].split(" "), row["span2_index"]
    if not 0 < index < len(words):
        raise Rejected("pronoun is the first word or outside the text")
    if row["text"] in _KNOWN_PLACES:
        return _KNOWN_PLACES[row["text"]]
    if words[index] != row["span2_text"]:
        raise Rejected("pronoun is not the word at its index")
    return [" ".join(words[:index]), " ".join(words[index + 1 :])]


def marked_spans(row: Row) -> Iterator[Row]:
    """A Winograd schema with both spans marked, to whether they mean the same; T5's mixtures do not use this form.

    A span that is not found after its number of words stays unmarked. The released code reads spans as regular
    expressions, so `The (old) dog` is not found.

    >>> spans = {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 2}
    >>> next(marked_spans({"text": "Ann thought she won .", **spans, "label_name": "True"}))["inputs"]
    'wsc text: * Ann * thought # she # won .'
    """
    text = _marked(row["text"], row["span1_text"], row["span1_index"], "*")
    added = 2 if row["span1_index"] < row["span2_index"] else 0
    text = _marked(text, row["span2_text"], row["span2_index"] + added, "#")
    kept = {"idx": row["idx"]} if "idx" in row else {}
    yield {**kept, "inputs": f"wsc text: {text}", "targets": row["label_name"]}


def _marked(text: str, span: str, index: int, mark: str) -> str:
    words_before = rf"(?:[^\t\n\f\r ]+[\t\n\f\r ]){{{index}}}"
    return read_as_pattern(rf"^({words_before})({span})").sub(rf"\1{mark} \2 {mark}", text)


# Winograd schemas as GLUE has them

PRONOUNS = frozenset(("he", "she", "they", "it", "her", "his", "their", "them", "him"))
ARTICLES = ("a", "an", "the")
_STOPS = (".", ",", "!", "?")


def starred_ambiguous_pronoun(row: Row) -> Iterator[Row]:
    """WNLI's sentence pair to a starred pronoun and the phrase that the second sentence has in its place.

    Of the first sentence's pronouns it is the one whose neighbours are found in the second sentence the furthest, the
    earlier one if two are equal.

    >>> pair = {"sentence1": "He said the cup broke. It was thin.", "sentence2": "The cup was thin.", "label": 1}
    >>> made = next(starred_ambiguous_pronoun(pair))
    >>> made["inputs"], made["targets"]
    ('wsc: He said the cup broke. *It* was thin.', 'The cup')
    """
    premise, hypothesis = row["sentence1"], row["sentence2"]
    words, other = _plain_words(premise), _plain_words(hypothesis)
    places = [_Place.of(index, words, other) for index, word in enumerate(words) if word in PRONOUNS]
    if not places:
        raise Rejected("no pronoun in the first sentence")
    place = max(places, key=lambda place: len(place.before) + len(place.after))
    phrase = _from_last_article(place.phrase_in(" ".join(other)))
    kept: Row = {name: row[name] for name in ("label", "idx") if name in row}
    yield {
        **kept,
        "premise": premise,
        "hypothesis": hypothesis,
        "inputs": f"wsc: {_starred(premise, place.index)}",
        "targets": _as_written(phrase, hypothesis),
    }


def _plain_words(sentence: str) -> list[str]:
    """Lower-case words, each without its last stop."""
    words = (word[:-1] if word.endswith(_STOPS) else word for word in sentence.strip().lower().split(" "))
    return [word for word in words if word]


@dataclass(frozen=True)
class _Place:
    """A pronoun's index, and as many of its neighbouring words as the other sentence has in a row."""

    index: int
    before: list[str]
    after: list[str]

    @classmethod
    def of(cls, index: int, words: list[str], other: list[str]) -> _Place:
        before = _longest_start(words[:index][::-1], other[::-1])[::-1]
        return cls(index, before, _longest_start(words[index + 1 :], other))

    def phrase_in(self, text: str) -> str:
        """What stands between the neighbours, or from the text's start, or to its end; "" if nothing does."""
        if not self.before and not self.after:
            return ""
        before, after = self.before, self.after
        forms = ([*before, "(.+)", *after], ["^(.+)", *after], [*before, "(.+)$"])
        try:
            found = [re.search(" ".join(form), text) for form in forms]
        except re.error:
            raise Rejected(INVALID) from None
        # Neighbours are read as an expression too, as in the released code, and one may be a group of its own.
        return next((match[1] or "" for match in found if match), "")


def _longest_start(words: list[str], other: list[str]) -> list[str]:
    text = " ".join(other)
    return next(words[:size] for size in range(len(words), -1, -1) if " ".join(words[:size]) in text)


def _from_last_article(phrase: str) -> str:
    words = phrase.split(" ")
    return " ".join(words[max((words.index(article) for article in ARTICLES if article in words), default=0) :])


def _as_written(phrase: str, sentence: str) -> str:
    """The phrase with the sentence's capitals and stops, save the last, and without a possessive ending."""
    pattern = " ".join(re.escape(word) + "[.,?!]?" for word in phrase.split(" "))
    match = re.search(pattern, sentence, re.IGNORECASE)
    if not match:
        raise Rejected("phrase is not in the second sentence")
    written = match[0][:-1] if match[0].endswith(_STOPS) else match[0]
    return written.removesuffix("'") if written.endswith("'") else written.removesuffix("'s")


def _starred(sentence: str, index: int) -> str:
    words = sentence.split(" ")
    if not words[index]:
        raise Rejected("two spaces before the pronoun")
    word, stop = (words[index][:-1], f" {words[index][-1]}") if words[index].endswith(_STOPS) else (words[index], "")
    return " ".join([*words[:index], f"*{word}*{stop}", *words[index + 1 :]])


# Definite Pronoun Resolution


def blocks(lines: Iterable[str]) -> Iterator[Row | BadRecord]:
    """Records of DPR's files: a sentence, its pronoun, two candidates and the right one, and an empty line.

    >>> next(blocks(["Bob asked Tom if he had money.", "he", "Bob,Tom", "Tom", ""]))
    {'sentence': 'Bob asked Tom if he had money.', 'pronoun': 'he', 'candidates': ['Bob', 'Tom'], 'label': 1}
    """
    block: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield _record(block)
            block = []


def _record(block: list[str]) -> Row | BadRecord:
    if len(block) != 4:
        return BadRecord("not four lines", "\n".join(block))
    sentence, pronoun, choice, right = block
    candidates = [candidate.strip() for candidate in choice.split(",")]
    if right not in candidates:
        return BadRecord("answer is no candidate", "\n".join(block))
    return {"sentence": sentence, "pronoun": pronoun, "candidates": candidates, "label": candidates.index(right)}


def starred_first_pronoun(row: Row) -> Iterator[Row]:
    """A sentence with the first of its pronoun in stars, to the right candidate.

    Only a pronoun between a space and a space, full stop or comma is found: at the sentence's start it stays as it is.
    The released code reads it as a regular expression, and takes candidates from the end for a negative label.

    >>> row = {"sentence": "He left, he said.", "pronoun": "he", "candidates": ["Bob", "Tom"], "label": 1}
    >>> next(starred_first_pronoun(row))
    {'inputs': 'wsc: He left, *he* said.', 'targets': 'Tom'}
    """
    label, candidates = row["label"], row["candidates"]
    if not isinstance(candidates, list):
        raise Rejected("candidates are no list")
    if not -len(candidates) <= label < len(candidates):
        raise Rejected("label is none of the candidates")
    text = read_as_pattern(rf" ({row['pronoun']})( |\.|,)").sub(r" *\1*\2", row["sentence"], count=1)
    yield {"inputs": f"wsc: {text}", "targets": candidates[label]}


_DPR_HUB = "hf://datasets/community-datasets/definite_pronoun_resolution/plain_text"

TASKS = (
    Task(
        "dpr",
        FileSource(
            hub={split: (f"{_DPR_HUB}/{split}-*.parquet",) for split in ("train", "test")},
            original={
                split: tuple(f"{place}{split}.c.txt" for place in ("coreference/dpr/", "dpr/", ""))
                for split in ("train", "test")
            },
            lines=blocks,
        ),
        (starred_first_pronoun,),
        kind="supervised",
        version="1",
        description="A sentence with a pronoun in stars to the noun phrase that it means (Rahman and Ng 2012).",
        metrics=(accuracy,),
        rate_size=1_322,
        lengths=(512, 62),
    ),
)
