"""The syntax of Data Prep's mapping expressions: `parser` reads them into the nodes of `tree`, `printer` writes them.

What an expression means is not known here.
"""
