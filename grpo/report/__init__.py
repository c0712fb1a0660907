"""A run as one page: `python -m grpo.report runs/NAME` writes runs/NAME/report.html, which opens without a network.

    __main__.py   the command                    charts.py   curves and heat maps, by Plotly
    records.py    what the run recorded          page.py     the parts put into one file
    tokens.py     the numbers of each token      page.html, page.css   what the browser shows
    steps.py      which steps are in the file    numbers.js, reader.js, page.js   and does
"""
