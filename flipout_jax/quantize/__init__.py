"""Post-training 8-bit quantization of networks, pruned or not. Exact zeros stay exact zeros.

- An `Observer` finds ranges: `min_max`, `moving_average` and `histogram`, and two of them for each channel.
- `quantize` and `dequantize` are for one array, `quantize_params` and `dequantize_params` for parameters of any tree.
- `calibrate` finds the ranges of the activations of a Flax NNX model, and `quantize_model` makes a model that computes
  with integers, for the weights alone or for the activations as well.
"""

from .._recording import apply_model as apply_model
from ._array import Quantized as Quantized
from ._array import dequantize as dequantize
from ._array import quantize as quantize
from ._array import scale_and_zero_point as scale_and_zero_point
from ._array import to_qwix as to_qwix
from ._calibrate import LayerRange as LayerRange
from ._calibrate import calibrate as calibrate
from ._errors import Errors as Errors
from ._errors import Row as Row
from ._histogram import HistogramState as HistogramState
from ._histogram import histogram as histogram
from ._model import output_errors as output_errors
from ._model import quantize_model as quantize_model
from ._observers import MovingAverageState as MovingAverageState
from ._observers import Observer as Observer
from ._observers import Range as Range
from ._observers import Scheme as Scheme
from ._observers import min_max as min_max
from ._observers import moving_average as moving_average
from ._observers import moving_average_per_channel as moving_average_per_channel
from ._observers import per_channel_min_max as per_channel_min_max
from ._params import dequantize_params as dequantize_params
from ._params import errors as errors
from ._params import quantize_params as quantize_params
