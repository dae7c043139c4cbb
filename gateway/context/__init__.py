"""Long prompts on their way to a provider: conversations shortened to fit a model, and white space taken out.

Nothing of this is done but where the route says so, and what is done is told in `x-hoosh-context`. `compaction` and
`compression` are pure and say what may go; `shaping` does it on the request path, for each candidate as its own route
says; `room` keeps long requests from models that are too small for them.
"""
