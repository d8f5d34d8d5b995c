"""transformers' modules computed in fewer calls than their own code makes, to the same bits.

In decoding on a CPU, many short calls take more time than the arithmetic. So while a mode is on,
`forward` of the modules that most models share is replaced on their classes: RMSNorm (`norm.py`),
the gated MLP (`mlp.py`) and attention with rotary positions (`attention.py`). Weights that multiply
the same input are packed side by side, and work that is the same for all layers is done once a
forward pass (`steps.py`).

On a GPU launches take the time. There a norm, a gated activation, and the rotary positions of
queries and keys are one launch each (`gpu.py`), once it was proven on the card that the bits are
the same (`proofs.py`).

A class is served if its `forward` has the bytecode of a template (`templates.py`). A call is served
if nobody looks inside it: no gradients, hooks, autocast, dispatch modes or changed children
(`calls.py`, `facts.py`). Every other call runs the module's own `forward`, with the same result.
"""
