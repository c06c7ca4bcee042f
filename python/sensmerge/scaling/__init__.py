"""From what was measured to coefficients: one factor for every expert and layer.

The room is not called ``coefficients``: a module of that name would take the place of the verb
:func:`sensmerge.coefficients` as soon as somebody imports it. Importing it costs no NumPy.
"""
