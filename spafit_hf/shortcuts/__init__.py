"""The frozen prefix computed once: the hidden states at the border of group 1, kept on disk for every later pass.

    first time      ids -> embeddings -> layer 0 ... layer N1 --+--> layer N1+1 ... -> head
                                                                |
                                                              store      on disk: states of all tokens but padding
                                                                |
    ever after      ids -> (key) -------------------------------+--> layer N1+1 ... -> head

What stands below the first layer that trains gives the same states in every epoch once its dropout is off. They serve
later epochs, evaluations, seeds, learning rates, and every strategy with the same N1.

    border.py         where the frozen part of a model ends, seen in one forward pass
    entry.py          how states get into a model, and one batch both ways before that is believed
    rows.py           a batch as rows without padding, and back
    key.py            what an entry is filed under: a row's content, in a folder named by what computes states
    segment.py        a pair of files that one process appends to
    store.py          all segments of a folder, and the byte budget
    offload.py        weights of the frozen layers out of memory, and back
    cache.py          the parts together

Beside it the last layer, computed for the first token alone where the head reads no other:

    first_token.py    how a model's last layer is narrowed, and one batch both ways before that is believed

Both, and the predictor's short cuts, stand on the same ground:

    stand_in.py       a module that answers for another
    probe.py          the long way against the short way: tolerances, the comparison, eval mode and back

A model that a short cut does not fit says why (`NotCacheable`, `NotFirstToken`) and trains on as it would have.
"""
