"""From data x to the parameters of a distribution: the networks of amortised inference."""

from ...families.encoder import AbstractEncoder as AbstractEncoder
from .conv import ConvNet as ConvNet
from .mlp import MLP as MLP
from .sets import DeepSets as DeepSets
from .sets import SetTransformer as SetTransformer
from .wide import Linearised as Linearised
from .wide import WideReLU as WideReLU
