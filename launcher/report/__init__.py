"""The comparison of a sweep's trials: estimates from the folder, plots, verdicts; HTML, Markdown, CSV and PNG.

What is compared
    measure.py        what a measure is
    measures.py       the registry of measures: add one here, and every table, plot and verdict has it
    answer_measures.py  those of what the policies say
    recorded.py       result.json and validations, typed; trial_files.py reads the files, and follows no link
    trials.py         one trial; costs.py what it cost; pools.py trials that differ only in their seed, as one row
    gather.py         a sweep's folder -> Report
How it is judged
    judge.py          Report -> verdicts, with errors from launcher.estimates
How it is shown
    text.py           the sentences that all forms share
    ending_table.py   the table after a run; markdown.py; table_csv.py
    page.py           HTML; panels.py and plots.py draw, and are the only ones that need matplotlib
"""
