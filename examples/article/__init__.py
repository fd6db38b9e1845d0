"""The front page in seven short chapters: each claim about processes measured here and now, with a verdict.

python -m examples.article [--quick] [--only 4,7] [--picture FILE]

chapters       listing.py         what the first chapter runs, as a reader would type it
ch1_listing.py ... ch7_overhead.py: one claim each
what they say  claims.py          verdicts, figures, sizes
how it looks   telling.py         in a terminal, and in a pipe
picture.py         the overheads as SVG
the command    __main__.py
"""
