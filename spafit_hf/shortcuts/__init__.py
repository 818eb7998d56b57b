"""The frozen prefix computed once: the hidden states at the border of group 1, kept on disk for every later pass.

    first time      ids -> embeddings -> layer 0 ... layer N1 --+--> layer N1+1 ... -> head
                                                                |
                                                              store      on disk: states of all tokens but padding
                                                                |
    ever after      ids -> (key) -------------------------------+--> layer N1+1 ... -> head

What stands below the first layer that trains gives the same states in every epoch once its dropout is off. They serve
later epochs, evaluations, seeds, learning rates, and every strategy with the same N1.

    border, entry            where the frozen part of a model ends, and how states get in there
    rows, key                a batch as rows without padding, and what a row is filed under
    segment, store, offload  files that one process appends to, all of a folder, weights out of memory
    cache                    the parts together

Beside it the last layer, computed for the first token alone where the head reads no other (first_token). Both, and the
predictor's short cuts, stand on the same ground: a module that answers for another (stand_in), and one batch both ways
before a short cut is believed (probe). Where a script's own hooks look on, both stand aside (hooks).

A model that a short cut does not fit says why (`NotCacheable`, `NotFirstToken`) and trains on as it would have.
"""
