"""Turning inputs into answers, one token after the other: greedily, or with the paper's beam search; or choosing among
given answers.

A model with an encoder reads the inputs there. A single stack reads them as the beginning of its row, shifted by one
as all its rows are: pad, inputs, end; the last of these positions says what the answer begins with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.models.t5.ensemble import Answering, Cache
from mixtura.models.t5.model import PAD_ID

_IMPOSSIBLE = float("-inf")


class Answers(NamedTuple):
    """What a batch was answered."""

    ids: Tensor
    """int64 [batch, length]: each row ends with the end if it came, and is padded with 0."""

    log_probabilities: Tensor
    """float32 [batch]: of the whole answer, its end included, without length penalty."""

    of_references: Tensor | None = None
    """float32 [batch]: log-probabilities of the references, where they were given."""


@torch.no_grad()
def greedy_decode(
    model: Answering,
    inputs: Tensor,
    segment_ids: Tensor | None = None,
    *,
    max_length: int,
    eos_id: int = 1,
) -> Tensor:
    """The most likely token at every step, until `eos_id` or `max_length` tokens.

    Inputs are [batch, source length], each with its end, one example per row (packed rows are refused). The answer
    is int64 [batch, length]: each row ends with `eos_id` if it came, and is padded with 0; the longest has `length`.
    """
    segments = _one_segment(inputs, segment_ids, max_length)
    cache, logits = model.start_decoding(inputs, segments, max_length)
    return _greedy(model, cache, logits, max_length, eos_id, scored=False).ids


@torch.no_grad()
def beam_decode(
    model: Answering,
    inputs: Tensor,
    segment_ids: Tensor | None = None,
    *,
    max_length: int,
    beams: int = 4,
    length_penalty: float = 0.6,
    eos_id: int = 1,
) -> Tensor:
    """The best answer that beam search finds, in the shape of `greedy_decode`, which it is with one beam.

    An answer's score is its log-probability divided by `((5 + length) / 6)^length_penalty`, its length with the end
    (Wu et al. 2016, equation 14); the paper's final results have 4 beams and 0.6. The `beams` likeliest unfinished
    answers are carried on, and the `beams` best finished ones kept, until no unfinished one can get better than those.
    A row has at most `1.5 x its input + 10` tokens. The original takes the longest input of the batch there; here an
    answer does not depend on its company.
    """
    if beams == 1:
        return greedy_decode(model, inputs, segment_ids, max_length=max_length, eos_id=eos_id)
    return decode(
        model,
        inputs,
        segment_ids,
        max_length=max_length,
        beams=beams,
        length_penalty=length_penalty,
        eos_id=eos_id,
    ).ids


@torch.no_grad()
def decode(
    model: Answering,
    inputs: Tensor,
    segment_ids: Tensor | None = None,
    *,
    max_length: int,
    beams: int = 1,
    length_penalty: float = 0.6,
    eos_id: int = 1,
    references: Tensor | None = None,
) -> Answers:
    """The answers of `greedy_decode` with one beam, otherwise of `beam_decode`, and how likely the model takes them.

    Of `references` (int64 [batch, length], each with its end, padded with 0) it is told how likely they are: what a
    teacher-forced forward pass says, for the price of reading the inputs once.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; give at least 1")
    segments = _one_segment(inputs, segment_ids, max_length)
    limits = ((segments != 0).sum(1) * 3 // 2 + 10).clamp(max=max_length)
    steps = max_length if beams == 1 else int(limits.max())
    room = steps if references is None else max(steps, references.shape[1])
    cache, logits = model.start_decoding(inputs, segments, room)
    given = None if references is None else _likelihoods(model, cache, logits, references[:, None])[:, 0]
    if beams == 1:
        return _greedy(model, cache, logits, max_length, eos_id, scored=True)._replace(of_references=given)
    beams_of_rows = torch.arange(len(limits), device=limits.device).repeat_interleave(beams)
    search = _Search.begin(limits, beams, length_penalty, eos_id)
    found = search.run(model, cache.select(beams_of_rows), logits[beams_of_rows])
    return found._replace(of_references=given)


@torch.no_grad()
def choose(
    model: Answering,
    inputs: Tensor,
    candidates: Tensor,
    segment_ids: Tensor | None = None,
    *,
    references: Tensor | None = None,
) -> Answers:
    """Rank classification: of the candidates (int64 [count, length], each with its end, padded with 0) the one that is
    likeliest as a whole; of equals the first. `references` are as in `decode`."""
    longest = max(candidates.shape[1], 1 if references is None else references.shape[1])
    segments = _one_segment(inputs, segment_ids, longest)
    cache, logits = model.start_decoding(inputs, segments, longest)
    likelihoods = _likelihoods(model, cache, logits, candidates.expand(len(inputs), -1, -1))
    best, places = likelihoods.max(1)
    given = None if references is None else _likelihoods(model, cache, logits, references[:, None])[:, 0]
    return Answers(candidates[places], best, given)


@torch.no_grad()
def score(model: Answering, inputs: Tensor, references: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """The log-probabilities, float32 [batch], of given answers; `references` are as in `decode`."""
    segments = _one_segment(inputs, segment_ids, references.shape[1])
    cache, logits = model.start_decoding(inputs, segments, references.shape[1])
    return _likelihoods(model, cache, logits, references[:, None])[:, 0]


_LOGITS_AT_ONCE = 1 << 25
"""128 MiB of float32."""


def _likelihoods(model: Answering, cache: Cache, logits: Tensor, answers: Tensor) -> Tensor:
    """Log-probabilities, float32 [batch, count], of answers [batch, count, length] to what the cache has read.

    `logits` are of the first token; the cache stays as it is.
    """
    batch, count, _ = answers.shape
    first = answers[:, :, 0]
    found = torch.where(first != PAD_ID, logits.gather(1, first) - logits.logsumexp(-1, keepdim=True), 0.0).flatten()
    of_rows = torch.arange(batch, device=answers.device).repeat_interleave(count)
    tokens = answers.flatten(0, 1)
    longest = (tokens != PAD_ID).any(0).sum()
    at_once = max(1, _LOGITS_AT_ONCE // (logits.shape[-1] * max(1, int(longest) - 1)))
    for begin in range(0, len(tokens) if longest > 1 else 0, at_once):
        rows = slice(begin, begin + at_once)
        here = tokens[rows, :longest]
        following = here[:, 1:]
        after = model.read_next(here[:, :-1], cache.select(of_rows[rows]))
        likelihoods = after.gather(-1, following[..., None])[..., 0] - after.logsumexp(-1)
        found[rows] += torch.where(following != PAD_ID, likelihoods, 0.0).sum(1)
    return found.view(batch, count)


def _one_segment(tokens: Tensor, segment_ids: Tensor | None, max_length: int) -> Tensor:
    """The segments of rows that are to be answered: 1 at tokens and 0 at padding."""
    segments = (tokens != PAD_ID).to(torch.int32) if segment_ids is None else segment_ids
    if int(segments.max()) > 1:
        raise ValueError(f"found {int(segments.max())} segments in a row; decoding takes one example per row, unpacked")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give at least 1 token")
    return segments


def _greedy(model: Answering, cache: Cache, logits: Tensor, max_length: int, eos_id: int, *, scored: bool) -> Answers:
    """Log-probabilities are 0 where they are not asked for: they take a pass over all logits."""
    batch, device = logits.shape[0], logits.device
    answers = torch.full((batch, max_length), PAD_ID, dtype=torch.int64, device=device)
    log_probabilities = torch.zeros(batch, device=device)
    rows = torch.arange(batch, device=device)
    running = torch.ones_like(rows, dtype=torch.bool)
    for position in range(max_length):
        tokens = logits.argmax(-1)
        answers[rows, position] = torch.where(running, tokens, PAD_ID)
        if scored:
            likelihood = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
            log_probabilities[rows] += torch.where(running, likelihood, 0.0)
        running = running & (tokens != eos_id)
        left = int(running.sum())
        if left == 0:
            return Answers(answers[:, : position + 1], log_probabilities)
        # Ended rows leave once they are half of the batch: what is copied then stays below what is saved.
        if 2 * left <= len(rows):
            kept = running.nonzero()[:, 0]
            rows, running, tokens, cache = rows[kept], running[kept], tokens[kept], cache.select(kept)
        if position + 1 < max_length:
            logits = model.decode_next(tokens, cache)
    return Answers(answers, log_probabilities)


@dataclass
class _Search:
    """Beam search over the rows that are still looked at, each with its unfinished and its finished answers.

    Answers are [rows, beams, limit], their log-probabilities and scores [rows, beams], the best first.
    """

    answers: Tensor
    """[batch, limit]: the chosen answers of all rows, written when a row is done."""
    of_answers: Tensor
    """[batch]: their log-probabilities."""
    rows: Tensor
    """[rows]: which rows of the batch are looked at."""
    limits: Tensor
    """[rows]: most tokens of an answer."""
    alive: Tensor
    log_probabilities: Tensor
    finished: Tensor
    scores: Tensor
    of_finished: Tensor
    """[rows, beams]: log-probabilities of the finished answers, of which scores are made."""
    length_penalty: float
    eos_id: int

    @classmethod
    def begin(cls, limits: Tensor, beams: int, length_penalty: float, eos_id: int) -> _Search:
        """Nothing finished; of the equal beams of a row only the first counts."""
        batch, device = len(limits), limits.device
        empty = torch.full((batch, beams, int(limits.max())), PAD_ID, dtype=torch.int64, device=device)
        impossible = torch.full((batch, beams), _IMPOSSIBLE, device=device)
        first = impossible.clone()
        first[:, 0] = 0.0
        rows = torch.arange(batch, device=device)
        return cls(
            answers=empty[:, 0].clone(),
            of_answers=torch.zeros(batch, device=device),
            rows=rows,
            limits=limits,
            alive=empty,
            log_probabilities=first,
            finished=empty.clone(),
            scores=impossible,
            of_finished=impossible.clone(),
            length_penalty=length_penalty,
            eos_id=eos_id,
        )

    def run(self, model: Answering, cache: Cache, logits: Tensor) -> Answers:
        """The answers, by the logits [rows x beams, vocabulary] of their first token."""
        done = torch.zeros_like(self.rows, dtype=torch.bool)
        for position in range(int(self.limits.max())):
            parents, tokens = self._grow(logits.log_softmax(-1), position)
            over = self._over(position + 1) & ~done
            self._answer(over)
            done = done | over
            left = int((~done).sum())
            if left == 0:
                break
            cache.follow(parents)
            if 2 * left <= len(done):
                kept = (~done).nonzero()[:, 0]
                beams = self.scores.shape[1]
                places = (kept[:, None] * beams + torch.arange(beams, device=kept.device)).flatten()
                self._keep(kept)
                done, tokens, cache = done[kept], tokens[places], cache.select(places)
            logits = model.decode_next(tokens, cache)
        written = (self.answers != PAD_ID).any(0).nonzero()
        length = int(written.max()) + 1 if len(written) else 1
        return Answers(self.answers[:, :length], self.of_answers)

    def _grow(self, likelihoods: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """One token more, by log-probabilities [rows x beams, vocabulary].

        Returns, of every unfinished answer, the place [rows x beams] of the one that it continues, and its last token.
        """
        rows, beams = self.log_probabilities.shape
        vocabulary = likelihoods.shape[-1]
        totals = (self.log_probabilities.view(-1, 1) + likelihoods).view(rows, beams * vocabulary)
        # Twice as many: if half of them end, there are as many left to carry on.
        best, chosen = totals.topk(min(2 * beams, beams * vocabulary))
        parents, tokens = chosen // vocabulary, chosen % vocabulary
        grown = _of_beams(self.alive, parents)
        grown[:, :, position] = tokens
        ended = tokens == self.eos_id

        ended_scores = torch.where(ended, best / self._penalty(position + 1), _IMPOSSIBLE)
        self.scores, kept = torch.cat([self.scores, ended_scores], dim=1).topk(beams)
        self.finished = _of_beams(torch.cat([self.finished, grown], dim=1), kept)
        self.of_finished = torch.cat([self.of_finished, best], dim=1).gather(1, kept)

        self.log_probabilities, kept = torch.where(ended, _IMPOSSIBLE, best).topk(beams)
        self.alive = _of_beams(grown, kept)
        places = torch.arange(rows, device=parents.device)[:, None] * beams + parents.gather(1, kept)
        return places.flatten(), tokens.gather(1, kept).flatten()

    def _penalty(self, length: float | Tensor) -> float | Tensor:
        return ((5.0 + length) / 6.0) ** self.length_penalty

    def _over(self, length: int) -> Tensor:
        """bool [rows]: whether a row has come to its limit, or cannot find anything better than what has ended."""
        any_ended = self.scores[:, 0] > _IMPOSSIBLE
        worst = torch.where(self.scores > _IMPOSSIBLE, self.scores, torch.inf).amin(1)
        # The likeliest one can only become less likely, and its length at most the limit.
        hoped = self.log_probabilities[:, 0] / self._penalty(self.limits)
        return (length >= self.limits) | (any_ended & (worst > hoped))

    def _answer(self, over: Tensor) -> None:
        """Write the best answer of the rows that are over: an ended one if there is any."""
        ended = (self.scores[:, :1] > _IMPOSSIBLE)[over]
        best = torch.where(ended, self.finished[over, 0], self.alive[over, 0])
        self.answers[self.rows[over]] = best
        of_best = torch.where(ended[:, 0], self.of_finished[over, 0], self.log_probabilities[over, 0])
        self.of_answers[self.rows[over]] = of_best

    def _keep(self, kept: Tensor) -> None:
        self.rows, self.limits = self.rows[kept], self.limits[kept]
        self.alive, self.log_probabilities = self.alive[kept], self.log_probabilities[kept]
        self.finished, self.scores = self.finished[kept], self.scores[kept]
        self.of_finished = self.of_finished[kept]


def _of_beams(answers: Tensor, chosen: Tensor) -> Tensor:
    """answers [rows, beams, length] and chosen [rows, count] -> [rows, count, length]."""
    return answers.gather(1, chosen[:, :, None].expand(-1, -1, answers.shape[2]))
