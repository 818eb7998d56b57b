"""Products with frozen weights through oneDNN, in fp32 on a CPU.

PyTorch gives these products to MKL, in training and in prediction. On AMD's processors oneDNN, which PyTorch brings
along and uses for 16 bits, takes three quarters to nine tenths of MKL's time on a batch and half of it on a single
short text (docs/benchmarks.md). Weights stay where and as they are; sums are taken in another order, so results differ
in their last bits.

    linear.py     the product with its gradient, and modules that are computed by it
    arguments.py  the user's side
    training.py   the trainer's side
"""

from spafit_hf.onednn.linear import attached, frozen, is_preferred, replaceable

__all__ = ["attached", "frozen", "is_preferred", "replaceable"]
