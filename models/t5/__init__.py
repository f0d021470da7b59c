"""T5 1.0 and 1.1 in all shapes of the paper: models, first weights, decoding, the way to and from Hugging Face."""

from mixtura.models.t5.config import SIZES, T5Config
from mixtura.models.t5.convert import config_from_hf, hf_config, hf_name, hf_state, our_name, our_state
from mixtura.models.t5.ensemble import Answering, Ensemble, average_weights
from mixtura.models.t5.generate import Answers, beam_decode, choose, decode, greedy_decode, score
from mixtura.models.t5.initialization import initialize
from mixtura.models.t5.model import T5, DecoderOnlyT5, TextToText, create_model

__all__ = [
    "SIZES",
    "T5",
    "Answering",
    "Answers",
    "DecoderOnlyT5",
    "Ensemble",
    "T5Config",
    "TextToText",
    "average_weights",
    "beam_decode",
    "choose",
    "config_from_hf",
    "create_model",
    "decode",
    "greedy_decode",
    "hf_config",
    "hf_name",
    "hf_state",
    "initialize",
    "our_name",
    "our_state",
    "score",
]
