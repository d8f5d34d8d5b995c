"""Engine `openai`: any server that speaks the OpenAI API, asked over HTTP.

connection.py   how to reach it: keys, headers, timeouts; never written or shown
engine.py       the engine: a trial is its requests, released together
"""
