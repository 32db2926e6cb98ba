"""The methods that DPZero is measured against, one file each, named as in their papers and found by file name.

DPZero itself is `dpzero.algorithm`. What a method must have: `dpzero.zeroth_order.protocols.Method`. How to
add one: README.md. Two files side by side show how the methods differ. The contract suite, tests/baselines,
runs on every file.
"""
