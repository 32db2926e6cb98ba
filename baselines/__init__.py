"""The methods that DPZero is measured against: one file each, named as in its paper, found by file name.

DPZero itself is `dpzero.algorithm`. A method is a class with

    title, private, order           how tables print it; whether it adds noise; 0 (forward passes), 1 (gradients) or None
    __init__(model, loss, budget, *, learning_rate, ...)      `batch_size` in place of `budget` where it is not private
    step(batch)                     one step, also on an empty batch; counts itself in `steps_taken`
    state_dict(), load_state_dict(state)

The keyword-only arguments of `__init__` are the settings that a sweep may give. Reading two of the files side by side
shows in what the methods differ. The contract suite in tests/ runs on every file found here.
"""
