"""How far a model's states have moved from the base's, per layer, from sums over tokens.

    X, Y [tokens, width]    states of the base and of the model, in float64
    cosine                  mean over tokens of x.y / |x| |y|
    linear CKA              |Y'X|^2 / |X'X| |Y'Y|, Frobenius norms, columns centered: it is 1 for Y = a X Q + b with
                            Q orthogonal, and so sees what cosine does not, and the other way round

Both are 1, and not nearly 1, where all states are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from spafit_hf.card.forgetting import LayerDrift


@dataclass
class Drift:
    """Sums over the tokens of one layer; three matrices [width, width] in float64."""

    tokens: int = 0
    equal: int = 0
    cosines: float = 0.0
    sums: list[torch.Tensor] = field(default_factory=list)

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take in states [tokens, width] of the same tokens."""
        same = (before.view(torch.int32) == after.view(torch.int32)).all(-1)
        x, y = before.double(), after.double()
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).masked_fill(same, 1.0)
        self.tokens += len(x)
        self.equal += int(same.sum())
        self.cosines += float(cosine.sum())
        sums = [x.sum(0), y.sum(0), x.T @ x, y.T @ y, y.T @ x]
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)] if self.sums else sums

    def result(self) -> LayerDrift:
        """The figures; a CKA of 0 where one side has the same state for all tokens and the other has not."""
        if self.equal == self.tokens:
            return LayerDrift(1.0, 1.0, self.equal)
        x, y, xx, yy, yx = self.sums
        centered = [m - torch.outer(a, b) / self.tokens for m, a, b in ((xx, x, x), (yy, y, y), (yx, y, x))]
        own_x, own_y, both = (float(torch.linalg.matrix_norm(matrix)) for matrix in centered)
        return LayerDrift(self.cosines / self.tokens, both**2 / (own_x * own_y) if own_x * own_y else 0.0, self.equal)
