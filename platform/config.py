"""The one tree of settings, and what each key may change. Recipes are written in its shape: see `recipe_files`.

Every key is marked with its effect on a run that exists already:

    stream        changes which rows the run sees: another run, or a fork
    mathematics   changes what is computed from them: another run, or a fork
    free          may change between two attempts of the same run (workers, executor, logging, retention, resources)
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar

import xxhash
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixtura.platform.errors import ConfigError
from mixtura.platform.yaml_files import files_by_split


class Effect(StrEnum):
    """What changing a key means for a run that has begun."""

    STREAM = "stream"
    MATHEMATICS = "mathematics"
    FREE = "free"


STREAM, MATHEMATICS, FREE = Effect.STREAM, Effect.MATHEMATICS, Effect.FREE

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B")
ASection = TypeVar("ASection", bound=BaseModel)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Section(BaseModel):
    """A branch of the tree: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


class RunSection(Section):
    """Who the run is and where it lives."""

    name: Annotated[str | None, FREE] = None
    """Folder of the run under `root`; the recipe's name if not given."""
    root: Annotated[str, FREE] = "runs"
    """Folder that holds all runs, their caches and the MLflow store; shared by all nodes."""
    fork: Annotated[str | None, MATHEMATICS] = Field(default=None, alias="from")
    """Checkpoint (`RUN@step` or a folder) whose weights and optimizer state a new run begins with."""
    seed: Annotated[int, STREAM] = 0
    """Decides the order of everything, the initial weights and dropout."""
    stop_after: Annotated[str | None, FREE] = None
    """Save and end cleanly after this time, for example `3h30m`."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not RUN_NAME.fullmatch(value):
            raise ValueError("a run's name is letters, digits, '.', '_' and '-', and begins with a letter or a digit")
        return value

    @field_validator("stop_after")
    @classmethod
    def _stop_after_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration_s(value)
        return value


class ModelSection(Section):
    """The model to train: one to start from; or a published size, single numbers of it changed, or all given."""

    start: Annotated[str | None, MATHEMATICS] = Field(default=None, alias="from")
    """Weights to begin with, and with them shape and vocabulary: a Hugging Face id or directory, `RUN@step`,
    `models:/NAME@alias`, a checkpoint file of t5x. The optimizer begins anew; `run.from` takes its state along."""
    resolved: Annotated[str | None, FREE] = None
    """What `from` was found to be when the run began, filled in: a place, and the commit or digest of what was there.
    The run goes on with it, whatever `RUN@last` or an alias means later."""
    architecture: Annotated[Literal["encoder_decoder", "shared", "prefix_lm", "lm"] | None, MATHEMATICS] = None
    """The paper's section 3.2: two stacks (if not given), two stacks with the same weights, or one stack that reads
    inputs and targets in one row, with full attention over the inputs or looking back only."""
    size: Annotated[str | None, MATHEMATICS] = None
    """`small`, `base`, ... `11B` are T5 1.0; `v1_1-small`, ... `v1_1-xxl` are T5 1.1."""
    d_model: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    d_kv: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    d_ff: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    num_heads: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    num_layers: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    num_decoder_layers: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    """As many as `num_layers` if not given."""
    embedding_rows: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    """As many as the vocabulary has ids, rounded up to 128, if not given."""
    feed_forward: Annotated[Literal["relu", "gated-gelu"] | None, MATHEMATICS] = None
    """`relu` is T5 1.0, `gated-gelu` is T5 1.1."""
    tie_embeddings: Annotated[bool | None, MATHEMATICS] = None
    """Whether the logits use the embedding (T5 1.0) or a matrix of their own (T5 1.1)."""
    dropout_rate: Annotated[float | None, MATHEMATICS] = Field(default=None, ge=0, lt=1)
    """0.1 in T5 1.0; T5 1.1 was pre-trained at 0."""
    dropout_over_length: Annotated[Literal["shared", "independent"], MATHEMATICS] = "shared"
    """One dropout mask for all positions of a row, as the original code; or one for each position, as is usual."""
    adapter_size: Annotated[int | None, MATHEMATICS] = Field(default=None, gt=0)
    """Inner size of an adapter after every feed-forward sublayer (section 3.5.1); then only these and norms train."""
    attention: Annotated[Literal["sdpa", "eager", "flex"], FREE] = "sdpa"
    """How attention is computed; all give the same numbers. `flex` needs a GPU to train on."""
    compile: Annotated[bool, FREE] = False
    """Compile each layer with torch.compile, at ZeRO stages 0 to 2; the first step then takes a minute or two."""
    activation_checkpointing: Annotated[bool, FREE] = False
    """Keep only each layer's input and compute the layer again in the backward pass: less memory, a third more work."""


class VocabularySection(Section):
    """The SentencePiece vocabulary."""

    path: Annotated[str | None, STREAM] = None
    """A `spiece.model`; if not given, one is trained on the mixture's own text."""
    size: Annotated[int, STREAM] = Field(default=32_100, ge=300)
    """Usable ids of a vocabulary trained here, its 100 sentinels among them; embeddings round up to 128."""


class MixtureTask(Section):
    """What one mixture says about one task."""

    weight: Annotated[float, STREAM] = Field(default=1.0, ge=0)
    """Multiplies the task's rate; with `rates: fixed` it is the rate."""
    scale: Annotated[float, STREAM] = Field(default=1.0, gt=0)
    """Multiplies the number of examples that the rate is made from, before the cap."""
    size: Annotated[int | None, STREAM] = Field(default=None, gt=0)
    """Number of examples that the rate is made from, in place of the declared or counted one."""
    rate: Annotated[float | None, STREAM] = Field(default=None, ge=0)
    """A number in place of what the size makes: neither cap nor temperature touches it; the weight multiplies it."""
    first_examples: Annotated[int | None, STREAM] = Field(default=None, gt=0)
    """Hold the task to its first examples, in the order of its files (the paper's study of repeated data)."""
    first_tokens: Annotated[int | None, STREAM] = Field(default=None, gt=0)
    """Hold the task to its first tokens, likewise."""
    repeats: Annotated[float | None, STREAM] = Field(default=None, gt=0)
    """Most passes over this task's examples, in place of `mixture.repeats`."""
    options: Annotated[dict[str, str], STREAM] = Field(default_factory=dict)
    """The task's named choices, for example `field_order: premise_first`; see `mixtura tasks show NAME`."""
    definition: Annotated[dict[str, Any] | None, STREAM] = None
    """A task that is written in YAML, whole; filled in where `tasks` has the path of such a file."""
    files: Annotated[dict[str, list[str]], FREE] = Field(default_factory=dict)
    """Files of a split, in place of those that the task looks for: paths (below `data.root`), globs or URIs."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: Any) -> Any:
        return files_by_split(value, "files") if isinstance(value, Mapping) else value

    @field_validator("options", mode="before")
    @classmethod
    def _values_are_words(cls, value: Any) -> Any:
        return {name: str(one) for name, one in value.items()} if isinstance(value, Mapping) else value


class MixtureSection(Section):
    """Which tasks, at which rates (paper, section 3.5.2)."""

    tasks: dict[str, MixtureTask] = Field(min_length=1)
    """Names of tasks and of mixtures, and paths of task files in YAML, each with what is particular to it here."""
    rates: Annotated[Literal["proportional", "paper", "released", "equal", "fixed", "unimax"], STREAM] = "proportional"
    """`proportional`: in proportion to the number of examples; `paper`: so too, but data that two tasks share counts
    once; `released`: as the original code has them, fixed for GLUE and SuperGLUE; `equal`: all alike; `fixed`: the
    weights as they stand; `unimax`: as equal as `repeats` allows over `budget` draws."""
    sizes: Annotated[Literal["declared", "counted"], STREAM] = "declared"
    """Numbers of examples: the published ones, counted where there is none, or all counted."""
    temperature: Annotated[float, STREAM] = Field(default=1.0, gt=0)
    """Rates are raised to 1/temperature: 1 is proportional, large is nearly equal."""
    maximum: Annotated[int | None, STREAM] = Field(default=2**21, gt=0)
    """K: no task counts for more examples than this; applied before the temperature."""
    repeats: Annotated[float | None, STREAM] = Field(default=None, gt=0)
    """Most passes over any task's examples; a task that has reached it is not drawn any more, the others go on."""
    budget: Annotated[int | None, STREAM] = Field(default=None, gt=0)
    """Examples that the run is to draw in all, which `rates: unimax` divides."""

    @model_validator(mode="after")
    def _unimax_has_its_numbers(self) -> Self:
        if self.rates == "unimax" and (self.budget is None or self.repeats is None):
            raise ValueError(
                "rates: unimax divides mixture.budget (examples to draw in all) so that no task is passed over more "
                f"than mixture.repeats times; found budget {self.budget} and repeats {self.repeats}: give both"
            )
        return self

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_alone_are_enough(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {name: {} for name in value}
        return value


class DataSection(Section):
    """From examples to rows of fixed lengths."""

    root: Annotated[str | None, FREE] = None
    """Folder or bucket with the public tasks' original files; their public homes if not given."""
    inputs_length: Annotated[int, STREAM] = Field(default=512, ge=8)
    targets_length: Annotated[int, STREAM] = Field(default=114, ge=4)
    """Most tokens of an example's targets with EOS; also the decoder's row where `decoder_row` says nothing else."""
    decoder_row: Annotated[int | Literal["measured"] | None, STREAM] = None
    """Decoder positions of a packed row, where tasks with short targets would leave most of `targets_length` empty:
    a number, or `measured`, which takes the length that costs the fewest positions for each example and trims none."""
    loss_on: Annotated[Literal["targets", "all"] | None, STREAM] = None
    """Which tokens of a row of a single stack count: if not given, a prefix LM's targets, and a language model's whole
    text, as in the originals."""
    chunks: Annotated[Literal["contiguous", "original"], STREAM] = "contiguous"
    """How unsupervised text is cut: a shard's text in order; or as the original code, 128 documents at a time with
    their short tails, and each document by itself for the objectives that do not concatenate."""
    draws: Annotated[Literal["exact", "sampled"], STREAM] = "exact"
    """Each task's count within one of its share; or an independent draw for each example, as the original code."""
    drop_overlap: Annotated[int | None, STREAM] = Field(default=None, ge=1)
    """Leave out unsupervised pieces that hold an n-gram of so many words of an evaluation example; off if not given."""
    packing: Annotated[Literal["none", "greedy", "best_fit"], STREAM] = "best_fit"
    """One example a row, SeqIO's greedy packing, or best fit within a block."""
    noise_density: Annotated[float, STREAM] = Field(default=0.15, gt=0, lt=1)
    mean_noise_span_length: Annotated[float, STREAM] = Field(default=3.0, ge=1)
    closing_sentinel: Annotated[bool, STREAM] = False
    """End the targets of span corruption with one more sentinel, as the paper's figure shows and the code does not."""
    sentinels: Annotated[int | None, STREAM] = Field(default=100, ge=1)
    """Most spans of an example; null lets the marks run on into word pieces, as the original code does."""
    block_size: Annotated[int, STREAM] = Field(default=512, ge=1)
    """Draws of the mixture in one block, the unit that is built and packed as a whole."""
    lanes: Annotated[int, STREAM] = Field(default=8, ge=1)
    """Fixed number of parallel sequences of blocks; divides the global batch, bounds the number of workers."""
    window_shards: Annotated[int, STREAM] = Field(default=8, ge=1)
    """Shards whose segments are shuffled together."""
    segment_rows: Annotated[int, STREAM] = Field(default=16, ge=1)
    """Neighbouring rows that are visited together: more for slow stores, 1 where neighbours are alike."""
    prepare_at_once: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Shards that Ray Data prepares at the same time; as many as there are CPUs if not given."""
    prefetch_blocks: Annotated[int, FREE] = Field(default=16, ge=1)
    """Blocks of each of its lanes that a worker has ready or under way at most; half of them are one window."""
    stream_memory: Annotated[str, FREE] = "1GB"
    """Most memory of the blocks that a worker holds or has under way; fewer are built ahead where it is less."""
    prepare: Annotated[Literal["auto", "before_training", "while_training"], FREE] = "auto"
    """Prepare every source whole before the first step; or train on an unsupervised source of known size as soon as its
    first shards are there. `auto` does so where it can, `while_training` refuses where it cannot."""
    caches: Annotated[str | None, FREE] = None
    """Folder or bucket of the token caches; `run.root`/caches if not given."""
    copies: Annotated[str | None, FREE] = None
    """Folder on each node for local copies of a bucket's caches; one below the temporary folder if not given."""
    copies_size: Annotated[str, FREE] = "64GB"
    """Most bytes of local copies on a node; those that were not used for longest go first."""

    @field_validator("stream_memory", "copies_size")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_bytes(value)
        return value

    @model_validator(mode="after")
    def _decoder_row_holds_targets(self) -> Self:
        if isinstance(self.decoder_row, int) and self.decoder_row < 4:
            raise ValueError(f"data.decoder_row is {self.decoder_row}: it must be at least 4")
        if self.decoder_row is not None and self.packing == "none":
            raise ValueError("data.decoder_row is for packed rows, but data.packing is none: set data.targets_length")
        return self


class OptimizerSection(Section):
    """The optimizer; all are exact under ZeRO."""

    name: Annotated[Literal["adafactor", "adamw", "adamw_rms"], MATHEMATICS] = "adafactor"
    """`adamw_rms` is AdamW whose rate is multiplied by each matrix's root mean square, as Adafactor's is."""
    weight_decay: Annotated[float, MATHEMATICS] = Field(default=0.0, ge=0)
    beta1: Annotated[float, MATHEMATICS] = Field(default=0.9, ge=0, lt=1)
    """AdamW's only, as are the next two."""
    beta2: Annotated[float, MATHEMATICS] = Field(default=0.999, ge=0, lt=1)
    epsilon: Annotated[float, MATHEMATICS] = Field(default=1e-8, gt=0)
    clip_gradient_norm: Annotated[float | None, MATHEMATICS] = Field(default=None, gt=0)
    """Off unless asked for: T5 does not clip by the global norm."""


class ScheduleSection(Section):
    """The learning rate of a step (paper, section 3.1.2)."""

    name: Annotated[
        Literal["inverse_square_root", "constant", "slanted_triangular", "linear", "cosine"], MATHEMATICS
    ] = "inverse_square_root"
    """`factor / sqrt(max(step, warmup_steps))`, or `factor` throughout; or, over `steps`, up and down in a triangle
    (Howard and Ruder 2018), or after a warm-up down to `final_factor`, in a line or along a cosine."""
    warmup_steps: Annotated[int, MATHEMATICS] = Field(default=10_000, ge=0)
    factor: Annotated[float, MATHEMATICS] = Field(default=1.0, gt=0)
    """The largest rate of all but `inverse_square_root`."""
    steps: Annotated[int | None, MATHEMATICS] = Field(default=None, ge=1)
    """Steps until the rate of `slanted_triangular`, `linear` and `cosine` has come down; needed for these."""
    final_factor: Annotated[float, MATHEMATICS] = Field(default=0.0, ge=0)
    """The rate at which `linear` and `cosine` end."""
    cut: Annotated[float, MATHEMATICS] = Field(default=0.1, gt=0, lt=1)
    """Share of the steps in which `slanted_triangular` rises."""
    ratio: Annotated[float, MATHEMATICS] = Field(default=32.0, gt=1)
    """How much smaller than the largest the smallest rate of `slanted_triangular` is."""

    @model_validator(mode="after")
    def _horizon_is_given(self) -> Self:
        falls = self.name in {"slanted_triangular", "linear", "cosine"}
        if falls and self.steps is None:
            raise ValueError(
                f"{self.name} comes down over schedule.steps, which is not given: set it (training.steps, which may "
                "grow later, does not change the rate of any step)"
            )
        if self.name == "inverse_square_root" and self.warmup_steps < 1:
            raise ValueError("inverse_square_root needs schedule.warmup_steps of at least 1")
        if falls and self.steps is not None and self.name != "slanted_triangular" and self.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.warmup_steps}, but the rate has to come down by step {self.steps}: "
                "set it lower (0 for none)"
            )
        return self


class TrainingSection(Section):
    """How many steps, how large, how precise."""

    steps: Annotated[int, FREE] = Field(ge=1)
    """Optimizer updates in all; may grow later, as the schedules here have no horizon."""
    global_batch_size: Annotated[int, STREAM] = Field(default=128, ge=1)
    """Packed rows of one step over all workers."""
    microbatch_size: Annotated[int, FREE] = Field(default=8, ge=1)
    """Rows of one forward pass on one worker; more rows than this are accumulated."""
    precision: Annotated[Literal["fp32", "bf16"], MATHEMATICS] = "fp32"
    """bf16 keeps fp32 master weights; fp16 overflows in T5 and is refused."""
    z_loss: Annotated[float, MATHEMATICS] = Field(default=1e-4, ge=0)
    label_smoothing: Annotated[float, MATHEMATICS] = Field(default=0.0, ge=0, lt=1)
    normalizer: Annotated[Literal["target_tokens", "padded_targets", "constant"], MATHEMATICS] = "target_tokens"
    """The loss is divided by the real target tokens of the global batch, by its padded size as the original, or by
    `normalizer_constant` as T5X's fine-tuning."""
    normalizer_constant: Annotated[float | None, MATHEMATICS] = Field(default=None, gt=0)
    """233,472 = 2,048 x 114 in T5X's fine-tuning of the paper's checkpoints; 1 is T5X's plain sum."""
    unfreeze_every: Annotated[int | None, MATHEMATICS] = Field(default=None, ge=1)
    """Gradual unfreezing (section 3.5.1): at first the top layer of both stacks trains, and one more below it every so
    many steps; embeddings, norms above the layers and position biases train always."""
    gradient_norms_every: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Steps between two measurements of the gradient's norm for each task alone, which costs a forward and backward
    pass for every task; at ZeRO stages 0 to 2; off if not given."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], FREE] = 1
    """What DeepSpeed divides among the workers: nothing, optimizer state, gradients too, weights too."""
    deepspeed: Annotated[dict[str, Any], FREE] = Field(default_factory=dict)
    """Other DeepSpeed settings, passed through; what would change T5's mathematics is refused."""

    @model_validator(mode="after")
    def _constant_is_given(self) -> Self:
        if (self.normalizer == "constant") != (self.normalizer_constant is not None):
            raise ValueError(
                f"normalizer is {self.normalizer} and normalizer_constant {self.normalizer_constant}: "
                "training.normalizer=constant and its number go together"
            )
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def _fp16_overflows(cls, value: Any) -> Any:
        if value in {"fp16", "float16", "half"}:
            raise ValueError("fp16 is refused: T5's activations exceed its largest number (65,504); use bf16 or fp32")
        return value


class ExecutorSection(Section):
    """Where the work runs."""

    kind: Annotated[Literal["ray", "inline"], FREE] = "ray"
    """`inline` is one process without Ray, with the same batches and losses."""
    workers: Annotated[int, FREE] = Field(default=1, ge=1)
    """Training processes; one for each GPU where there are any."""
    gpus_per_worker: Annotated[float, FREE] = Field(default=0, ge=0)
    cpus_per_worker: Annotated[float | None, FREE] = Field(default=None, gt=0)
    """And its threads; if not given, what is left of the machine is divided evenly."""
    address: Annotated[str | None, FREE] = None
    """A running Ray cluster; if not given, the one this job is in, otherwise one of its own on this machine."""
    max_failures: Annotated[int, FREE] = Field(default=3, ge=0)
    """How often a run is taken up again by itself after a worker died."""
    hang_after: Annotated[str | None, FREE] = "30m"
    """A step that takes longer than this is a hang: the stacks of all ranks are written and the attempt ends as failed;
    null waits for ever."""

    @field_validator("hang_after")
    @classmethod
    def _hang_after_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration_s(value)
        return value


class CheckpointsSection(Section):
    """When to save and what to keep."""

    every: Annotated[int, FREE] = Field(default=5000, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Newest checkpoints to keep beside the best ones and the promoted ones; all if not given."""
    keep_every: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Beside those, keep the checkpoints of steps that this number divides."""


class EvaluationSection(Section):
    """What is measured on each checkpoint."""

    when: Annotated[Literal["pause", "beside", "after"], FREE] = "pause"
    """While training waits; beside it, on CPUs or GPUs of its own; or once after the last step."""
    waiting: Annotated[int, FREE] = Field(default=2, ge=1)
    """Checkpoints that may wait for evaluation beside training; of more the oldest is skipped, and named."""
    examples: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """At most so many validation examples of a task for each checkpoint; the test split is always whole."""
    text_pieces: Annotated[int, FREE] = Field(default=64, ge=0)
    """So many pieces of held-out text, as long as the objective takes, on which the loss of each unsupervised task is
    measured; 0 for none."""
    classification: Annotated[Literal["generate", "rank"], FREE] = "generate"
    """How tasks with fixed classes are answered: with whatever the model generates, as the paper does, or with the
    likeliest class."""
    precision: Annotated[Literal["fp32", "bf16"], FREE] = "fp32"
    """Of the model that answers. bf16 is faster on GPUs, and on CPUs that multiply it natively."""
    decode_length: Annotated[int, FREE] = Field(default=128, ge=1)
    """Most tokens of an answer."""
    beams: Annotated[int, FREE] = Field(default=1, ge=1)
    """Answers looked at side by side; 1 is greedy. The paper's final results have 4 for summaries and translations."""
    length_penalty: Annotated[float, FREE] = Field(default=0.6, ge=0)
    """alpha of `((5 + length) / 6)^alpha`, which beam search divides an answer's log-probability by."""
    batch_tokens: Annotated[int, FREE] = Field(default=8192, ge=128)
    """Encoder positions decoded together; results do not depend on it."""
    test: Annotated[bool, FREE] = True
    """Whether the best checkpoint is measured on the test split at the end."""

    def asked(self) -> dict[str, Any]:
        """What the numbers depend on: which examples are asked, and how they are answered."""
        ways = {"examples", "decode_length", "beams", "length_penalty", "classification", "precision", "text_pieces"}
        return self.model_dump(mode="json", include=ways)


class TrackingSection(Section):
    """MLflow."""

    uri: Annotated[str | None, FREE] = None
    """Tracking server; `MLFLOW_TRACKING_URI` or the workspace's own store if not given."""
    log_every: Annotated[int, FREE] = Field(default=10, ge=1)
    """Steps between two points of the curves."""
    system_every: Annotated[str | None, FREE] = "10s"
    """How often it is measured how busy each machine is; null for never."""

    @field_validator("system_every")
    @classmethod
    def _system_every_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration_s(value)
        return value


class SearchSection(Section):
    """The search over mixing proportions."""

    trials: Annotated[int, FREE] = Field(default=8, ge=1)
    """Mixtures that the search algorithm tries."""
    steps: Annotated[int, FREE] = Field(default=200, ge=1)
    """Steps of a trial."""
    seeds: Annotated[int, FREE] = Field(default=3, ge=2)
    """Runs of the winner and of each plain baseline, with different seeds."""
    concurrent: Annotated[int, FREE] = Field(default=2, ge=1)
    """Trials side by side."""
    temperature: Annotated[tuple[float, float], FREE] = (0.5, 8.0)
    """Range of the temperature, searched on a logarithmic scale."""
    weight: Annotated[tuple[float, float], FREE] = (0.25, 4.0)
    """Range of each task's weight, searched on a logarithmic scale."""

    @field_validator("temperature", "weight")
    @classmethod
    def _range_is_ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{low:g} to {high:g} is no range on a logarithmic scale: give 0 < low <= high")
        return value


class Config(Section):
    """Everything that decides a run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    vocabulary: VocabularySection = VocabularySection()
    mixture: MixtureSection
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    executor: ExecutorSection = ExecutorSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    search: SearchSection = SearchSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        rows, lanes = self.training.global_batch_size, self.data.lanes
        if rows % lanes:
            raise ValueError(
                f"data.lanes is {lanes}, which does not divide training.global_batch_size {rows}: "
                f"set one of them so that it does, for example data.lanes={_largest_divisor(rows, lanes)}"
            )
        if self.evaluation.when == "beside" and self.executor.kind == "inline":
            raise ValueError(
                "evaluation.when is beside, which needs processes of its own, but executor.kind is inline: "
                "use evaluation.when=pause or after, or executor.kind=ray"
            )
        if self.data.loss_on is not None and self.model.architecture not in {"prefix_lm", "lm"}:
            raise ValueError(
                "data.loss_on is for models of one stack, but model.architecture is "
                f"{self.model.architecture or 'encoder_decoder'}: leave it out"
            )
        if self.model.compile and self.training.zero_stage == 3:
            raise ValueError(
                "model.compile is for training.zero_stage 0 to 2: at stage 3 weights come and go within a layer; "
                "leave one of them out"
            )
        if self.training.gradient_norms_every is not None and self.training.zero_stage == 3:
            raise ValueError(
                "training.gradient_norms_every needs whole weights on every worker, but training.zero_stage is 3: "
                "use stage 0 to 2, or leave it out"
            )
        if self.model.attention == "flex" and self.executor.kind == "ray" and not self.executor.gpus_per_worker:
            raise ValueError(
                "model.attention is flex, which needs a GPU to train on, but executor.gpus_per_worker is 0: "
                "set it to 1, or model.attention to sdpa"
            )
        if self.training.unfreeze_every is not None and self.model.adapter_size is not None:
            raise ValueError("training.unfreeze_every and model.adapter_size both say what trains: give one of them")
        if self.model.start is not None and self.run.fork is not None:
            raise ValueError(
                f"model.from ({self.model.start}) begins with weights and a new optimizer, run.from ({self.run.fork}) "
                "with weights and the optimizer's state: give one of them"
            )
        if self.executor.workers > lanes:
            raise ValueError(
                f"executor.workers is {self.executor.workers}, but there are only {lanes} lanes to share: "
                f"use at most {lanes} workers, or raise data.lanes (that makes another stream)"
            )
        return self

    @property
    def features(self) -> Literal["encoder_decoder", "prefix_lm", "lm"]:
        """The kind of rows that the architecture reads."""
        kind = self.model.architecture
        return "encoder_decoder" if kind is None or kind == "shared" else kind

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a recipe would give them."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The whole tree as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=120)

    def identity(self) -> str:
        """A hash of the keys that make this run what it is: 16 hex digits over the stream and mathematics keys."""
        values = {path: value for path, effect, value in leaves(self) if effect is not FREE}
        return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def parse_duration_s(text: str) -> int:
    """Seconds of a duration such as `3h30m`, `90m` or `45s`.

    >>> parse_duration_s("3h30m"), parse_duration_s("45s")
    (12600, 45)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration: write days, hours, minutes and seconds, for example 3h30m")
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `512MB`, `1.5GB` or `64GiB`.

    >>> parse_bytes("512MB"), parse_bytes("2GiB")
    (512000000, 2147483648)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number with KB, MB, GB or TB, for example 512MB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(unit)))


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Effect, Any]]:
    """Every key of the tree with its effect and its plain value."""
    for name, field in type(section).model_fields.items():
        path = f"{prefix}{field.alias or name}"
        value = getattr(section, name)
        effect = next((mark for mark in field.metadata if isinstance(mark, Effect)), None)
        if effect is not None:
            yield path, effect, section.model_dump(mode="json", include={name})[name]
        elif isinstance(value, Section):
            yield from leaves(value, f"{path}.")
        else:
            for key, one in value.items():
                yield from leaves(one, f"{path}.{key}.")


def changes(old: Config, new: Config) -> list[tuple[str, Effect, Any, Any]]:
    """Keys whose values differ, as (path, effect, old value, new value); None for a key that one of them lacks."""
    before = {path: (effect, value) for path, effect, value in leaves(old)}
    after = {path: (effect, value) for path, effect, value in leaves(new)}
    return [
        (
            path,
            (after.get(path) or before[path])[0],
            before.get(path, (None, None))[1],
            after.get(path, (None, None))[1],
        )
        for path in {**before, **after}
        if before.get(path) != after.get(path)
    ]


def validated(values: Mapping[str, Any], where: str) -> Config:
    """A tree from plain values."""
    return section_of(Config, values, f"{where} does not describe a run")


def section_of(kind: type[ASection], values: Mapping[str, Any], refusal: str) -> ASection:
    """A tree, or a branch of it, from plain values; raises ConfigError with what is wrong with each key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors()]
        raise ConfigError("\n".join([f"{refusal}:", *(f"  {line}" for line in lines)])) from None


def _explain(problem: Mapping[str, Any], root: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            near = _nearest_key([str(part) for part in problem["loc"]], root)
            return f"{path}: no such key{near}"
        case "missing":
            return f"{path}: required, but not given"
        case "value_error":
            message = str(problem["ctx"]["error"])
            return f"{path}: {message}" if path else message
        case _:
            message = problem["msg"]
            return f"{path}: {problem['input']!r} was given; {message[0].lower()}{message[1:]}"


def _nearest_key(location: list[str], root: type[BaseModel]) -> str:
    names = _known_keys(location[:-1], root)
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if near:
        return f"; nearest: {'.'.join([*location[:-1], near[0]])}"
    paths = list(_all_paths(root))
    elsewhere = difflib.get_close_matches(location[-1], {path.rpartition(".")[2] for path in paths}, n=1, cutoff=0.8)
    if elsewhere:
        return f"; nearest: {', '.join(path for path in paths if path.endswith('.' + elsewhere[0]))}"
    return f"; known here: {', '.join(names)}"


def _known_keys(location: Sequence[str], root: type[BaseModel]) -> list[str]:
    section = root
    for part in location:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
        elif section is MixtureSection:
            section = MixtureTask
    return [field.alias or name for name, field in section.model_fields.items()]


def _all_paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _all_paths(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}"
