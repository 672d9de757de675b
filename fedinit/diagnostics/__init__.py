"""What explains a start: pure functions on a probe set's activations and gradients, one idea a file.

clients/probe.py drives them over a run (`diagnostics=init`). docs/diagnostics.md says what each number means.
"""
