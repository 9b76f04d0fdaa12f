"""The boundary to transformers 5: inputs, outputs, attention capture, layer start, export.

    default_inputs(model, batch)            the fields of a batch that a model takes
    prepare(skeleton, captures, paths)      a copy of a model that captures what refs ask for
    outputs(raw)                            `ModelOutput` as a plain dict
    init_from_layers(student, teacher, layers=[0, 2, 4])
    save_pretrained(model, tensors, directory)

How attention is captured. The attention module of a captured layer gets a config of its own
that names the attention function `fkd_capture`; every other module, and the function that makes
the masks, keep theirs. So the other layers run exactly as without fkd (on SDPA), and
the captured layer gets the mask that SDPA would have been given. Its map is computed by the eager
function of the model's own file, so soft caps, sinks and position biases are in it.

Nothing here is imported before a model of transformers is met.
"""

from ._capture import Prepared as Prepared
from ._capture import prepare as prepare
from ._collect import install_output_hooks as install_output_hooks
from ._forward import default_inputs as default_inputs
from ._forward import is_transformers as is_transformers
from ._forward import outputs as outputs
from ._layers import init_from_layers as init_from_layers
from ._save import save_pretrained as save_pretrained
from ._types import Capture as Capture
