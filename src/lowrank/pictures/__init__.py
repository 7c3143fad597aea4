"""Pictures of results, as SVG: legible in grey, in colours that the colour-blind tell apart.

Matplotlib alone; a module for each thing that is drawn.
"""
