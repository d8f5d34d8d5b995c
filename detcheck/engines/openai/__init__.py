"""Engine `openai`: any server that speaks the OpenAI API, asked over HTTP.

engine.py       the engine: a trial is its requests, released together
connection.py   keys, headers and time limits, which are never written or shown
endpoint.py     one server: client.py (HTTP), request.py (bodies), body.py and reply.py (answers)
sanity.py       the checks before an experiment; checks.py, seeds.py and same_server.py judge them
evidence.py     the load of a trial, by metrics.py (counters) or by its streams
"""
