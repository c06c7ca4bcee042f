"""From a calibration to coefficients: one factor for every expert and layer.

The package is not called ``coefficients``: importing a module of that name would overwrite the
function :func:`sensmerge.coefficients`. Importing this package does not import NumPy.
"""
