"""Which of two answers is the better one. A judge is anything with `prefer`; see judge.py.

judge.py          what a judge is, and the comparisons it is given
reward_model.py   a sequence classifier of Hugging Face, from its folder
endpoint.py       a model behind a server with OpenAI's chat completions
probe.py          logistic regression on the reference policy's hidden states
"""
