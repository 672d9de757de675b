"""Figures as inline SVG, by matplotlib, in the page's own colours. The one package that imports matplotlib."""
