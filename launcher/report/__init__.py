"""The comparison of a sweep's trials: figures from the folder, plots, verdicts; HTML, Markdown, CSV and PNG.

figures.py  numbers and their standard errors, no files
gather.py   a sweep folder -> Report
judge.py    Report -> verdicts on the experiment's hypotheses
plots.py    Report -> SVG and PNG (the only module that needs matplotlib)
page.py, text.py   Report -> HTML; Markdown and CSV
"""
