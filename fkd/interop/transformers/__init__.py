"""The boundary to transformers 5: inputs, outputs, attention capture, layer start, export.

    default_inputs(model, batch)            the fields of a batch that a model takes
    prepare(skeleton, captures, paths)      a copy of a model that captures what refs ask for
    outputs(raw)                            `ModelOutput` as a plain dict
    init_from_layers(student, teacher, layers=[0, 2, 4])
    cut(small, teacher, layers=[0, 2])      layers, heads and units by importance
    grow(large, trained, layers=[0, 0, 1])  the other way, with the function kept
    heads(student=small, teacher=big)       hidden states, weights, scales for head_divergence
    save_pretrained(model, tensors, directory)

How attention is captured. The attention module of a captured layer gets a config of its own
that names the attention function `fkd_capture`; every other module, and the function that makes
the masks, keep theirs. So the other layers run exactly as without fkd (on SDPA), and
the captured layer gets the mask that SDPA would have been given. Its map is computed by the eager
function of the model's own file, so soft caps, sinks and position biases are in it.

A module that computes attention in its own code (GPT-J, BLOOM, Falcon, DeBERTa, XLNet, ...) runs
as it is, and its softmax and its products are watched: the map is what the softmax gives, and
scores, queries, keys and values are what goes into it and into the products around it. It has to
take one softmax over `[batch, head, query, key]`. Windows and blocks (Longformer, LED's encoder,
BigBird's sparse attention), hashing and gates are refused by `fkd.check`, before anything is
computed; what such a model itself returns as maps is `student.attentions[layer]`.

Parts. A model with one stack of layers needs none. Encoder-decoders have `"encoder"`, `"decoder"`
and `"cross"`: `student.attention(0, part="cross")`, or, from the model's own output,
`student.encoder_attentions[0]`, `student.decoder_attentions[0]`, `student.cross_attentions[0]`.
Those output paths make every layer compute its map; a capture does so in one. Models of several
kinds of input have `"text"`, `"vision"`, `"audio"`; around a language model, that is meant where
no part is named. A layer that has no attention (state space models between) cannot be captured,
and layers are counted with it.

Nothing here is imported before a model of transformers is met.
"""

from ._capture import Prepared as Prepared
from ._capture import prepare as prepare
from ._chance import layer_drop as layer_drop
from ._chance import not_traceable as not_traceable
from ._collect import install_output_hooks as install_output_hooks
from ._fewer import fewer_layers as fewer_layers
from ._forward import default_inputs as default_inputs
from ._forward import is_causal as is_causal
from ._forward import is_transformers as is_transformers
from ._forward import on_request as on_request
from ._forward import outputs as outputs
from ._head import Head as Head
from ._head import head as head
from ._head import heads as heads
from ._layers import init_from_layers as init_from_layers
from ._save import save_pretrained as save_pretrained
from ._sizes.cut import cut as cut
from ._sizes.grow import grow as grow
from ._types import Capture as Capture

__all__ = [
    "Capture",
    "Head",
    "Prepared",
    "cut",
    "default_inputs",
    "fewer_layers",
    "grow",
    "head",
    "heads",
    "init_from_layers",
    "install_output_hooks",
    "is_causal",
    "is_transformers",
    "layer_drop",
    "not_traceable",
    "on_request",
    "outputs",
    "prepare",
    "save_pretrained",
]
