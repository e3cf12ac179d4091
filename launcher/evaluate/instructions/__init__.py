"""Instructions that a program can check, in the form of IFEval (Zhou et al. 2311.07911).

checkers.py    the 25 kinds of instructions
following.py   strict and loose scores of an answer
text.py        words, sentences and languages, as the checkers count them
instructions.jsonl   the project's own prompts; IFEval's file has the same form
"""
