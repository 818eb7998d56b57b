"""Products with frozen weights by oneDNN, in training and in serving in fp32 on a CPU.

PyTorch gives these products to MKL. On AMD's processors oneDNN, which PyTorch brings along and uses for 16 bits, takes
three quarters to nine tenths of MKL's time on a batch (docs/onednn.md). Weights stay where and as they are; sums are
taken in another order, so losses differ in their last bits.

    linear.py     the product with its gradient, and modules that are computed by it
    packed.py     the product without one, from a packed copy of the weight: the predictor's side
    arguments.py  the user's side
    training.py   the trainer's side
"""

from spafit_hf.onednn.linear import NotOneDnn, attached, padding, replaceable_of
from spafit_hf.onednn.packed import PackedWeights

__all__ = ["NotOneDnn", "PackedWeights", "attached", "padding", "replaceable_of"]
