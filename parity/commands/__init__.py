"""One module per command of `python -m parity`; the only part of the package that knows ResNets."""
